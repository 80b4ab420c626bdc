"""Fuzzes what strangers reach: `python harness.py CHANNEL CORPUS [options of libFuzzer]`.

Whatever a callback or a payload is, it is taken or refused with a named error; anything else ends the run.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["assistant.xml", "plugins"]):
    from assistant import plugin

    CHANNEL = sys.argv.pop(1)
    CRYPTO = plugin.load("channels", CHANNEL, "crypto")
    CODEC = plugin.load("channels", CHANNEL, "codec")
    SIMULATOR = plugin.load("channels", CHANNEL, "simulator")

from assistant.api.message.v1.message_pb2 import Account, Content, Text
from assistant.errors import AssistantError
from assistant.plugin import Callback
from assistant.settings import Source

NOW = 1_700_000_000.0
MANIFEST = plugin.channels()[CHANNEL]
VECTORS = Path(str(sys.modules[CRYPTO.__module__].__file__)).parent / "vectors"
CASES = [case for file in VECTORS.glob("*.json") for case in json.loads(file.read_text("utf-8"))]
SETTINGS = max((case["account"] for case in CASES if "inbound" in case), key=[case["account"] for case in CASES].count)
SOURCE = Source({"channels": {CHANNEL: SETTINGS}}, {}, "the harness")


def settings(part: Any) -> Any:
    return SOURCE.accounts(part, CHANNEL, MANIFEST.settings())["default"]


crypto = CRYPTO(settings(MANIFEST.crypto))
codec = CODEC(Account(channel=CHANNEL, name="default"), settings(MANIFEST.codec))
keys = {"configured": crypto.key(crypto.configured_material())}
genuine, _ = SIMULATOR(SETTINGS).callback("hello", "zhangsan")


def body(data: bytes) -> None:
    crypto.open(Callback("POST", genuine.query, {}, data), keys, NOW, 300)


def query(data: bytes) -> None:
    crypto.open(Callback("GET", data.decode("latin-1"), {}, b""), keys, NOW, 300)


def payload(data: bytes) -> None:
    message = codec.parse(data)
    codec.format(message, [Content(text=Text(text=message.content[0].text.text))])
    message.SerializeToString()


TARGETS = (body, query, payload)


def one(data: bytes) -> None:
    """The first byte says where the rest goes."""
    if data:
        with contextlib.suppress(AssistantError):
            TARGETS[data[0] % len(TARGETS)](data[1:])


def seed(corpus: Path) -> None:
    """Begin with what is genuine, and with all that the vectors know of this account."""
    payloads = [case["opened"].encode() for case in CASES if "opened" in case and case["account"] == SETTINGS]
    seeds = [b"\0" + genuine.body, b"\1" + genuine.query.encode(), *(b"\2" + data for data in payloads)]
    for number, data in enumerate(seeds):
        (corpus / f"seed-{number}").write_bytes(data)


if __name__ == "__main__":
    seed(Path(sys.argv[1]))
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
