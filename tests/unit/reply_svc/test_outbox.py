"""The table of deliveries."""

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from reply_svc.outbox import SENDS_OF_A_LANE, delivery_id

if TYPE_CHECKING:
    from conftest import Reply


async def test_what_a_member_was_sent_is_found_by_an_index(reply: "Reply", tmp_path: Path) -> None:
    """It is asked for at a member's first message after a start: never by reading the whole table."""
    await reply.deliver("r1")
    await reply.over("r1")
    with sqlite3.connect(tmp_path / "reply.db") as database:
        plan = database.execute(f"EXPLAIN QUERY PLAN {SENDS_OF_A_LANE}", ("wecom/default/zhangsan", 0.0)).fetchall()
    assert "USING INDEX outbox_sends (lane=? AND updated_at>?)" in plan[0][3]
    assert len(await reply.outbox.sent_since("wecom/default/zhangsan", 0.0)) == 1


def test_names_of_deliveries_are_short_and_plain() -> None:
    """Whatever the caller's name is, ours can stand in an address and a shell."""
    names = {delivery_id(name) for name in ("wecom:default:1", "微信", "x" * 200, "a b")}
    assert len(names) == 4
    assert all(len(name) == 20 and name.isalnum() for name in names)
