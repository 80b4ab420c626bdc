"""Databases for the contract tests: a fresh one for each test."""

from pathlib import Path

import pytest


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite://{tmp_path}/state/journal.db"
    url: str = request.getfixturevalue("postgres_url")
    return url
