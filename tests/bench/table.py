"""What the run says, as tables that are read as text and as Markdown."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One line of the comparison that we hold ourselves to."""

    measure: str
    ours: str
    others: str
    figure: float | None
    """What is compared with the two limits; None: not measured in this run."""
    must: float
    aim: float
    unit: str = ""
    more_is_better: bool = False

    @property
    def verdict(self) -> str:
        """How the figure stands to the limits."""
        if self.figure is None:
            return "not measured"
        if self._reaches(self.aim):
            return "aim reached"
        return "reached" if self._reaches(self.must) else "**short**"

    def cells(self) -> list[str]:
        """One row of the table."""
        figure = "–" if self.figure is None else f"{number(self.figure)}{self.unit}"
        limits = [f"{number(self.must)}{self.unit}", f"{number(self.aim)}{self.unit}"]
        return [self.measure, self.ours, self.others, figure, *limits, self.verdict]

    def _reaches(self, limit: float) -> bool:
        assert self.figure is not None
        return self.figure >= limit if self.more_is_better else self.figure <= limit


def goals(lines: Iterable[Goal]) -> str:
    """The comparison."""
    header = ["measure", "ours", "theirs", "figure", "must reach", "aim", ""]
    return table(header, [line.cells() for line in lines])


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table whose columns are aligned; the first is text, the rest are figures."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join("| " + " | ".join(_aligned(line, widths)) + " |" for line in [lines[0], rule, *lines[1:]])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    first, *rest = zip(cells, widths, strict=True)
    return [first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]


def number(value: float) -> str:
    """Three significant digits at least, with thousands apart."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
