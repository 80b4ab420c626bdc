"""`inbox`: the messages that the gateway has taken."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from assistant import tls
from assistant.api.inbox.v1 import inbox_pb2
from assistant.api.inbox.v1.inbox_pb2_grpc import InboxServiceStub
from assistant.cli.addresses import reachable
from assistant.cli.configuration import Configuration
from assistant.cli.output import json_option, ourselves, print_json, print_table
from assistant.cli.plan import addresses
from assistant.cli.services import service
from assistant.client import connect
from assistant.errors import ServiceUnavailable

if TYPE_CHECKING:
    from assistant.api.inbox.v1.inbox_pb2_grpc import InboxServiceAsyncStub

_TIMEOUT_S = 5.0
_STATES = [name.removeprefix("MESSAGE_STATE_").lower() for name in inbox_pb2.MessageState.keys()[1:]]

Answer = TypeVar("Answer")


@click.group()
def inbox() -> None:
    """Look at messages that members have sent, and try those again whose answer failed."""


@inbox.command("list")
@click.option("--state", type=click.Choice(_STATES), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@json_option
def list_(state: str | None, limit: int, as_json: bool) -> None:
    """List messages, newest first."""
    number = inbox_pb2.MessageState.Value(f"MESSAGE_STATE_{(state or 'unspecified').upper()}")
    request = inbox_pb2.ListMessagesRequest(state=number, page_size=limit)
    answer = asyncio.run(_ask(lambda stub: stub.ListMessages(request, timeout=_TIMEOUT_S)))
    rows = [_row(message) for message in answer.messages]
    if as_json:
        print_json(rows)
    elif rows:
        print_table(rows, ("key", "state", "sender", "kinds", "attempts", "error"))
    else:
        click.echo("No messages.")


@inbox.command("show")
@click.argument("key")
def show(key: str) -> None:
    """Print one message, as JSON."""
    print_json(_whole(asyncio.run(_message(key))))


@inbox.command("retry")
@click.argument("key")
def retry(key: str) -> None:
    """Try again to answer a message that was given up."""
    request = inbox_pb2.RetryMessageRequest(key=key)
    print_json(_whole(asyncio.run(_ask(lambda stub: stub.RetryMessage(request, timeout=_TIMEOUT_S))).message))


async def state_and_error(key: str) -> tuple[str, str]:
    """How a message stands, such as "dead", and why. Raises UnknownMessage and ServiceUnavailable."""
    message = await _message(key)
    return _state(message.state), message.error


async def _message(key: str) -> inbox_pb2.InboxMessage:
    request = inbox_pb2.GetMessageRequest(key=key)
    return (await _ask(lambda stub: stub.GetMessage(request, timeout=_TIMEOUT_S))).message


async def _ask(ask: Callable[["InboxServiceAsyncStub"], Awaitable[Answer]]) -> Answer:
    """Ask the running gateway. Raises ServiceUnavailable and what it answers."""
    configuration = Configuration.load()
    target = reachable(addresses(service("gateway"), configuration).grpc)
    operator = tls.identity(configuration.source, "operator")
    async with connect(target, multiplex=False, identity=operator, server="gateway") as channel:
        try:
            return await ask(InboxServiceStub(channel))
        except ServiceUnavailable as error:
            said = f"the gateway does not answer: {error.message}"
            raise ServiceUnavailable(f"{said}. Is it up? {ourselves()} up") from None


def _row(message: inbox_pb2.InboxMessage) -> dict[str, Any]:
    """A message without its words."""
    return {
        "key": message.key,
        "state": _state(message.state),
        "channel": message.account.channel,
        "account": message.account.name,
        "conversation": message.conversation.id,
        "sender": message.sender.id,
        "kinds": list(message.kinds),
        "received_at": message.received_at.ToNanoseconds() / 1e9,
        "updated_at": message.updated_at.ToNanoseconds() / 1e9,
        "attempts": message.attempts,
        "error": message.error,
    }


def _whole(message: inbox_pb2.InboxMessage) -> dict[str, Any]:
    """A message with its words."""
    row = _row(message) | {"text": _texts(message.content)}
    return row | {"answer": _texts(message.answer), "path": message.path} if message.path else row


def _texts(content: Any) -> list[str]:
    return [piece.text.text for piece in content if piece.HasField("text")]


def _state(state: "inbox_pb2.MessageState.ValueType") -> str:
    return inbox_pb2.MessageState.Name(state).removeprefix("MESSAGE_STATE_").lower()
