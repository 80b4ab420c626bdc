"""`test`: does it work? A real message through every service, or a service held against its contract."""

import asyncio
import http.client
import json
import ssl
import sys
import time
from typing import TYPE_CHECKING

import click
import msgspec

from assistant import plugin
from assistant.cli.addresses import reachable
from assistant.cli.configuration import Configuration, callback_path, channel_manifest
from assistant.cli.envoy import EdgeSettings, shown_certificate
from assistant.cli.output import json_option, ourselves, print_json
from assistant.cli.simulation import with_simulation
from assistant.errors import DeadlineExceeded, Internal, ServiceUnavailable, UnknownDelivery
from assistant.plugin import SELF_TEST_MEMBER, Callback
from assistant.settings import DEFAULT_ACCOUNT
from assistant.tls import TlsSettings

if TYPE_CHECKING:
    from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceAsyncStub

_POLL_S = 0.1
_TIMEOUT_S = 1.0


class _Tests(click.Group):
    """One test for each installed channel, beside the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*plugin.channels(), *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _channel_test(cmd_name) if cmd_name in plugin.channels() else super().get_command(ctx, cmd_name)


@click.group(cls=_Tests)
def test() -> None:
    """Send a message through every service, or hold an NLP service against its contract."""


@test.command("nlp")
@click.option("--target", required=True, metavar="HOST:PORT", help="Where the service listens.")
@json_option
def nlp(target: str, as_json: bool) -> None:
    """Check that a service keeps the NLP contract: anyone's, in any language. Exit code 1 if it does not."""
    from assistant.conformance.nlp import results

    async def checked() -> bool:
        found = []
        async for result in results(target):
            found.append(result)
            if not as_json:
                click.echo(f"{result.outcome:<7} {result.name}" + (f": {result.detail}" if result.detail else ""))
        if as_json:
            print_json([msgspec.to_builtins(result) for result in found])
        return all(result.outcome != "failed" for result in found)

    if not asyncio.run(checked()):
        sys.exit(1)


def _channel_test(channel: str) -> click.Command:
    @click.command(channel, help=f"Send a message as {channel} would, and print the answer.")
    @click.option("--message", default="ping", show_default=True, help="What to write.")
    @click.option("--account", default=DEFAULT_ACCOUNT, show_default=True, help="The account to write to.")
    @click.option("--timeout", default=60.0, show_default=True, help="Seconds to wait for the answer.")
    def command(message: str, account: str, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        conversation = Conversation(channel, account, with_simulation(Configuration.load()))
        message_id, content = conversation.ask(message, deadline)
        click.echo(json.dumps({"message_id": message_id, "content": content}, ensure_ascii=False))

    return command


class Conversation:
    """A member of the platform, played for one account. Its answers are recorded and never sent."""

    def __init__(self, channel: str, account: str, configuration: Configuration) -> None:
        """`configuration` is what the mesh runs with. Raises InvalidSetting, UnknownAccount."""
        channel_manifest(channel)
        self._channel, self._account = channel, account
        self._simulator = plugin.load("channels", channel, "simulator")(configuration.account(channel, account))
        self._edge = configuration.source.read(EdgeSettings, "edge")
        self._certificates = configuration.source.read(TlsSettings, "tls").certificates
        self._path = callback_path(channel, account)

    def ask(self, text: str, deadline: float) -> tuple[str, str]:
        """The message's id and what was answered. Raises an AssistantError that says what failed."""
        message_id, status, body = self._sent(text, deadline)
        if status != http.client.OK:
            said = body.decode(errors="replace").strip()
            raise ServiceUnavailable(f"{self._path} answered {status}: {said}. See {ourselves()} health and logs")
        content = self.read(body)
        if content is None:
            content = self._delivered(f"{self._channel}:{self._account}:{message_id}", deadline)
        return message_id, content

    def send(
        self, text: str, timeout_s: float, connection: http.client.HTTPConnection | None = None
    ) -> tuple[int, bytes]:
        """Write, by default to Envoy: status and body of the HTTP answer. Raises OSError or HTTPException."""
        callback, _ = self._simulator.callback(text, SELF_TEST_MEMBER)
        return self._post(callback, connection or self._connection(timeout_s))

    def read(self, body: bytes) -> str | None:
        """What the body of a 200 says; None if it only acknowledges. Raises Internal if it is not sealed rightly."""
        try:
            content: str | None = self._simulator.read_reply(body)
        except ValueError as error:
            raise Internal(f"the answer is not sealed as the platform demands: {error}") from error
        return content

    def _sent(self, text: str, deadline: float) -> tuple[str, int, bytes]:
        callback, message_id = self._simulator.callback(text, SELF_TEST_MEMBER)
        connection = self._connection(max(1.0, deadline - time.monotonic()))
        try:
            return message_id, *self._post(callback, connection)
        except (OSError, http.client.HTTPException) as error:
            where = f"{connection.host}:{connection.port}{self._path}"
            raise ServiceUnavailable(f"no answer from {where}: {error}. Is it up? {ourselves()} up") from error

    def _post(self, callback: Callback, connection: http.client.HTTPConnection) -> tuple[int, bytes]:
        try:
            target = f"{self._path}?{callback.query}"
            connection.request(callback.method, target, callback.body, dict(callback.headers))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        """To Envoy, in the way in which it takes callbacks."""
        if self._edge.profile == "development":
            return http.client.HTTPConnection(reachable(self._edge.http), timeout=timeout_s)
        certificate, _ = shown_certificate(self._edge, self._certificates)
        trust = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # in this certificate and no other, whatever the name in it
        trust.check_hostname = False
        trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        trust.load_verify_locations(certificate)
        return http.client.HTTPSConnection(reachable(self._edge.https), timeout=timeout_s, context=trust)

    def _delivered(self, key: str, deadline: float) -> str:
        """The answer that came after the callback's, once reply_svc has recorded it.

        Raises DeadlineExceeded, or Internal if the gateway has given the message up.
        """
        from assistant.api.reply.v1 import reply_pb2
        from assistant.cli.deliveries import call
        from assistant.cli.inbox import state_and_error

        request = reply_pb2.GetDeliveryRequest(request_id=key)

        async def recorded(stub: "ReplyServiceAsyncStub") -> str:
            while True:
                try:
                    found = await stub.GetDelivery(request, timeout=_TIMEOUT_S)
                except UnknownDelivery:
                    state, error = await state_and_error(key)
                    if state == "dead":
                        raise Internal(f"the gateway gave up: {error}. See {ourselves()} logs gateway") from None
                    if time.monotonic() > deadline:
                        raise DeadlineExceeded(f"not answered in time: {ourselves()} inbox show {key}") from None
                    await asyncio.sleep(_POLL_S)
                else:
                    return "\n".join(content.text.text for content in found.delivery.content)

        return call(recorded)
