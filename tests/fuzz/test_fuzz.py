"""A few seconds of coverage-guided fuzzing in each run of the tests; for more, run harness.py by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

from assistant import plugin

HARNESS = Path(__file__).with_name("harness.py")


@pytest.mark.parametrize("channel", sorted(plugin.channels()))
def test_nothing_but_named_errors_comes_out(channel: str, tmp_path: Path) -> None:
    """20,000 callbacks and payloads, made to reach new code each, are all taken or refused with a named error."""
    pytest.importorskip("atheris", reason="atheris is not made for this Python")
    command = [sys.executable, HARNESS, channel, tmp_path, "-runs=20000", "-max_total_time=10", "-max_len=4096"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
