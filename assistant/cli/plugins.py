"""`plugins`: what is installed."""

import click

from assistant import plugin
from assistant.cli.output import json_option, print_json, print_table


@click.group()
def plugins() -> None:
    """Look at the installed channels, engines and skills."""


@plugins.command("list")
@json_option
def list_(as_json: bool) -> None:
    """List all plugins."""
    rows = [
        {
            "kind": kind,
            "name": name,
            "title": manifest.title.get("en", name),
            "title_zh": manifest.title.get("zh-CN", ""),
        }
        for kind in ("channels", "engines", "skills")
        for name, manifest in plugin.installed(kind).items()
    ]
    if as_json:
        print_json(rows)
    else:
        print_table(rows, ("kind", "name", "title", "title_zh"))
