"""The peer that everybody writes first: one Flask application with wechatpy, under gunicorn, answering in-process.

With DATABASE set it also does what makes the answer safe: a durable insert, unique on the message's id.
"""

import os
import sqlite3
import threading
from typing import Any

from flask import Flask, request
from wechatpy.enterprise import create_reply, parse_message
from wechatpy.enterprise.crypto import WeChatCrypto

app = Flask(__name__)
crypto = WeChatCrypto(os.environ["TOKEN"], os.environ["AESKEY"], os.environ["CORPID"])
_local = threading.local()


@app.post("/wecom")
def callback() -> Any:
    """Open, understand, answer, seal."""
    query = request.args
    opened = crypto.decrypt_message(request.get_data(), query["msg_signature"], query["timestamp"], query["nonce"])
    message = parse_message(opened)
    if "DATABASE" in os.environ and not _is_new(str(message.id), opened):
        return ""
    answer = "pong" if message.content == "ping" else message.content
    sealed = crypto.encrypt_message(create_reply(answer, message).render(), query["nonce"], query["timestamp"])
    return sealed, {"content-type": "application/xml"}


@app.get("/healthz")
def healthz() -> str:
    """What Envoy asks."""
    return "ok"


def _is_new(message_id: str, body: str) -> bool:
    with _connection() as connection:
        inserted = connection.execute("INSERT OR IGNORE INTO inbox (id, body) VALUES (?, ?)", (message_id, body))
    return inserted.rowcount == 1


def _connection() -> sqlite3.Connection:
    """Of this thread."""
    if not hasattr(_local, "connection"):
        _local.connection = sqlite3.connect(os.environ["DATABASE"], timeout=30)
        for statement in (
            "PRAGMA journal_mode=WAL",
            "PRAGMA synchronous=FULL",
            "CREATE TABLE IF NOT EXISTS inbox (id TEXT PRIMARY KEY, body TEXT NOT NULL)",
        ):
            _local.connection.execute(statement)
    connection: sqlite3.Connection = _local.connection
    return connection
