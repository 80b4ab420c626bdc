"""The whole mesh in one container, as `docker run ai-assistant` starts it."""

import json
import time
from typing import Any


def test_it_answers(box: Any) -> None:
    """Nothing but `docker run` is needed for an answer, over HTTP and HTTPS, and the image says when it is healthy."""
    assert box.ask("ping") == "pong"
    assert box.health("https")[1]["status"] == "ok"
    box.until(lambda: box.state()["Health"]["Status"] == "healthy")


def test_doctor_finds_no_problem(box: Any) -> None:
    """Within the container everything can be looked at."""
    report = json.loads(box.inside("ai-assistant-cli", "doctor", "--json"))
    assert report["counts"]["problem"] == 0
    assert {"url.path"} >= {each["check"] for each in report["findings"] if each["severity"] == "skipped"} - {
        "platform.clock"  # the platform may not have answered yet
    }


def test_process_1_reaps_what_others_leave(box: Any) -> None:
    """A process whose parent has died does not stay as a zombie, and the mesh goes on."""
    box.inside("sh", "-c", "(sleep 0.2 & exec sleep 0) & wait")
    time.sleep(0.5)  # the orphan has ended
    states = box.inside("sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null").splitlines()
    assert not [state for state in states if state.rpartition(")")[2].split()[0] == "Z"]
    assert states[0].startswith("1 (tini)")


def test_stopping_drains_and_starting_goes_on(box: Any) -> None:
    """`docker stop` ends it in good order within its 10 seconds; what was answered is known after `docker start`."""
    box.ask("ping")
    before = json.loads(box.inside("ai-assistant-cli", "inbox", "list", "--json"))
    began = time.monotonic()
    box.docker("stop", "--time", "60")
    print(f"stopped in {time.monotonic() - began:.1f} s")
    assert box.state()["ExitCode"] in (0, 143)
    box.docker("start")
    box.until(lambda: box.health()[0] == 200)
    assert json.loads(box.inside("ai-assistant-cli", "inbox", "list", "--json")) == before
    assert box.ask("ping") == "pong"
