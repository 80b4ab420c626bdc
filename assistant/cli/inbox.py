"""`inbox`: the messages that the gateway has taken, asked of its address for operators."""

import http.client
import json
from typing import Any
from urllib.parse import quote, urlencode

import click

from assistant.cli.addresses import reachable
from assistant.cli.configuration import Configuration
from assistant.cli.output import json_option, ourselves, print_json, print_table
from assistant.cli.plan import addresses
from assistant.cli.services import service
from assistant.errors import InvalidRequest, ServiceUnavailable, UnknownMessage

_TIMEOUT_S = 5.0


@click.group()
def inbox() -> None:
    """Look at messages that members have sent, and try those again whose answer failed."""


@inbox.command("list")
@click.option("--state", help="Only those in this state, such as dead.")
@click.option("--limit", type=click.IntRange(1, 1000), default=50, show_default=True, help="At most so many.")
@json_option
def list_(state: str | None, limit: int, as_json: bool) -> None:
    """List messages, newest first."""
    query = urlencode({"limit": limit} | ({"state": state} if state else {}))
    rows = _ask("GET", f"/inbox?{query}")["messages"]
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
    print_json(message(key))


@inbox.command("retry")
@click.argument("key")
def retry(key: str) -> None:
    """Try again to answer a message that was given up."""
    print_json(_ask("POST", f"/inbox/{quote(key, safe='')}/retry"))


def message(key: str) -> dict[str, Any]:
    """One message as the gateway describes it. Raises UnknownMessage or ServiceUnavailable."""
    found: dict[str, Any] = _ask("GET", f"/inbox/{quote(key, safe='')}")
    return found


def _ask(method: str, path: str) -> Any:
    _, admin = addresses(service("gateway"), Configuration.load())
    connection = http.client.HTTPConnection(reachable(admin), timeout=_TIMEOUT_S)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        status, body = answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ServiceUnavailable(f"the gateway does not answer at {admin}. Is it up? {ourselves()} up") from error
    finally:
        connection.close()
    if status == http.client.OK:
        return body
    message = body.get("message", "") if isinstance(body, dict) else ""
    raise UnknownMessage(message) if status == http.client.NOT_FOUND else InvalidRequest(message or f"status {status}")
