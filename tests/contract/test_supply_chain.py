"""What we are built from is what we looked at: every package by its version and its hash."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.lock"))
RECIPES = ["Makefile", "deploy/Dockerfile"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_package_is_pinned_with_a_hash(lock: Path) -> None:
    """One version of each, and what its files must be."""
    entries = re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n", "", lock.read_text("utf-8"), flags=re.MULTILINE).strip())
    loose = [entry.splitlines()[0] for entry in entries if not re.match(r"[\w.\[\],-]+==\S+[^\n]* \\\n", entry + "\n")]
    assert loose == []
    assert [entry.splitlines()[0] for entry in entries if "--hash=sha256:" not in entry] == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_nothing_is_installed_without_its_hash(recipe: str) -> None:
    """Packages come from a lock with hashes; only our own code, and the tool that makes locks, do not."""
    text = (ROOT / recipe).read_text("utf-8").replace("\\\n", " ")
    installs = re.findall(r"pip install ([^\n;&]*)", text)
    assert installs
    for arguments in installs:
        ours = "--no-deps" in arguments and "--editable ." in arguments.replace("-e .", "--editable .")
        tool = recipe == "Makefile" and arguments.split() == ["--quiet", "uv"]
        assert ours or tool or ("--require-hashes" in arguments and ".lock" in arguments), arguments
