"""Pages that people rely on in trouble say what is so, and say it in both languages."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CITED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def shape(page: Path) -> tuple[list[str], int]:
    """Levels of headings, and how many rows tables have."""
    text = page.read_text("utf-8")
    return re.findall(r"^(#+) ", text, re.MULTILINE), len(re.findall(r"^\|", text, re.MULTILINE))


def test_every_cited_test_exists() -> None:
    """What SECURITY.md claims to be kept by a test is: readers can look it up."""
    cited = CITED.findall((ROOT / "SECURITY.md").read_text("utf-8"))
    assert len(set(cited)) > 40
    for file, name in cited:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in names, f"{file}::{name}"


@pytest.mark.parametrize("name", ["docs/operations.md", "docs/operations.zh-CN.md"])
def test_every_alert_has_its_entry(name: str) -> None:
    """Whoever is paged finds the alert by its name, with what to look at first and what mends it."""
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text("utf-8")
    alerts = dict(re.findall(r"- alert: (\w+)\n.*?severity: (\w+)", rules, re.DOTALL))
    entries = dict(
        re.findall(r"^### ([A-Z]\w+)\n\n(.*?)(?=^##)", (ROOT / name).read_text("utf-8"), re.DOTALL | re.MULTILINE)
    )
    assert [alert for alert in alerts if alert not in entries] == []
    for alert, severity in alerts.items():
        assert entries[alert].lower().startswith(f"*{severity}"), alert
        assert entries[alert].count("\n- **") == 2, alert


@pytest.mark.parametrize("name", ["docs/operations.md", "docs/operations.zh-CN.md"])
def test_links_within_the_guide_lead_somewhere(name: str) -> None:
    """Every `#anchor` is a heading, as GitHub names it."""
    text = (ROOT / name).read_text("utf-8")
    headings = {
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert {anchor for anchor in re.findall(r"\]\(#([^)]+)\)", text) if anchor not in headings} == set()


@pytest.mark.parametrize("name", ["SECURITY", "docs/operations", "docs/observability"])
def test_both_languages_have_the_same_parts(name: str) -> None:
    """The same headings, tables of the same length, and in SECURITY the same tests."""
    page, translation = ROOT / f"{name}.md", ROOT / f"{name}.zh-CN.md"
    assert shape(page) == shape(translation)
    assert CITED.findall(page.read_text("utf-8")) == CITED.findall(translation.read_text("utf-8"))
