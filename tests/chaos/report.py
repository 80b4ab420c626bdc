"""The closing table."""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.books import Message, Verdict


@dataclass(frozen=True)
class Struck:
    """One fault that struck."""

    fault: str
    began_at: float
    """On the platform's clock."""
    lasted_s: float
    recovery_s: float
    """From its end until a message sent afterwards was answered."""
    unsettled: int = 0
    """Messages sent meanwhile that were not answered within the time that the fault is given to settle."""


@dataclass
class Report:
    """All faults of a run and the verdict on its messages."""

    struck: list[Struck] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    verdict: Verdict = field(default_factory=lambda: Verdict(0))
    restarts: int = 0
    messages: list[Message] = field(default_factory=list)
    strange: list[str] = field(default_factory=list)

    def add(self, struck: Struck) -> None:
        """A fault struck."""
        self.struck.append(struck)
        print(f"{struck.fault:<24} recovered after {struck.recovery_s:6.2f} s", flush=True)

    def skip(self, fault: str, why: str) -> None:
        """A fault cannot be done here: said loudly, since nothing was tried."""
        self.skipped[fault] = why
        print(f"{fault:<24} SKIPPED: {why}", flush=True)

    @property
    def kills(self) -> int:
        """Processes killed."""
        return sum(struck.fault.startswith("kill ") for struck in self.struck)

    @property
    def broken(self) -> dict[str, int]:
        """The promises that were not kept, and how often."""
        never = sum(math.isinf(struck.recovery_s) for struck in self.struck)
        return self.verdict.broken | ({"never recovered": never} if never else {})

    def figures(self, store: str) -> dict[str, Any]:
        """Everything, for a file."""
        return {
            "store": store,
            "kills": self.kills,
            "restarts": self.restarts,
            "messages": asdict(self.verdict),
            "broken": self.broken,
            "recovery_s": {
                fault: _percentiles([one.recovery_s for one in self.struck if one.fault == fault])
                for fault in dict.fromkeys(one.fault for one in self.struck)
            },
            "retried": self._by_fault([m.failures[0][0] for m in self.messages if m.failures]),
            "overtaken": self._by_fault([m.sent_at for m in self.messages if m.overtaken]),
            "unsettled": {one.fault: one.unsettled for one in self.struck if one.unsettled},
            "skipped": self.skipped,
        }

    def write_diary(self, file: Path) -> None:
        """Every fault and every message, a line each, in the order of time."""
        lines = [(one.began_at, f"{one.fault}: {one}") for one in self.struck]
        lines += [(message.sent_at, repr(message)) for message in self.messages]
        file.write_text("".join(f"{at:.3f} {line}\n" for at, line in sorted(lines)))

    def table(self, store: str) -> str:
        """For people."""
        verdict = self.verdict
        rows: list[tuple[str, ...]] = [("fault", "times", "recovery p50", "p99", "max [s]", "retried")]
        rows += [
            self._row(fault, [one for one in self.struck if one.fault == fault])
            for fault in dict.fromkeys(one.fault for one in self.struck)
        ]
        if self.kills:
            rows.append(self._row("all kills", [one for one in self.struck if one.fault.startswith("kill ")]))
        lines = [
            "",
            f"Store: {store}",
            *_columns(rows),
            *(f"{name}: SKIPPED, {why}" for name, why in self.skipped.items()),
        ]
        lines += [
            "",
            f"messages {verdict.messages} ({verdict.passive} answered passively, {verdict.active} by the API)",
            f"retried by the platform {verdict.retried}, lost {verdict.lost}, doubled {verdict.doubled}, "
            f"reordered {verdict.reordered}, refused {verdict.refused}, forged {verdict.forged}",
            f"overtaken while on their way to us {verdict.overtaken}, slowest answer {verdict.slowest_s:.1f} s",
            f"sends repeated and recognised by the platform {verdict.window_hits} "
            f"(without idempotency keys each would be a second answer) in {self.kills} kills",
            *self.strange[:5],
        ]
        return "\n".join(lines)

    def _row(self, name: str, struck: list[Struck]) -> tuple[str, ...]:
        figures = _percentiles([one.recovery_s for one in struck])
        failures = self._by_fault([message.failures[0][0] for message in self.messages if message.failures])
        retried = sum(failures.get(fault, 0) for fault in {one.fault for one in struck})
        return (name, str(len(struck)), *(f"{figures[key]:.2f}" for key in ("p50", "p99", "max")), str(retried))

    def _by_fault(self, times: list[float]) -> dict[str, int]:
        """How many of them lie after which fault, and before the next one."""
        counts: dict[str, int] = {}
        for at in times:
            last = next((one.fault for one in reversed(self.struck) if one.began_at <= at), "none")
            counts[last] = counts.get(last, 0) + 1
        return counts


def _percentiles(seconds: Iterable[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {
        "p50": ordered[(len(ordered) - 1) // 2],
        "p99": ordered[max(0, math.ceil(0.99 * len(ordered)) - 1)],
        "max": ordered[-1],
    }


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
