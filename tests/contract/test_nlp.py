"""One suite for every NLP service: ours, and one that owes it nothing."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from assistant import ports
from assistant.api.nlp.v1.nlp_pb2 import DescribeModelRequest
from assistant.api.nlp.v1.nlp_pb2_grpc import NlpServiceStub
from assistant.client import connect
from assistant.conformance import Outcome, Result
from assistant.conformance.nlp import run

ROOT = Path(__file__).parents[2]

FAULTS = {
    "NotReady": "describes itself",
    "Silent": "answers english",
    "Nameless": "names what answered",
    "TooSure": "answers chinese",
    "WordsOnly": "takes any kind of content",
    "ShortOfMemory": "answers after a long history",
    "Presumptuous": "proposes no skill that is not offered",
    "Careless": "proposes skills with fitting arguments",
    "Endless": "ends its rounds",
    "NoSummary": "ends a stream with one summary",
    "OtherSummary": "streams what the summary says",
    "Lenient": "refuses a request without a message",
    "Crashing": "refuses a stream without a message",
    "Terse": "says why it refuses",
    "Strict": "bears the state of another engine",
    "Forgetful": "answers a repeated turn",
}
"""Variant of the foreign service -> the check that is about its fault."""


@contextmanager
def process(*arguments: str, **environment: str) -> Iterator["subprocess.Popen[str]"]:
    """A Python process of this checkout, ended at the end."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.terminate()
            running.communicate()


@pytest.fixture(scope="module")
def foreign() -> Iterator[dict[str, str]]:
    """Address of each variant of tests/foreign_nlp."""
    variants = ["Honest", *FAULTS]
    with process("tests/foreign_nlp", *variants) as running:
        assert running.stdout is not None
        lines = [running.stdout.readline().split() for _ in variants]
        yield {name: f"127.0.0.1:{port}" for name, port in lines}


@pytest.fixture
def ours(tmp_path: Path, reserve_ports: Callable[[], AbstractContextManager[int]]) -> Iterator[str]:
    """Address of nlp_svc as it is delivered."""
    home = {"AI_ASSISTANT_HOME": str(tmp_path), "AI_ASSISTANT_CONFIG": str(tmp_path / "config.toml")}
    with reserve_ports() as offset, process("-m", "nlp_svc", AI_ASSISTANT_PORT_OFFSET=str(offset), **home):
        yield f"127.0.0.1:{ports.NLP + offset}"


def named(results: list[Result], outcome: Outcome) -> dict[str, str]:
    return {result.name: result.detail for result in results if result.outcome is outcome}


async def test_our_service_keeps_the_contract(ours: str) -> None:
    """nlp_svc with the embedded engine passes every check, and only streams nothing before the whole answer."""
    channel = connect(ours)
    assert (await NlpServiceStub(channel).DescribeModel(DescribeModelRequest(), timeout=20)).ready
    await channel.close()
    results = await run(ours)
    assert named(results, Outcome.FAILED) == {}
    assert set(named(results, Outcome.SKIPPED)) == {"streams what the summary says"}


async def test_a_foreign_service_keeps_the_contract(foreign: dict[str, str]) -> None:
    """The proto files are enough to write a service that passes; reflection alone is optional."""
    results = await run(foreign["Honest"])
    assert named(results, Outcome.FAILED) == {}
    assert set(named(results, Outcome.SKIPPED)) == {"offers reflection"}


@pytest.mark.parametrize("variant", FAULTS)
async def test_a_fault_is_found(foreign: dict[str, str], variant: str) -> None:
    """Each way to break the contract fails the check that is about it, which says what was expected and what came."""
    failed = named(await run(foreign[variant]), Outcome.FAILED)
    assert FAULTS[variant] in failed
    assert "expected" in failed[FAULTS[variant]]
    assert "came" in failed[FAULTS[variant]]


async def test_a_service_that_is_not_there_fails_every_check(tmp_path: Path) -> None:
    """A wrong address is no crash of the suite: each check says that nobody answered."""
    results = await run(f"unix:{tmp_path}/nobody", timeout_s=2)
    assert {result.outcome for result in results} == {Outcome.FAILED}
    assert all("UNAVAILABLE" in result.detail for result in results)


async def test_every_check_says_why_it_matters(foreign: dict[str, str]) -> None:
    """A result is for people: it has a name and a reason of one sentence."""
    for result in await run(foreign["Honest"]):
        assert result.name
        assert result.why.endswith(".")
