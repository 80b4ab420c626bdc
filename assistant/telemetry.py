"""Logs, the ids that follow a message, and the admin server that shows metrics and profiles.

One event is one JSON line on standard output. Metrics are prometheus_client's, named
`assistant_<noun>_<unit>`; on hot paths their labelled children are bound once.
"""

import atexit
import contextlib
import functools
import logging
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from http.server import ThreadingHTTPServer
from typing import Any, BinaryIO

import orjson
from prometheus_client import REGISTRY, MetricsHandler, disable_created_metrics

from assistant import ports, profiling, tracing
from assistant.errors import AssistantError
from assistant.resources import Resources
from assistant.settings import Address

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Follows one callback through all services. Empty: none."""

message_id: ContextVar[str] = ContextVar("message_id", default="")
"""The message that is worked on, "channel:account:id", the same however often it comes. Empty: none is known."""

EDGES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 15.0, 60.0)
"""Buckets of histograms. One edge is where the alert on latency lies, with fine ones below: quantiles are guessed."""

_FLUSH_AFTER_S = 0.1


class _Lines:
    """Lines on their way to a stream: kept for a moment, so that one write carries many."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._waiting: deque[bytes] = deque()
        self._lock = threading.Lock()
        self._some = threading.Event()
        threading.Thread(target=self._flush_forever, name="log", daemon=True).start()

    def write(self, line: bytes) -> None:
        self._waiting.append(line)
        if not self._some.is_set():
            self._some.set()

    def flush(self) -> None:
        with self._lock:
            self._some.clear()
            lines = [self._waiting.popleft() for _ in range(len(self._waiting))]
            with contextlib.suppress(OSError, ValueError):  # nobody reads us any longer: no reason to stop working
                self._stream.write(b"".join(lines))
                self._stream.flush()

    def _flush_forever(self) -> None:
        while True:
            self._some.wait()
            time.sleep(_FLUSH_AFTER_S)
            self.flush()


class _Log:
    def __init__(self) -> None:
        self.service = ""
        self.lines: _Lines | None = None

    def write(self, level: str, event: str, fields: dict[str, Any]) -> None:
        if self.lines is None:
            return
        line = {
            "time": datetime.now(UTC),
            "level": level,
            "service": self.service,
            "event": event,
            "request_id": request_id.get(),
            "message_id": message_id.get(),
            **fields,
        }
        if tracing.tracer is not None and (trace_id := tracing.tracer.trace_id()):
            line["trace_id"] = trace_id
        self.lines.write(orjson.dumps(line, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS))


_log = _Log()


class _LibraryHandler(logging.Handler):
    """Brings what libraries log into our form."""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        fields: dict[str, Any] = {"logger": record.name}
        if record.exc_info and record.exc_info[1]:
            # asyncio puts the repr of a failed task, with its exception's text, on the lines after the first
            message = message.partition("\n")[0]
            fields |= _described(record.exc_info[1])
        _log.write(record.levelname.lower(), "library_log", {"message": message, **fields})
        flush()


def start(service: str) -> None:
    """Begin to write log lines as `service`, and to measure what it uses. Until then nothing is written.

    Called first in every main, and by a forked worker for itself.
    """
    _log.service = service
    _log.lines = _Lines(sys.stdout.buffer)
    atexit.register(flush)
    _measure()
    logging.basicConfig(level=logging.WARNING, handlers=[_LibraryHandler()], force=True)


@functools.cache
def _measure() -> None:
    """Add what the process uses to its metrics; a forked worker has that of its parent already."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # else each counter has a second series: when it began
    REGISTRY.register(Resources())


def service() -> str:
    """Who writes these log lines."""
    return _log.service


def flush() -> None:
    """Write out what is buffered."""
    if _log.lines is not None:
        _log.lines.flush()


def info(event: str, **fields: Any) -> None:
    """Log what happened. Written within 100 ms."""
    _log.write("info", event, fields)


def warning(event: str, **fields: Any) -> None:
    """Log what somebody should look at some day. Written at once."""
    _log.write("warning", event, fields)
    flush()


def error(event: str, exception: BaseException | None = None, **fields: Any) -> None:
    """Log what somebody must look at. Written at once.

    Of an exception that is not an AssistantError only the type and the stack's locations are written: its
    text may hold a secret.
    """
    fields = fields if exception is None else fields | _described(exception)
    _log.write("error", event, fields)
    if tracing.tracer is not None:
        tracing.tracer.failed(fields.get("reason") or fields.get("exception") or event)
    flush()


def _described(exception: BaseException) -> dict[str, Any]:
    if isinstance(exception, AssistantError):
        return {"reason": exception.reason, "message": exception.message, **exception.metadata}
    frames = traceback.extract_tb(exception.__traceback__)
    return {
        "exception": type(exception).__qualname__,
        "stack": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }


def serve_admin(listen: Address, checks: Mapping[str, Callable[[], bool]], setting: str) -> ThreadingHTTPServer:
    """Serve `/metrics`, profiles and checks in a daemon thread, until its `shutdown()`.

    A check is a path that is answered 200 or 503; it is asked in a thread of its own, and may wait.
    Raises InvalidSetting if the address is taken: then `setting` is to be changed.
    """

    class Handler(MetricsHandler):
        def do_GET(self) -> None:  # noqa: N802  http.server's name
            if self.path == "/metrics":
                super().do_GET()
                return
            if self.path.startswith(profiling.PATH):
                self._profile()
                return
            check = checks.get(self.path)
            self.send_response(404 if check is None else 200 if check() else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _profile(self) -> None:
            path, _, query = self.path.partition("?")
            page = profiling.page(path, query, self.client_address[0])
            self.send_response(page.status)
            self.send_header("Content-Type", page.content_type)
            self.send_header("Content-Length", str(len(page.body)))
            self.end_headers()
            self.wfile.write(page.body)

    try:
        server = ThreadingHTTPServer((listen.host, listen.port), Handler)
    except OSError as error:
        raise ports.cannot_listen(listen, error.strerror or "", setting) from error
    threading.Thread(target=server.serve_forever, name="admin", daemon=True).start()
    return server
