"""One message is one trace: a tree of spans through Envoy and all services, as a collector is told of it."""

import contextlib
import json
import os
import signal
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CRYPTO = "assistant.api.crypto.v1.CryptoService"
NLP = "assistant.api.nlp.v1.NlpService"
SKILLS = "assistant.api.skill.v1.SkillService"
REPLY = "assistant.api.reply.v1.ReplyService"
QUESTION = "现在几点"


@pytest.fixture(scope="module")
def traced(make_mesh: Any, collector: Any) -> Iterator[Any]:
    """A mesh that tells the collector of its spans, at once."""
    with make_mesh(
        OTEL_EXPORTER_OTLP_ENDPOINT=collector.endpoint,
        OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20let-me-in",
        OTEL_BSP_SCHEDULE_DELAY="100",
        AI_ASSISTANT_GATEWAY_ENGINE_TIMEOUT_S="12",
    ) as mesh:
        mesh.cli("up")
        yield mesh


def say(mesh: Any, text: str, wait: int = 0) -> dict[str, Any]:
    """Write as an employee of the simulated company."""
    url = f"{mesh.simulator}/simulator/members/zhangsan/messages?wait={wait}"
    request = urllib.request.Request(url, json.dumps({"text": text}).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return dict(json.load(answer))


@contextlib.contextmanager
def stopped(mesh: Any, name: str) -> Iterator[None]:
    """A process that is there and does nothing."""
    process = mesh.pid(name)
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


def tree(spans: list[Any], root: Any) -> dict[str, Any]:
    """What a span led to: "service name" -> the same of its children, which are of its trace."""
    children = [span for span in spans if span.parent_id == root.span_id]
    assert {span.trace_id for span in children} <= {root.trace_id}
    return {f"{child.service} {child.name}": tree(spans, child) for child in children}


def whole(spans: list[Any], turn: Any) -> tuple[Any, dict[str, Any]] | None:
    """The tree that the trace of a turn is, once its root has arrived."""
    roots = [span for span in spans if span.trace_id == turn.trace_id and not span.parent_id]
    return (roots[0], tree(spans, roots[0])) if roots else None


def turn_of(collector: Any, message: dict[str, Any]) -> Any:
    """The span of a message's turn."""
    wanted = f"wecom:default:{message['message_id']}"
    return collector.until(
        lambda spans: next((span for span in spans if span.attributes.get("assistant.message_id") == wanted), None)
    )


def call(service: str, path: str) -> dict[str, Any]:
    """A call of the gateway as a part of a tree."""
    return {f"gateway {path}": {f"{service} {path}": {}}}


def test_a_passive_answer_is_one_trace(traced: Any, collector: Any) -> None:
    """From Envoy on, every service's part of a message is in one tree."""
    turn = turn_of(collector, say(traced, QUESTION, wait=1))
    turns = {
        **call("nlp_svc", f"{SKILLS}/ListSkills"),
        **call("nlp_svc", f"{NLP}/GenerateReply"),
        **call("nlp_svc", f"{SKILLS}/InvokeSkill"),
        **call("crypto_svc", f"{CRYPTO}/SealReply"),
    }
    expected = {
        "gateway POST /wecom": {
            **call("crypto_svc", f"{CRYPTO}/OpenCallback"),
            "gateway turn": turns,
        }
    }
    assert collector.until(lambda spans: (found := whole(spans, turn)) and found[1] == expected and found)
    root, _ = whole(collector.spans, turn) or pytest.fail("no root")
    assert (root.service, root.name, root.kind) == ("envoy", "POST /wecom", "server")
    assert turn.attributes["assistant.path"] == "passive"
    mine = [span for span in collector.spans if span.trace_id == turn.trace_id]
    assert {span.error for span in mine} == {""}
    asked = [span for span in mine if span.name == f"{NLP}/GenerateReply"]
    assert [span.kind for span in asked].count("client") == 2  # before and after the skill
    assert all(span.attributes["rpc.response.status_code"] == "OK" for span in asked)
    lines = [json.loads(line) for line in (traced.home / "logs" / "nlp_svc.log").read_text("utf-8").splitlines()]
    assert turn.trace_id in {line.get("trace_id") for line in lines if line["event"] == "reply_generated"}


def test_an_active_answer_is_one_trace(traced: Any, collector: Any) -> None:
    """What happens after the callback was acknowledged belongs to it all the same, the platform's API included."""
    with stopped(traced, "nlp_svc"):
        known = len(collector.spans)
        message = say(traced, "ping")
        collector.until(lambda spans: any(span.name == "POST /wecom" for span in spans[known:]))  # acknowledged
    turn = turn_of(collector, message)
    delivery = {"reply_svc send wecom": {}}
    turns = {
        **call("nlp_svc", f"{NLP}/GenerateReply"),
        f"gateway {REPLY}/DeliverReply": {f"reply_svc {REPLY}/DeliverReply": delivery},
    }
    wanted = {"gateway POST /wecom": {**call("crypto_svc", f"{CRYPTO}/OpenCallback"), "gateway turn": turns}}

    def is_whole(spans: list[Any]) -> bool:
        found = whole(spans, turn)
        if found is None or "gateway POST /wecom" not in found[1]:
            return False
        # Whether skills are listed again depends on how long ago they were.
        found[1]["gateway POST /wecom"].get("gateway turn", {}).pop(f"gateway {SKILLS}/ListSkills", None)
        return found[1] == wanted

    collector.until(is_whole)
    assert turn.attributes["assistant.path"] == "active"


def test_failures_are_marked(traced: Any, collector: Any) -> None:
    """A turn that failed says why, as do the calls that made it fail; a refused callback does too."""
    with stopped(traced, "nlp_svc"):
        turn = turn_of(collector, say(traced, "ping"))
    assert (turn.error, turn.attributes["error.type"]) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    asked = collector.until(
        lambda spans: [span for span in spans if span.parent_id == turn.span_id and span.name == f"{NLP}/GenerateReply"]
    )
    assert [span.error for span in asked] == ["DEADLINE_EXCEEDED"]
    assert asked[0].attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"

    forged = f"{traced.edge}/wecom?msg_signature=0&timestamp={int(time.time())}&nonce=1"
    with pytest.raises(urllib.error.HTTPError):
        urllib.request.urlopen(forged, b"<xml><ToUserName>x</ToUserName><Encrypt>eA==</Encrypt></xml>")
    refused = collector.until(lambda spans: [span for span in spans if span.error == "SIGNATURE_MISMATCH"])
    assert [(span.service, span.kind) for span in refused] == [("gateway", "client")]  # the stranger's fault


def test_no_span_holds_a_secret_or_what_members_write(traced: Any, collector: Any) -> None:
    """Neither credentials, nor signatures, nor words of messages; what the collector asks for, it gets."""
    turn_of(collector, say(traced, QUESTION, wait=1))
    collector.until(lambda spans: {"envoy", "crypto_svc", "nlp_svc"} <= {span.service for span in spans})
    account = tomllib.loads(Path(traced.home / "simulator.toml").read_text())["wecom"]
    with urllib.request.urlopen(f"{traced.simulator}/simulator/members/zhangsan/messages") as answer:
        words = {message["text"] for message in json.load(answer)}
    hidden = {account[name] for name in ("token", "aeskey", "secret")} | words | {"signature", "access_token", "nonce"}
    told = [(span.name, span.error, str(span.attributes)) for span in collector.spans]
    assert {text for text in hidden for part in told if any(text in field for field in part)} == set()
    assert {headers.get("authorization") for headers in collector.headers} == {"Bearer let-me-in"}


def test_what_is_asked_all_the_time_leaves_no_span(traced: Any, collector: Any) -> None:
    """Neither health checks nor operators begin a trace."""
    traced.until(traced.is_healthy)
    traced.cli("deliveries", "list")
    turn_of(collector, say(traced, QUESTION, wait=1))  # after this, what was to be exported has been
    collector.until(lambda spans: [span for span in spans if span.service == "envoy"])
    assert {span.name for span in collector.spans if not span.parent_id} == {"POST /wecom"}
