"""The HTTP faces of the gateway: callbacks and health for the world, metrics and profiles for operators.

One Flask app on two addresses. What operators see is served on the admin address only. The inbox is no part of it:
who reaches that address is asked for nothing. See `gateway.service`.
"""

import asyncio
import functools
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import orjson
from flask import Blueprint, Flask, Response, abort, current_app, request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from assistant import plugin, profiling, tracing
from assistant.api.message.v1.message_pb2 import Account
from assistant.plugin import Callback, Codec
from assistant.settings import DEFAULT_ACCOUNT
from gateway.held import error_answer
from gateway.loop import Answer, Deferred, Exchange, FlaskOnLoop, FutureExchange, Lane
from gateway.runtime import Gateway
from gateway.settings import Configuration

MAX_BODY_BYTES = 256 * 1024
"""Far above any callback; Envoy refuses more before us."""
_GATEWAY = "gateway"

callbacks = Blueprint("callbacks", __name__)
operators = Blueprint("operators", __name__)


def create_app(configuration: Configuration) -> FlaskOnLoop:
    """The application that gunicorn's worker serves."""
    app = Flask(_GATEWAY)
    app.config["ADMIN_PORT"] = str(configuration.gateway.admin.port)
    app.register_blueprint(callbacks)
    app.register_blueprint(operators)
    app.register_error_handler(HTTPException, _http_error)

    async def startup() -> None:
        app.extensions[_GATEWAY] = await Gateway.create(configuration)

    async def shutdown() -> None:
        await _gateway(app).close()

    def find_lane(path: str) -> Lane | None:
        return _lanes(_gateway(app)).get(path)

    return FlaskOnLoop(app, startup=startup, shutdown=shutdown, max_body_bytes=MAX_BODY_BYTES, find_lane=find_lane)


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
    """A platform calls. POST comes here only where the lane leaves it: see `_lanes`."""
    gateway = _gateway()
    codec = gateway.codecs.get((channel, account))
    if codec is None:
        abort(404, f"No account {account!r} of a channel {channel!r} is configured.")
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in request.headers.items()]
    lane = _lane(gateway, channel, account, codec, request.method)
    exchange = FutureExchange()
    gateway.spawn(lane(request.query_string.decode("latin-1"), headers, request.get_data(), exchange))
    return Deferred(exchange.answer)


@functools.cache
def _lanes(gateway: Gateway) -> Mapping[str, Lane]:
    """By path, what the view `callback` does for the requests that come by the thousand."""
    lanes = {}
    for (channel, account), codec in gateway.codecs.items():
        lane = _lane(gateway, channel, account, codec, "POST")
        lanes[f"/{channel}/{account}"] = lane
        if account == DEFAULT_ACCOUNT:
            lanes[f"/{channel}"] = lane
    return lanes


def _lane(gateway: Gateway, channel: str, account: str, codec: Codec, method: str) -> Lane:
    named = Account(channel=channel, name=account)
    wanted = {name: name.encode("latin-1") for name in plugin.channels()[channel].headers}

    def take(
        query: str, headers: list[tuple[bytes, bytes]], body: bytes, exchange: Exchange
    ) -> Coroutine[Any, Any, None]:
        given = dict(headers)
        request_id, started = given.get(b"x-request-id", b""), given.get(b"x-request-start", b"")
        passed_on = {name: given[raw].decode("latin-1") for name, raw in wanted.items() if raw in given}
        callback = Callback(method, query, passed_on, body)
        source = "" if gateway.intake.sources is None else given.get(b"x-client-address", b"").decode("latin-1")
        return gateway.intake.take(
            named, codec, callback, _arrived_at(started), exchange, request_id.decode("latin-1"), source
        )

    return take if tracing.tracer is None else tracing.tracer.taking(take, method, _described(channel, account))


def _described(channel: str, account: str) -> dict[str, str]:
    """Of an account's callbacks, what their spans tell."""
    return {
        "http.route": f"/{channel}",
        "url.path": f"/{channel}" if account == DEFAULT_ACCOUNT else f"/{channel}/{account}",
        "assistant.channel": channel,
        "assistant.account": account,
    }


def _arrived_at(started: bytes) -> float:
    """When the request reached the edge, on the monotonic clock: Envoy may have held it while we were restarted.

    `started` is what Envoy says about it: "t=" and seconds since 1970.
    """
    now, age_s = time.monotonic(), 0.0
    if started.startswith(b"t="):
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


@operators.get("/livez")
def loop_turns() -> Response:
    """Whether the event loop of this process still turns, as of all services: one that hangs answers nobody."""
    return Response(b"ok", content_type="text/plain")


@operators.get(profiling.PATH + "<name>")
def profile(name: str) -> Response:
    """Where this process spends its time (`profile`) or memory (`heap`), for pprof: `?seconds=10`."""
    query, peer = request.query_string.decode("latin-1"), request.remote_addr or ""
    return Deferred(_profile(profiling.PATH + name, query, peer))


async def _profile(path: str, query: str, peer: str) -> Answer:
    page = await asyncio.to_thread(profiling.page, path, query, peer)
    return Answer(page.body, page.content_type, page.status)


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(orjson.dumps(value) + b"\n", "application/json", status)
