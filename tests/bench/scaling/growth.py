"""One line of what was found: something grew, and this is what grew with it."""

from collections.abc import Iterable
from dataclasses import dataclass

from tests.bench.table import number, table


@dataclass(frozen=True)
class Growth:
    """A figure before and after something else grew."""

    cause: str
    """What grew."""
    least: str
    most: str
    figure: str
    """What is looked at."""
    unit: str
    before: float
    after: float
    each: float | None = None
    """KB for each one more of what grew. None: a ratio says it."""

    @property
    def grown(self) -> str:
        """By how much."""
        return f"× {number(self.after / self.before)}" if self.each is None else f"{number(self.each)} KB each"

    def cells(self) -> list[str]:
        """One row of the table."""
        figures = (f"{value:.0f} {self.unit}" for value in (self.before, self.after))
        return [self.cause, self.least, self.most, self.figure, *figures, self.grown]


def summary(lines: Iterable[Growth]) -> str:
    """All of them."""
    return table(["what grows", "from", "to", "what it costs", "before", "after", ""], [one.cells() for one in lines])
