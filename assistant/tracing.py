"""Optional tracing with OpenTelemetry: one tree of spans for each message, through Envoy and all services.

Off unless OTEL_EXPORTER_OTLP_ENDPOINT is set. While it is off, `tracer` is None and nothing of OpenTelemetry is
imported: whoever has something to tell asks `if tracing.tracer is not None`, and that is all it costs. How spans are
made: spans.py.
"""

import importlib.util
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from assistant.errors import InvalidSetting

if TYPE_CHECKING:
    from assistant.spans import Tracer

PREFIX = "OTEL"
"""What the names of all variables of OpenTelemetry begin with."""
ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACEPARENT = "traceparent"
"""The header and the metadata key (W3C Trace Context)."""

_EXTRA = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_RATIOS = {"always_on": 1.0, "always_off": 0.0, "traceidratio": None}
"""Samplers by the share of traces that they keep; None: OTEL_TRACES_SAMPLER_ARG says."""

tracer: "Tracer | None" = None
"""Makes spans; None while tracing is off."""


def start(service: str) -> None:
    """Begin to trace as `service`, if the environment asks for it. On the event loop, never before a fork.

    Raises InvalidSetting.
    """
    global tracer
    if not is_wanted():
        return
    check()
    from assistant.spans import Tracer

    resource = {
        "service.name": service,
        "service.namespace": "ai-assistant",
        "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
    }
    tracer = Tracer(resource, sampled_ratio())


def stop() -> None:
    """Export what is left, for two seconds at most, and trace no longer."""
    global tracer
    if tracer is not None:
        tracer.close()
        tracer = None


def is_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment asks for tracing."""
    return bool(environ.get(ENDPOINT)) and environ.get("OTEL_SDK_DISABLED", "").lower() != "true"


def check(environ: Mapping[str, str] = os.environ) -> None:
    """Raises InvalidSetting if tracing is asked for and cannot begin."""
    if not is_wanted(environ):
        return
    endpoint = environ[ENDPOINT]
    if not endpoint.startswith(("http://", "https://")):
        raise InvalidSetting(
            f"{ENDPOINT} is {endpoint!r}: expected the address of a collector that takes OTLP by HTTP, "
            "such as http://127.0.0.1:4318"
        )
    protocol = environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if protocol != "http/protobuf":
        raise InvalidSetting(f"OTEL_EXPORTER_OTLP_PROTOCOL is {protocol!r}: only 'http/protobuf' is spoken here")
    sampled_ratio(environ)
    if missing := [name for name in _EXTRA if not _is_installed(name)]:
        raise InvalidSetting(
            f"{ENDPOINT} is set, but {missing[0]} is not installed. Install what tracing needs with "
            "`pip install 'ai-assistant[otel]'`, in a checkout with "
            "`.venv/bin/pip install --require-hashes -r requirements/otel.lock`; or unset the variable"
        )


def sampled_ratio(environ: Mapping[str, str] = os.environ) -> float:
    """The share of messages that are traced, 0 to 1, as OTEL_TRACES_SAMPLER says. Raises InvalidSetting.

    The edge decides, for the whole trace: "parentbased_" before a sampler's name changes nothing.
    """
    name = environ.get("OTEL_TRACES_SAMPLER") or "parentbased_always_on"
    sampler = name.removeprefix("parentbased_")
    if sampler not in _RATIOS:
        raise InvalidSetting(f"OTEL_TRACES_SAMPLER is {name!r}: expected one of {', '.join(_RATIOS)}")
    ratio = _RATIOS[sampler]
    if ratio is not None:
        return ratio
    given = environ.get("OTEL_TRACES_SAMPLER_ARG") or "1"
    try:
        ratio = float(given)
    except ValueError:
        ratio = -1.0
    if not 0.0 <= ratio <= 1.0:
        raise InvalidSetting(f"OTEL_TRACES_SAMPLER_ARG is {given!r}: expected a share between 0 and 1, such as 0.05")
    return ratio


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False
