"""The audit log: nothing is lost, and whatever is changed afterwards is noticed."""

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from assistant import audit
from assistant.audit import Audit, Head
from assistant.errors import AuditBroken, InvalidRequest, KeyExists, StorageUnavailable


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def chain(folder: Path) -> Path:
    """The file of a chain with five records."""
    for number in range(5):
        Audit("cli", folder).append("config.set", "wang", section="nlp", number=number)
    return folder / "cli.jsonl"


def problems(folder: Path, *heads: Head) -> list[str]:
    return [problem for chain in audit.verify(audit.chains(folder), heads) for problem in chain.problems]


def head(folder: Path) -> Head:
    (verified,) = audit.verify(audit.chains(folder))
    return verified.head


def failures() -> float:
    return REGISTRY.get_sample_value("assistant_audit_failures_total") or 0.0


def test_a_record_says_who_did_what(chain: Path) -> None:
    """Records are lines of JSON that follow each other, readable to nobody else."""
    records = [json.loads(line) for line in chain.read_text().splitlines()]
    assert [record["sequence"] for record in records] == [1, 2, 3, 4, 5]
    assert [record["previous"] for record in records[1:]] == [record["hash"] for record in records[:-1]]
    assert (records[3]["actor"], records[3]["action"]) == ("wang", "config.set")
    assert records[3]["facts"] == {"section": "nlp", "number": 3}
    assert stat.S_IMODE(chain.stat().st_mode) == 0o600
    assert stat.S_IMODE(chain.parent.stat().st_mode) == 0o700
    assert problems(chain.parent) == []
    assert head(chain.parent).sequence == 5


def changed(lines: list[str]) -> list[str]:
    return [lines[0], lines[1].replace('"wang"', '"zhao"'), *lines[2:]]


def changed_with_its_hash(lines: list[str]) -> list[str]:
    record = json.loads(changed(lines)[1])
    del record["hash"]
    record["hash"] = audit.digest(record)
    return [lines[0], audit.line(record), *lines[2:]]


def deleted(lines: list[str]) -> list[str]:
    return [*lines[:2], *lines[3:]]


def deleted_at_the_beginning(lines: list[str]) -> list[str]:
    return lines[1:]


def inserted(lines: list[str]) -> list[str]:
    return [*lines[:2], lines[1], *lines[2:]]


def reordered(lines: list[str]) -> list[str]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


def cut_off(lines: list[str]) -> list[str]:
    return lines[:4]


def emptied(lines: list[str]) -> list[str]:
    return []


def spaced(lines: list[str]) -> list[str]:
    return [lines[0], lines[1].replace(":", ": ", 1), *lines[2:]]


def spoilt(lines: list[str]) -> list[str]:
    return [*lines[:4], "\ufeff"]


TAMPERINGS = {
    changed: "was changed",
    changed_with_its_hash: "does not follow the record before it",
    deleted: "removed, put in or moved",
    deleted_at_the_beginning: "removed, put in or moved",
    inserted: "removed, put in or moved",
    reordered: "removed, put in or moved",
    cut_off: "removed at the end",
    emptied: "removed at the end",
    spaced: "was changed",
    spoilt: "is no record",
}


@pytest.mark.parametrize("tamper", TAMPERINGS, ids=lambda tamper: tamper.__name__)
def test_tampering_is_noticed(chain: Path, tamper: Callable[[list[str]], list[str]]) -> None:
    """Whatever is done to the lines of a chain, verifying says so, and what it was."""
    chain.write_text("".join(f"{line}\n" for line in tamper(chain.read_text().splitlines())))
    (problem,) = problems(chain.parent)
    assert TAMPERINGS[tamper] in problem


def test_a_removed_chain_is_noticed(chain: Path) -> None:
    """The head alone tells that there was a chain."""
    chain.unlink()
    assert "5" in problems(chain.parent)[0]


def test_a_rewritten_chain_is_noticed_by_a_head_that_was_kept_elsewhere(chain: Path) -> None:
    """Who may write the folder can write everything in it anew, but not what is kept elsewhere."""
    kept = head(chain.parent)
    for file in chain.parent.iterdir():
        file.unlink()
    assert "removed at the end" in problems(chain.parent, kept)[0]
    for _ in range(5):
        Audit("cli", chain.parent).append("config.set", "nobody")
    assert problems(chain.parent) == []
    assert "written anew" in problems(chain.parent, kept)[0]
    Audit("cli", chain.parent).append("config.set", "nobody")
    assert "written anew" in problems(chain.parent, kept)[0]


def test_an_old_head_is_fine(chain: Path) -> None:
    """A chain that went on contains what was there before."""
    kept = head(chain.parent)
    Audit("cli", chain.parent).append("config.set", "wang")
    assert problems(chain.parent, kept) == []


def test_heads_are_found_in_logs(tmp_path: Path, chain: Path) -> None:
    """What the services told to their logs is what was there."""
    log = tmp_path / "nlp_svc.log"
    known = head(chain.parent)
    old = {"chain": "cli", "sequence": 1, "hash": "0" * 64}
    lines = [
        {"event": "audit_recorded", "record": known._asdict()},
        {"event": "audit_recorded", "record": old},
        {"event": "audit_recorded"},
        {"event": "other"},
    ]
    log.write_text("not JSON\n" + "".join(json.dumps(line) + "\n" for line in lines))
    assert audit.told_heads(log) == [known]


@pytest.mark.parametrize("tamper", [cut_off, emptied, spoilt], ids=lambda tamper: tamper.__name__)
def test_nothing_is_added_to_a_chain_that_lost_its_end(chain: Path, tamper: Callable[[list[str]], list[str]]) -> None:
    """Adding would cover the traces: it is refused and counted."""
    chain.write_text("".join(f"{line}\n" for line in tamper(chain.read_text().splitlines())))
    before, text = failures(), chain.read_text()
    with pytest.raises(AuditBroken, match="audit verify"):
        Audit("cli", chain.parent).append("config.set", "wang")
    assert (failures(), chain.read_text()) == (before + 1, text)


def test_a_line_that_a_crash_cut_off_is_left_out(chain: Path) -> None:
    """What was not wholly written was not promised: the chain goes on without it."""
    with chain.open("a") as file:
        file.write('{"action":"config.s')
    (verified,) = audit.verify(audit.chains(chain.parent))
    assert (verified.problems, len(verified.notes), verified.head.sequence) == ([], 1, 5)
    Audit("cli", chain.parent).append("config.set", "wang")
    assert problems(chain.parent) == []
    assert head(chain.parent).sequence == 6


def test_a_crash_before_the_head_was_written_is_no_tampering(chain: Path) -> None:
    """The head may be one behind, or not be there yet."""
    old = chain.with_suffix(".head").read_text()
    Audit("cli", chain.parent).append("config.set", "wang")
    for text in (old, ""):
        chain.with_suffix(".head").write_text(text)
        assert problems(chain.parent) == []
        Audit("cli", chain.parent).append("config.set", "wang")
    assert head(chain.parent).sequence == 8


def test_a_spoilt_head_is_noticed(chain: Path) -> None:
    """A head file that we did not write is said so."""
    chain.with_suffix(".head").write_text("cli:4")
    assert ".head" in problems(chain.parent)[0]
    with pytest.raises(AuditBroken):
        Audit("cli", chain.parent).append("config.set", "wang")


def test_what_cannot_be_written_is_not_silent(tmp_path: Path) -> None:
    """A failed record is an error that names the file, and is counted."""
    (tmp_path / "audit").write_text("in the way")
    before = failures()
    with pytest.raises(StorageUnavailable, match=r"cli\.jsonl"):
        Audit("cli", tmp_path / "audit").append("config.set", "wang")
    assert failures() == before + 1


def test_a_change_is_recorded_before_it_is_made(folder: Path) -> None:
    """While it is made its record is there; if it fails, that is recorded with the reason and not with the text."""
    with Audit("cli", folder).recording("key.add", "wang", key_id="spring"):
        assert head(folder).sequence == 1
    with pytest.raises(KeyExists), Audit("cli", folder).recording("key.add", "wang", key_id="spring"):
        raise KeyExists("a secret")
    actions = [(record["action"], record["facts"].get("reason")) for record in audit.records(audit.chains(folder))]
    assert actions == [("key.add", None), ("key.add", None), ("key.add.failed", "KEY_EXISTS")]
    assert "a secret" not in (folder / "cli.jsonl").read_text()


def test_nothing_is_changed_that_cannot_be_recorded(tmp_path: Path) -> None:
    """The change is not even begun."""
    (tmp_path / "audit").write_text("in the way")
    begun = []
    with (
        pytest.raises(StorageUnavailable, match="Nothing was changed"),
        Audit("cli", tmp_path / "audit").recording("config.set", "wang"),
    ):
        begun.append(True)
    assert begun == []


ADD = """
import sys
from pathlib import Path
from assistant.audit import Audit
for number in range(25):
    Audit("shared", Path(sys.argv[1])).append("test", sys.argv[2], number=number)
"""


def test_several_processes_share_a_chain(folder: Path) -> None:
    """Each waits for the other: nothing is lost, and the chain holds."""
    processes = [subprocess.Popen([sys.executable, "-c", ADD, folder, who]) for who in "abcd"]
    assert [process.wait() for process in processes] == [0] * 4
    assert problems(folder) == []
    written = {(record["actor"], record["facts"]["number"]) for record in audit.records(audit.chains(folder))}
    assert written == {(who, number) for who in "abcd" for number in range(25)}
    assert head(folder).sequence == 100


def test_an_export_of_several_chains_can_be_verified(tmp_path: Path, folder: Path) -> None:
    """All lines of all chains in one file are as good as the chains."""
    for chain in ("cli", "nlp_svc"):
        for number in range(3):
            Audit(chain, folder).append("test", "wang", number=number)
    export = tmp_path / "export.jsonl"
    export.write_text("".join(f"{audit.line(record)}\n" for record in audit.records(audit.chains(folder))))
    assert [(str(chain.head.chain), chain.head.sequence, chain.problems) for chain in audit.verify([export])] == [
        ("cli", 3, []),
        ("nlp_svc", 3, []),
    ]
    export.write_text(export.read_text().replace('"number":1', '"number":7', 1))
    assert audit.verify([export])[0].problems


@pytest.mark.parametrize("text", ["", "cli:1", "cli:x:" + "0" * 64, "cli:1:" + "0" * 63])
def test_what_is_no_head_is_refused(text: str) -> None:
    """A head that was copied badly is not taken for one."""
    with pytest.raises(InvalidRequest, match="audit verify"):
        Head.parse(text)
    assert Head.parse(str(Head("cli", 1, "0" * 64))) == Head("cli", 1, "0" * 64)
