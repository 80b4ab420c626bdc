"""The HTTP faces of the gateway: callbacks and health for the world, the inbox and metrics for operators.

One Flask app on two addresses. What operators see is served on the admin address only.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson
from flask import Blueprint, Flask, Response, abort, current_app, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from assistant import plugin, profiling, telemetry
from assistant.api.message.v1.message_pb2 import Account
from assistant.errors import AssistantError, UnknownMessage
from assistant.plugin import Callback
from assistant.settings import DEFAULT_ACCOUNT
from gateway.inbox import InboxState, describe
from gateway.intake import error_answer, refusal
from gateway.loop import Answer, Deferred, FlaskOnLoop, Scope
from gateway.runtime import Gateway
from gateway.settings import Configuration

MAX_BODY_BYTES = 256 * 1024
"""Far above any callback; Envoy refuses more before us."""
_GATEWAY = "gateway"

callbacks = Blueprint("callbacks", __name__)
operators = Blueprint("operators", __name__)


def create_app(configuration: Configuration, *, past_flask: bool = True) -> FlaskOnLoop:
    """The application that gunicorn's worker serves.

    `past_flask=False` lets callbacks go through Flask like all else: dearer, and the same in every answer.
    """
    app = Flask(_GATEWAY)
    app.config["ADMIN_PORT"] = str(configuration.gateway.admin.port)
    app.config["HEADERS"] = {name: channel.headers for name, channel in plugin.channels().items()}
    app.register_blueprint(callbacks)
    app.register_blueprint(operators)
    app.register_error_handler(HTTPException, _http_error)

    async def startup() -> None:
        app.extensions[_GATEWAY] = await Gateway.create(configuration)

    async def shutdown() -> None:
        await _gateway(app).close()

    def lane(scope: Scope, body: bytes) -> Awaitable[Answer] | None:
        return _callback_past_flask(app, scope, body) if past_flask else None

    return FlaskOnLoop(app, startup=startup, shutdown=shutdown, max_body_bytes=MAX_BODY_BYTES, lane=lane)


def _gateway(app: Flask | None = None) -> Gateway:
    gateway: Gateway = (app or current_app).extensions[_GATEWAY]
    return gateway


def _http_error(error: HTTPException) -> Response:
    reason = (error.name or "error").upper().replace(" ", "_")
    response = error_answer(error.code or 500, reason, error.description or "").response()
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        response.headers["Allow"] = ", ".join(error.valid_methods)
    return response


# --- For the world ----------------------------------------------------------------------------------------


@callbacks.route("/<channel>", methods=["GET", "POST"])
@callbacks.route("/<channel>/<account>", methods=["GET", "POST"])
def callback(channel: str, account: str = DEFAULT_ACCOUNT) -> Response:
    """A platform calls."""
    header, query = request.headers.get, request.query_string.decode("latin-1")
    answer = _answer(current_app, channel, account, request.method, query, header, request.get_data())
    if answer is None:
        abort(404, f"No account {account!r} of a channel {channel!r} is configured.")
    return Deferred(answer)


def _callback_past_flask(app: Flask, scope: Scope, body: bytes) -> Awaitable[Answer] | None:
    """What the view `callback` does, for the requests that come by the thousand: nothing else about them is special."""
    if scope["method"] != "POST":
        return None
    channel, has_account, account = scope["path"][1:].partition("/")
    headers = dict(scope["headers"])

    def header(name: str) -> str | None:
        value: bytes | None = headers.get(name.encode("latin-1"))
        return None if value is None else value.decode("latin-1")

    query = scope["query_string"].decode("latin-1")
    return _answer(app, channel, account if has_account else DEFAULT_ACCOUNT, "POST", query, header, body)


def _answer(
    app: Flask, channel: str, account: str, method: str, query: str, header: Callable[[str], str | None], body: bytes
) -> Awaitable[Answer] | None:
    """The answer to a callback; None if there is no such account."""
    gateway = _gateway(app)
    codec = gateway.codecs.get((channel, account))
    if codec is None:
        return None
    telemetry.request_id.set(header("x-request-id") or "")
    wanted = app.config["HEADERS"][channel]
    headers = {name: value for name in wanted if (value := header(name)) is not None}
    arrived_at = _arrived_at(header("x-request-start") or "")
    named = Account(channel=channel, name=account)
    return gateway.intake.answer(named, codec, Callback(method, query, headers, body), arrived_at)


def _arrived_at(started: str) -> float:
    """When the request reached the edge, on the monotonic clock: Envoy may have held it while we were restarted.

    `started` is what Envoy says about it: "t=" and seconds since 1970.
    """
    now, age_s = time.monotonic(), 0.0
    if started.startswith("t="):
        try:
            age_s = time.time() - float(started[2:])
        except ValueError:
            age_s = 0.0
    return now - age_s if 0.0 < age_s < 10.0 else now


@callbacks.get("/health")
def health() -> Response:
    """Whether a message would be answered now."""
    return Deferred(_health(_gateway()))


async def _health(gateway: Gateway) -> Answer:
    report = await gateway.health.check()
    return _json(report, 200 if report["status"] == "ok" else 503)


@callbacks.get("/healthz")
def alive() -> Response:
    """Whether this process takes requests: what Envoy asks, all the time."""
    return Response(b"ok", content_type="text/plain")


# --- For operators ----------------------------------------------------------------------------------------


@operators.before_request
def _only_on_the_admin_address() -> None:
    if request.environ["SERVER_PORT"] != current_app.config["ADMIN_PORT"]:
        abort(404)


@operators.get("/metrics")
def metrics() -> Response:
    """Prometheus metrics of this process."""
    return Response(generate_latest(), content_type=CONTENT_TYPE_LATEST)


@operators.get(profiling.PATH + "<name>")
def profile(name: str) -> Response:
    """Where this process spends its time (`profile`) or memory (`heap`), for pprof: `?seconds=10`."""
    query, peer = request.query_string.decode("latin-1"), request.remote_addr or ""
    return Deferred(_profile(profiling.PATH + name, query, peer))


async def _profile(path: str, query: str, peer: str) -> Answer:
    page = await asyncio.to_thread(profiling.page, path, query, peer)
    return Answer(page.body, page.content_type, page.status)


@operators.get("/inbox")
def list_inbox() -> Response:
    """Messages, newest first: `?state=dead&limit=100&before=<seq>`."""
    state, before = request.args.get("state"), request.args.get("before", type=int)
    names = {known.name.lower(): known for known in InboxState}
    if state is not None and state not in names:
        abort(400, f"state is {state!r}: one of {', '.join(names)}")
    limit = min(1_000, max(1, request.args.get("limit", 100, type=int)))
    return _deferred_json(_list_inbox(_gateway(), [names[state]] if state else None, before, limit))


async def _list_inbox(gateway: Gateway, states: list[InboxState] | None, before: int | None, limit: int) -> Any:
    rows = await gateway.inbox.list(states, before, limit)
    return {
        "messages": [describe(row, with_content=False) for row in rows],
        "before": rows[-1].seq if len(rows) == limit else None,
    }


@operators.get("/inbox/<path:key>")
def show_message(key: str) -> Response:
    """One message, with its words."""
    return _deferred_json(_show_message(_gateway(), key))


async def _show_message(gateway: Gateway, key: str) -> Any:
    row = await gateway.inbox.get(key)
    if row is None:
        raise UnknownMessage(f"no message {key!r} in the inbox; its key is channel:account:message id")
    return describe(row, with_content=True)


@operators.post("/inbox/<path:key>/retry")
def retry_message(key: str) -> Response:
    """Take up again a message that was given up or not confirmed."""
    return _deferred_json(_retry_message(_gateway(), key))


async def _retry_message(gateway: Gateway, key: str) -> Any:
    if not await gateway.turns.retry(key):
        raise UnknownMessage(f"no message {key!r} is dead or unconfirmed")
    return await _show_message(gateway, key)


def _deferred_json(work: Coroutine[Any, Any, Any]) -> Response:
    async def answer() -> Answer:
        try:
            return _json(await work)
        except AssistantError as error:
            return refusal(error)

    return Deferred(answer())


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(orjson.dumps(value) + b"\n", "application/json", status)
