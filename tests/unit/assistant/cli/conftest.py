"""The command line as a real process, with a home folder of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run `ai-assistant-cli` with these arguments; `environment` holds further variables, `typed` its input."""

    def run(
        *arguments: str, environment: dict[str, str] | None = None, typed: str = ""
    ) -> "subprocess.CompletedProcess[str]":
        variables = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "AI_ASSISTANT_HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-m", "assistant.cli", *arguments],
            env=variables | (environment or {}),
            input=typed,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run
