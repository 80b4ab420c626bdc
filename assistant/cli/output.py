"""What the commands print: for people by default, as JSON on demand."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """The option `--json`, given to the command as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(command)


def print_json(value: Any) -> None:
    """One value, readable and in UTF-8."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    """Rows under headings, the last column as long as it is."""
    cells = [list(columns)] + [
        ["" if row.get(name) is None else str(row.get(name)) for name in columns] for row in rows
    ]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns) - 1)]
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*padded, row[-1]]).rstrip())


def ourselves() -> str:
    """How to call us again, as the user did."""
    called = Path(sys.argv[0])
    by_name = called.name != "ai-assistant-cli" or shutil.which(called.name) == str(called)
    return "ai-assistant-cli" if by_name else str(called)
