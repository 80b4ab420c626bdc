"""docs/configuration.md, made from the declarations of all settings."""

from collections.abc import Iterable

from assistant import plugin
from assistant.cli.configuration import Field, account_fields, default, sections
from assistant.settings import PREFIX, fields, home, meaning

_HEAD = """# Configuration

<!-- Made by `make docs`; do not edit. -->

One TOML file, `config.toml` in `AI_ASSISTANT_HOME`, readable to its owner alone. Variables of the environment win over
it, and a variable whose name ends with `_FILE` names a file that holds the value (a mounted secret). Each service is
given only its own part.

| Variable | Meaning |
| --- | --- |
| `AI_ASSISTANT_HOME` | folder of configuration, state and logs; by default `.ai-assistant` in the checkout |
| `AI_ASSISTANT_CONFIG` | another file instead of `config.toml` |
| `AI_ASSISTANT_PORT_OFFSET` | a number added to all default ports, so that meshes run side by side |
"""


def reference_page() -> str:
    """The whole page, as Markdown."""
    pages = [_HEAD]
    for section, settings in sections().items():
        prefix = f"{PREFIX}{section.upper().replace('.', '_')}_"
        pages.append(_section(f"[{section}]", prefix, fields(settings).values()))
    for name, manifest in plugin.channels().items():
        title = f"[channels.{name}]: {manifest.title['en']} ({manifest.title['zh-CN']})"
        pages.append(_section(title, f"{name.upper()}_", account_fields(manifest).values()))
        pages.append(
            f"Further accounts stand in `[channels.{name}.accounts.<account>]`; variables speak of the first.\n"
        )
    return "\n".join(pages)


def _section(title: str, prefix: str, settings: Iterable[Field]) -> str:
    rows = [
        f"| `{name}` | `{prefix}{name.upper()}` | {_default(field)} | {_cell(meaning(field))} |"
        for name, field in ((field.encode_name, field) for field in settings)
    ]
    return (
        "\n".join([f"## {title}\n", "| Key | Variable | Default | Meaning |", "| --- | --- | --- | --- |", *rows])
        + "\n"
    )


def _default(field: Field) -> str:
    if field.required:
        return "must be set"
    value = default(field)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "none" if value in (None, "") else f"`{str(value).replace(str(home()), '<home>')}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
