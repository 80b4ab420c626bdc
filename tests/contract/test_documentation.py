"""What the documentation tells people to type exists, and its links lead somewhere."""

import re
import subprocess
import tomllib
from pathlib import Path

import click
import pytest

from assistant.cli import main
from assistant.cli.reference import reference_page

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "deploy/**/*.md",
        "*_svc/*.md",
        "gateway/*.md",
        "plugins/**/*.md",
        "tests/**/*.md",
    )
    for path in ROOT.glob(pattern)
    if "node_modules" not in path.parts
)
CODE = re.compile(r"```.*?```|`[^`\n]+`", re.DOTALL)


def code(page: Path) -> str:
    """What is set as code on a page; continued lines are joined."""
    return "\n".join(CODE.findall(page.read_text("utf-8"))).replace("\\\n", " ")


def command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that these words name, and the words that are left."""
    found: click.Command = main
    with click.Context(main) as context:
        while words and isinstance(found, click.Group):
            inner = found.get_command(context, words[0])
            assert inner is not None, f"ai-assistant-cli has no {words[0]!r}"
            found, words = inner, words[1:]
    return found, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_a_page_exist(page: Path) -> None:
    """Every `make x` and `ai-assistant-cli x --option` is one."""
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z0-9][a-z0-9-]*)", code(page))) <= targets
    for line in re.findall(r"ai-assistant-cli((?: +[^\s`|#;]+)+)", code(page)):
        words = [word for word in line.split() if word not in {"…", "\\"}]
        plain = [word for word in words if re.fullmatch(r"[a-z][a-z.-]*", word)]
        found, _ = command(plain[: next((i for i, word in enumerate(words) if word.startswith("-")), len(plain))])
        known = {option for parameter in found.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_on_a_page_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text("utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.name == "README.zh-CN.md"], ids=str)
def test_both_languages_say_the_same(page: Path) -> None:
    """A page and its translation have the same headings, commands and tables."""
    other = page.with_name("README.md")

    def shape(text: str) -> tuple[list[str], int, list[str]]:
        headings = re.findall(r"^(#+) ", text, re.MULTILINE)
        commands = re.findall(r"^ *(?:\$ |\.venv/bin/|make )[^\n]*", text, re.MULTILINE)
        return headings, len(re.findall(r"^\|", text, re.MULTILINE)), commands

    assert shape(page.read_text("utf-8")) == shape(other.read_text("utf-8"))


def test_the_reference_is_current() -> None:
    """docs/configuration.md says what the code says: run `make docs`."""
    assert (ROOT / "docs" / "configuration.md").read_text("utf-8") == reference_page()


def test_every_dependency_has_its_reason() -> None:
    """docs/dependencies.md names whatever pyproject.toml asks for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[\[<>=;~ ]", wish)[0] for wish in wanted}
    reasons = (ROOT / "docs" / "dependencies.md").read_text("utf-8")
    missing = {name for name in names if name not in reasons and not name.startswith("types-")}
    assert missing - {project["name"]} == set()


def test_help_and_readme_list_every_target() -> None:
    """`make help` and the README explain what can be made."""
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony
    readme = (ROOT / "README.md").read_text("utf-8")
    for target in phony.group(1).split():
        assert f"make {target} " in shown
        assert f"`make {target}`" in readme
