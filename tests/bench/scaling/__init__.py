"""How cost grows: with messages per second, conversations, what is stored, and replicas."""

from tests.bench.scaling.growth import summary
from tests.bench.scaling.held import held
from tests.bench.scaling.history import history
from tests.bench.scaling.rates import rates
from tests.bench.scaling.remembered import remembered
from tests.bench.scaling.replicas import replicas
from tests.bench.scaling.stored import stored
from tests.bench.sections import Run


def scaling(run: Run) -> None:
    """Everything on; the summary comes first where the result is kept."""
    found = [line for part in (rates, history, held, remembered, stored, replicas) for line in part(run)]
    run.say("What grows, and what grows with it\n\n" + summary(found))
    run.texts.insert(1, run.texts.pop())


__all__ = ["scaling"]
