"""What a user types first, in real containers. It takes about a minute, so `make test` runs it wherever it can."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from assistant import tls
from tests.docker.conftest import grpcurl

MESH = {
    "crypto.mesh": "assistant.api.crypto.v1.CryptoService",
    "nlp.mesh": "assistant.api.nlp.v1.NlpService",
    "reply.mesh": "assistant.api.reply.v1.ReplyService",
    "gateway.mesh": "assistant.api.inbox.v1.InboxService",
}


@pytest.fixture(scope="module")
def stack(make_stack: Callable[..., AbstractContextManager[Any]]) -> Iterator[Any]:
    with make_stack("docker-compose.yml") as stack:
        stack.up()
        yield stack


def test_a_clone_answers_without_any_configuration(stack: Any) -> None:
    """Without credentials a member of the simulated company is answered, and /health is well on both ports."""
    assert stack.ask("ping") == "pong"
    for scheme in ("http", "https"):
        assert stack.health(scheme)[0] == 200
    assert stack.health()[1]["wecom"] == "connected"
    assert json.loads(stack.cli("inbox", "list", "--json"))


@pytest.mark.parametrize("authority", MESH)
def test_an_operator_reaches_every_service(stack: Any, authority: str, tmp_path: Path) -> None:
    """With the certificate that is copied out, and without it nobody."""
    operator = stack.certificates("operator", tmp_path)
    mesh = {"authorities": operator / tls.AUTHORITIES, "address": f"localhost:{stack.mesh}", "authority": authority}
    stack.until(lambda: "SERVING" in grpcurl("grpc.health.v1.Health/Check", identity=operator, **mesh).stdout)
    assert MESH[authority] in grpcurl("list", identity=operator, **mesh).stdout.split()
    assert grpcurl("list", identity=None, **mesh).returncode != 0
