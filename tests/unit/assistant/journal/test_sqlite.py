"""What is particular to a journal in a file."""

import asyncio
import json
import stat
import sys
from pathlib import Path

import pytest

from assistant.errors import InvalidSetting
from assistant.journal import Journal, Rows

_HOLD = """
import asyncio, sys
from assistant.journal import Journal

async def main():
    journal = await Journal.open(sys.argv[1], [])
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await journal.close()

asyncio.run(main())
"""

_FILL_THE_DISK = """
import asyncio, json, resource, sys
from pathlib import Path
from assistant.errors import StorageUnavailable
from assistant.journal import Journal, Rows

def room(size_bytes):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))

async def main():
    path = Path(sys.argv[1])
    journal = await Journal.open(f"sqlite://{path}", Rows.migrations("work"))
    rows = Rows(journal, "work", "one:1")
    await rows.open()
    room(400_000)
    acknowledged, refused = [], 0
    while refused < 5:
        key = str(len(acknowledged))
        try:
            await rows.admit(key, "lane", b"x" * 1000)
            acknowledged.append(key)
        except StorageUnavailable as error:
            refused += 1
            await asyncio.sleep(error.retry_after_s)
    room(0)
    rows.post_move("0", 2, result=b"x" * 20_000)
    try:
        await journal.flush()
        refused = "posts were stored on a full disk"
    except StorageUnavailable:
        pass
    room(resource.RLIM_INFINITY)
    while True:
        try:
            await rows.admit("afterwards", "lane", b"x" * 1000)
            break
        except StorageUnavailable as error:
            await asyncio.sleep(error.retry_after_s)
    await journal.flush()
    there = await rows.list(None, None, 10_000)
    first = await rows.get("0")
    print(json.dumps({
        "refused": refused,
        "acknowledged": len(acknowledged),
        "lost": sorted(set(acknowledged) - {row.key for row in there}),
        "afterwards": any(row.key == "afterwards" for row in there),
        "moved": first.state == 2,
    }))
    await rows.close()
    await journal.close()

asyncio.run(main())
"""


async def test_only_the_owner_can_read_what_is_kept(tmp_path: Path) -> None:
    """The folder and the files of a journal are closed to other users."""
    journal = await Journal.open(f"sqlite://{tmp_path}/state/journal.db", Rows.migrations("work"))
    await Rows(journal, "work", "one:1").open()
    folder = tmp_path / "state"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}
    assert {"journal.db", "journal.db-wal", "journal.db-shm", "journal.db.lock"} == set(modes)
    assert set(modes.values()) == {0o600}
    await journal.close()


async def test_a_file_serves_one_process(tmp_path: Path) -> None:
    """A second process is told which file is taken and what to do; when the first is gone, it may have it."""
    url = f"sqlite://{tmp_path}/journal.db"
    pipe = asyncio.subprocess.PIPE
    first = await asyncio.create_subprocess_exec(sys.executable, "-c", _HOLD, url, stdin=pipe, stdout=pipe)
    assert first.stdin is not None
    assert first.stdout is not None
    assert await first.stdout.readline() == b"open\n"
    with pytest.raises(InvalidSetting, match=r"journal\.db is in use by another process.*postgresql://"):
        await Journal.open(url, [])
    first.stdin.close()
    assert await first.wait() == 0
    await (await Journal.open(url, [])).close()


async def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A path below something that is no folder stops the start and names the file."""
    (tmp_path / "file").touch()
    with pytest.raises(InvalidSetting, match=r"file/journal\.db cannot be written"):
        await Journal.open(f"sqlite://{tmp_path}/file/journal.db", [])


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """A file of another kind is not overwritten."""
    (tmp_path / "journal.db").write_bytes(b"something else " * 100)
    with pytest.raises(InvalidSetting, match=r"journal\.db"):
        await Journal.open(f"sqlite://{tmp_path}/journal.db", [])
    assert (tmp_path / "journal.db").read_bytes().startswith(b"something else")


async def test_a_full_disk_refuses_and_recovers(tmp_path: Path) -> None:
    """With no room left every write is refused, nothing acknowledged is lost, and all goes on when there is room."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _FILL_THE_DISK, str(tmp_path / "journal.db"), stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    report = json.loads(output)
    assert report.pop("acknowledged") > 10
    assert report == {"refused": 5, "lost": [], "afterwards": True, "moved": True}


@pytest.mark.parametrize("slashes", ["", "/", "//"])
async def test_a_path_is_named_with_one_slash_however_many_its_url_has(tmp_path: Path, slashes: str) -> None:
    (tmp_path / "inbox.db").write_bytes(b"no database" * 100)
    with pytest.raises(InvalidSetting) as refused:
        await Journal.open(f"sqlite://{slashes}{tmp_path}/inbox.db", [])
    assert f"database {tmp_path}/inbox.db is not an SQLite file" in str(refused.value)
