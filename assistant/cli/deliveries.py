"""`deliveries`: the answers that reply_svc was given to deliver."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click
from google.protobuf.json_format import MessageToDict

from assistant import tls
from assistant.api.reply.v1 import reply_pb2
from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceStub
from assistant.cli.addresses import reachable
from assistant.cli.configuration import Configuration
from assistant.cli.output import json_option, print_json, print_table
from assistant.cli.plan import addresses
from assistant.cli.services import service
from assistant.client import connect

if TYPE_CHECKING:
    from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceAsyncStub

_TIMEOUT_S = 5.0
_RECALL_TIMEOUT_S = 10.0
_STATES = [name.removeprefix("DELIVERY_STATE_").lower() for name in reply_pb2.DeliveryState.keys()[1:]]

Answer = TypeVar("Answer")


@click.group()
def deliveries() -> None:
    """Look at answers on their way to the platforms, and try dead ones again."""


@deliveries.command("list")
@click.option("--state", type=click.Choice(_STATES), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@json_option
def list_(state: str | None, limit: int, as_json: bool) -> None:
    """List deliveries, newest first."""
    number = reply_pb2.DeliveryState.Value(f"DELIVERY_STATE_{(state or 'unspecified').upper()}")
    request = reply_pb2.ListDeliveriesRequest(state=number, page_size=limit)
    answer = call(lambda stub: stub.ListDeliveries(request, timeout=_TIMEOUT_S))
    rows = [_row(delivery) for delivery in answer.deliveries]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("delivery_id", "state", "attempts", "account", "recipient", "accepted_at", "last_error"))


@deliveries.command("show")
@click.argument("delivery_id")
def show(delivery_id: str) -> None:
    """Print one delivery with its content, as JSON."""
    request = reply_pb2.GetDeliveryRequest(delivery_id=delivery_id)
    answer = call(lambda stub: stub.GetDelivery(request, timeout=_TIMEOUT_S))
    print_json(MessageToDict(answer.delivery, preserving_proto_field_name=True))


@deliveries.command("retry")
@click.argument("delivery_id")
def retry(delivery_id: str) -> None:
    """Try a dead delivery again."""
    request = reply_pb2.RetryDeliveryRequest(delivery_id=delivery_id)
    answer = call(lambda stub: stub.RetryDelivery(request, timeout=_TIMEOUT_S))
    click.echo(f"{delivery_id} is {_state(answer.state)}.")


@deliveries.command("recall")
@click.argument("delivery_id")
def recall(delivery_id: str) -> None:
    """Take back what was delivered, where the platform can."""
    request = reply_pb2.RecallDeliveryRequest(delivery_id=delivery_id)
    answer = call(lambda stub: stub.RecallDelivery(request, timeout=_RECALL_TIMEOUT_S))
    click.echo(f"{delivery_id} is {_state(answer.state)}.")


def call(ask: Callable[["ReplyServiceAsyncStub"], Awaitable[Answer]]) -> Answer:
    """Ask the running reply_svc. Raises ServiceUnavailable and what it answers."""
    configuration = Configuration.load()
    target = reachable(addresses(service("reply_svc"), configuration).grpc)
    operator = tls.identity(configuration.source, "operator")

    async def asked() -> Answer:
        async with connect(target, multiplex=False, identity=operator, server="reply_svc") as channel:
            return await ask(ReplyServiceStub(channel))

    return asyncio.run(asked())


def _row(delivery: reply_pb2.Delivery) -> dict[str, Any]:
    return {
        "delivery_id": delivery.delivery_id,
        "request_id": delivery.request_id,
        "state": _state(delivery.state),
        "attempts": delivery.attempts,
        "account": f"{delivery.account.channel}/{delivery.account.name}",
        "recipient": delivery.recipient.member.id or delivery.recipient.conversation.id,
        "accepted_at": delivery.accepted_at.ToDatetime().isoformat(timespec="seconds"),
        "last_error": delivery.last_error,
    }


def _state(state: "reply_pb2.DeliveryState.ValueType") -> str:
    return reply_pb2.DeliveryState.Name(state).removeprefix("DELIVERY_STATE_").lower()
