"""The audit log: who changed what, and what was done for whom, in files that are only ever added to.

One record is one line of JSON, which holds the hash of the line before it: a line that is changed, removed, put in or
moved breaks the chain there. What is cut off at the end is noticed by the head, the number and hash of the last
record: it stands in a file beside the chain, against accidents and clumsy hands. And every record is told to the log as
well (`audit_recorded`): whoever can write this folder should not be able to write where logs are kept.

Every process or service has a chain of its own. Records hold names, ids, and digests: no secret, no text of a member.
"""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import orjson
from prometheus_client import Counter

from assistant import telemetry
from assistant.errors import AssistantError, AuditBroken, InvalidRequest, StorageUnavailable
from assistant.settings import home

_ORIGIN = "0" * 64
"""What the first record has for the hash of the one before."""
_LONGEST_RECORD_BYTES = 60 * 1024
_TAIL_BYTES = 64 * 1024
"""Where the last record is found, hash and all."""
_FIELDS = {
    "chain": str,
    "sequence": int,
    "at": str,
    "actor": str,
    "action": str,
    "facts": dict,
    "request_id": str,
    "previous": str,
    "hash": str,
}

_failures = Counter("assistant_audit_failures", "Audit records that could not be written.")


class Head(NamedTuple):
    """Where a chain ends, or ended at some time. As text: `chain:sequence:hash`."""

    chain: str
    sequence: int
    """Of the last record, counted from 1. 0: there is none."""
    hash: str

    def __str__(self) -> str:
        return f"{self.chain}:{self.sequence}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> "Head":
        """Raises InvalidRequest."""
        found = re.fullmatch(r"([a-z0-9_-]+):(\d+):([0-9a-f]{64})", text.strip())
        if not found:
            raise InvalidRequest(f"{text!r} is no head: it is chain:sequence:hash, as `audit verify` prints it")
        return cls(found[1], int(found[2]), found[3])


def folder() -> Path:
    """Where the chains of this machine, or of this container, are."""
    return home() / "audit"


def digest(value: Any) -> str:
    """Tells whether two values are the same, without telling the value. Short ones can be guessed."""
    return sha256(orjson.dumps(value, option=orjson.OPT_SORT_KEYS)).hexdigest()


class Audit:
    """One chain. Several processes may add to it at once. Everything here waits for the disk."""

    def __init__(self, chain: str, where: Path | None = None) -> None:
        self._chain = chain
        self._file = (where or folder()) / f"{chain}.jsonl"

    def append(self, action: str, actor: str, **facts: Any) -> None:
        """Add a record. It is on the disk when this returns.

        Raises StorageUnavailable, or AuditBroken if the end of the chain is not as we left it. Either is counted
        and logged, so that a caller who has to go on may.
        """
        try:
            record = self._append(action, actor, facts)
        except OSError as error:
            self._failed(StorageUnavailable(f"the audit log {self._file} cannot be written: {error.strerror}"))
        except (AuditBroken, StorageUnavailable) as error:
            self._failed(error)
        else:
            telemetry.info("audit_recorded", record=record)

    @contextlib.contextmanager
    def recording(self, action: str, actor: str, **facts: Any) -> Iterator[None]:
        """Around a change: it is recorded before it is made, and if it fails, that as well.

        Raises what `append` raises; then it is not made.
        """
        try:
            self.append(action, actor, **facts)
        except (AuditBroken, StorageUnavailable) as error:
            raise type(error)(f"{error.message}. Nothing was changed") from None
        try:
            yield
        except BaseException as error:
            reason = error.reason if isinstance(error, AssistantError) else type(error).__name__
            with contextlib.suppress(AssistantError):
                self.append(f"{action}.failed", actor, **facts, reason=reason)
            raise

    def _failed(self, error: AssistantError) -> None:
        _failures.inc()
        telemetry.error("audit_failed", error, chain=self._chain)
        raise error from None

    def _append(self, action: str, actor: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = not self._file.exists()
        descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            last = self._last(descriptor)
            record = _record(last, action, actor, facts)
            _write(descriptor, _encode(record) + b"\n")
            if new:
                _sync_folder(self._file.parent)
            _write_head(_head_file(self._file), Head(self._chain, record["sequence"], record["hash"]))
        finally:
            os.close(descriptor)
        return record

    def _last(self, descriptor: int) -> Head:
        """The end of the chain, if it is as we left it. A line that a crash cut off was never promised: it goes."""
        size = os.fstat(descriptor).st_size
        begin = max(0, size - _TAIL_BYTES)
        whole, newline, torn = os.pread(descriptor, size - begin, begin).rpartition(b"\n")
        if torn:
            os.ftruncate(descriptor, size - len(torn))
        last = Head(self._chain, 0, _ORIGIN)
        if newline:
            record = _read(whole.rpartition(b"\n")[2])
            if isinstance(record, str):
                raise AuditBroken(f"the last line of {self._file} {record}: {_EVIDENCE}")
            last = Head(record["chain"], record["sequence"], record["hash"])
        kept = _read_head(self._file)
        if kept is not None and (last.sequence < kept.sequence or (last.sequence == kept.sequence and last != kept)):
            raise AuditBroken(
                f"{self._file} ends with record {last.sequence}, and did end with {kept.sequence}: {_EVIDENCE}"
            )
        return last


_EVIDENCE = (
    "somebody changed it. See `ai-assistant-cli audit verify`; when you have kept the folder as evidence, move it "
    "away, and a new chain begins"
)


# --- Looking ----------------------------------------------------------------------------------------------


@dataclass
class Verified:
    """What is to be said of one chain."""

    head: Head
    """Of the longest part from the beginning that holds."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def chains(where: Path) -> list[Path]:
    """The files of all chains in a folder, also of those of which only the head is left."""
    return sorted({path.with_suffix(".jsonl") for path in where.glob("*") if path.suffix in (".jsonl", ".head")})


def records(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The records of chains, one chain after the other, without what is none. Raises StorageUnavailable."""
    for file in files:
        for text in _lines(file)[0]:
            record = _read(text)
            if not isinstance(record, str):
                yield record


def line(record: Mapping[str, Any]) -> str:
    """A record as it stands in its chain."""
    return _encode(record).decode()


def verify(files: Iterable[Path], heads: Iterable[Head] = ()) -> list[Verified]:
    """Check chains and exports, and that they contain what is known to have been. Raises StorageUnavailable."""
    found: dict[str, _Check] = {}

    def check(chain: str) -> _Check:
        return found.setdefault(chain, _Check(chain))

    for file in files:
        lines, torn = _lines(file)
        for number, text in enumerate(lines, 1):
            record = _read(text)
            check(file.stem if isinstance(record, str) else record["chain"]).take(record, f"line {number} of {file}")
        if torn:
            check(file.stem).notes.append("the last line was cut off while it was written: it was never promised")
        try:
            if kept := _read_head(file):
                check(kept.chain).contains(kept, "its head file says")
        except AuditBroken as error:
            check(file.stem).problems.append(error.message)
    for head in heads:
        check(head.chain).contains(head, "a head that was kept elsewhere says")
    return [found[chain].verified() for chain in sorted(found)]


def told_heads(log: Path) -> list[Head]:
    """The last head of each chain that the services told to a log. Raises StorageUnavailable."""
    last: dict[str, Head] = {}
    for text in _lines(log)[0]:
        if b'"audit_recorded"' in text:
            with contextlib.suppress(orjson.JSONDecodeError, KeyError, TypeError):
                told = orjson.loads(text)["record"]
                head = Head(str(told["chain"]), int(told["sequence"]), str(told["hash"]))
                if head.chain not in last or last[head.chain].sequence < head.sequence:
                    last[head.chain] = head
    return list(last.values())


class _Check:
    """Follows one chain, record by record, up to the first that does not fit."""

    def __init__(self, chain: str) -> None:
        self._hashes = [_ORIGIN]
        self._chain = chain
        self.problems: list[str] = []
        self.notes: list[str] = []

    def take(self, record: dict[str, Any] | str, where: str) -> None:
        if self.problems:
            return
        if isinstance(record, str):
            self.problems.append(f"{where} {record}")
        elif record["sequence"] != len(self._hashes):
            self.problems.append(
                f"{where} is record {record['sequence']}, where {len(self._hashes)} should be: "
                "records were removed, put in or moved"
            )
        elif record["previous"] != self._hashes[-1]:
            self.problems.append(f"{where} does not follow the record before it: one of them is not the original")
        else:
            self._hashes.append(record["hash"])

    def contains(self, head: Head, who: str) -> None:
        if head.sequence >= len(self._hashes):
            if not self.problems:
                self.problems.append(
                    f"it ends with record {len(self._hashes) - 1}, and {who} that there were {head.sequence}: "
                    "records were removed at the end"
                )
        elif head.hash != self._hashes[head.sequence]:
            self.problems.append(f"record {head.sequence} was written anew: {who} that it was another one")

    def verified(self) -> Verified:
        head = Head(self._chain, len(self._hashes) - 1, self._hashes[-1])
        return Verified(head, self.problems, self.notes)


# --- Files ------------------------------------------------------------------------------------------------


def _record(last: Head, action: str, actor: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The record after this one. Raises InvalidRequest if it is too long."""
    record: dict[str, Any] = {
        "chain": last.chain,
        "sequence": last.sequence + 1,
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "actor": actor,
        "action": action,
        "facts": dict(facts),
        "request_id": telemetry.request_id.get(),
        "previous": last.hash,
    }
    text = _encode(record)
    if len(text) > _LONGEST_RECORD_BYTES:
        raise InvalidRequest(f"an audit record of {action} has {len(text)} bytes: at most {_LONGEST_RECORD_BYTES}")
    return record | {"hash": sha256(text).hexdigest()}


def _encode(record: Mapping[str, Any]) -> bytes:
    return orjson.dumps(record, option=orjson.OPT_SORT_KEYS)


def _read(text: bytes) -> dict[str, Any] | str:
    """A record, or what is wrong with the line."""
    try:
        record = orjson.loads(text)
    except orjson.JSONDecodeError:
        return "is no record"
    if not isinstance(record, dict) or {name: type(value) for name, value in record.items()} != _FIELDS:
        return "is no record"
    unsigned = {name: value for name, value in record.items() if name != "hash"}
    if _encode(record) != text or sha256(_encode(unsigned)).hexdigest() != record["hash"]:
        return "was changed: it does not fit its own hash"
    return record


def _lines(file: Path) -> tuple[list[bytes], bytes]:
    """The whole lines of a file, and what stands after the last; none if the file is not there."""
    try:
        *lines, torn = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return [], b""
    except OSError as error:
        raise StorageUnavailable(f"{file} cannot be read: {error.strerror}") from None
    return lines, torn


def _head_file(file: Path) -> Path:
    return file.with_suffix(".head")


def _read_head(file: Path) -> Head | None:
    """What is kept of the end of the chain in this file. None: nothing. Raises AuditBroken, StorageUnavailable."""
    head_file = _head_file(file)
    try:
        kept = head_file.read_text("utf-8", "replace")
        return Head.parse(kept) if kept else None
    except FileNotFoundError:
        return None
    except InvalidRequest:
        raise AuditBroken(f"{head_file} is not what we wrote: {_EVIDENCE}") from None
    except OSError as error:
        raise StorageUnavailable(f"{head_file} cannot be read: {error.strerror}") from None


def _write_head(file: Path, head: Head) -> None:
    """Over the old one, whose place it fills: after a crash there is one of the two."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.pwrite(descriptor, f"{head.chain}:{head.sequence:012d}:{head.hash}\n".encode(), 0)
    finally:
        os.close(descriptor)


def _write(descriptor: int, text: bytes) -> None:
    """All of it, on the disk, or nothing."""
    size = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, text)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise
    if written != len(text):
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # which is what cuts a write short


def _sync_folder(where: Path) -> None:
    descriptor = os.open(where, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
