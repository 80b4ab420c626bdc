"""`audit`: who changed what, and whether anybody changed the records of it."""

import contextlib
import os
import pwd
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import click

from assistant import audit as log
from assistant import telemetry
from assistant.audit import Audit, Head, Verified
from assistant.cli import ACTOR_VARIABLE
from assistant.cli.output import json_option, print_json, print_table

_LONGEST_NAME = 100

Command = TypeVar("Command", bound=Callable[..., Any])


def actor() -> str:
    """Who uses the command line: the machine's user, and the name that was given besides."""
    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container
        user = f"uid {os.getuid()}"
    name = os.environ.get(ACTOR_VARIABLE, "")
    return f"{user} as {name[:_LONGEST_NAME]}" if name else user


@contextlib.contextmanager
def recorded(action: str, **facts: Any) -> Iterator[None]:
    """Around a change by the command line, which is recorded first.

    What is called meanwhile has the same request id. Raises StorageUnavailable or AuditBroken: then it is not made.
    """
    if not telemetry.request_id.get():
        telemetry.request_id.set(str(uuid4()))
    with Audit("cli").recording(action, actor(), **facts):
        yield


@click.group()
def audit() -> None:
    """Look at the records of who changed what and what was done for whom, and check that they are whole.

    These commands read the chains of this machine, or of this container: by default those in the folder `audit` of
    AI_ASSISTANT_HOME.
    """


def _files_option(command: Command) -> Command:
    return click.option(
        "--folder",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="Where the chains are, such as a copy of them.",
    )(command)


@audit.command("tail")
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="At most so many.")
@click.option("--action", metavar="PREFIX", default="", help="Only actions that begin so, such as config or skill.")
@_files_option
@json_option
def tail(limit: int, action: str, folder: Path | None, as_json: bool) -> None:
    """Print the last records of all chains, newest last."""
    found = [record for record in log.records(_chains(folder)) if record["action"].startswith(action)]
    found = sorted(found, key=lambda record: str(record["at"]))[-limit:]
    if as_json:
        print_json(found)
    elif found:
        shown = [record | {"facts": " ".join(map(_told, record["facts"].items()))} for record in found]
        print_table(shown, ("at", "chain", "actor", "action", "facts"))
    else:
        click.echo("No records.")


@audit.command("export")
@_files_option
def export(folder: Path | None) -> None:
    """Print all records of all chains, one JSON line each, for keeping elsewhere. `audit verify FILE` checks it."""
    for record in log.records(_chains(folder)):
        click.echo(log.line(record))


@audit.command("verify")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="[EXPORT]...")
@click.option(
    "--head", "heads", multiple=True, metavar="HEAD", help="What an earlier `verify` printed; may be repeated."
)
@click.option(
    "--log",
    "logs",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The log of a service, which tells every new head; may be repeated.",
)
@_files_option
@json_option
def verify(
    files: tuple[Path, ...], heads: tuple[str, ...], logs: tuple[Path, ...], folder: Path | None, as_json: bool
) -> None:
    """Check that no record was changed, removed, put in or moved. Exit code 1 if one was.

    Somebody who may write the folder could write all of it anew: keep the heads that this prints where such a person
    cannot write, and give them to the next check.
    """
    if files and folder:
        raise click.UsageError("give files or --folder, not both")
    known = [Head.parse(head) for head in heads] + [head for file in logs for head in log.told_heads(file)]
    found = log.verify(files or _chains(folder), known)
    if as_json:
        print_json([_shown(chain) for chain in found])
    for chain in () if as_json else found:
        _tell(chain)
    if not found and not as_json:
        click.echo("No records.")
    if any(chain.problems for chain in found):
        sys.exit(1)


def _chains(folder: Path | None) -> Sequence[Path]:
    where = folder or log.folder()
    return log.chains(where) if where.exists() else []


def _told(fact: tuple[str, Any]) -> str:
    name, value = fact
    return f"{name}={','.join(map(str, value)) if isinstance(value, list) else value}"


def _shown(chain: Verified) -> dict[str, Any]:
    return {
        "chain": chain.head.chain,
        "records": chain.head.sequence,
        "head": str(chain.head),
        "problems": chain.problems,
        "notes": chain.notes,
    }


def _tell(chain: Verified) -> None:
    for note in chain.notes:
        click.echo(f"{chain.head.chain}: {note}")
    for problem in chain.problems:
        click.echo(f"{chain.head.chain}: {problem}. Whole up to {chain.head}", err=True)
    if not chain.problems:
        whole = "1 record is whole" if chain.head.sequence == 1 else f"{chain.head.sequence} records are whole"
        click.echo(f"{chain.head.chain}: {whole}. Head: {chain.head}")
