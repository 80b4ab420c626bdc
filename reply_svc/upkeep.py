"""What has to be done every few seconds, whether or not anything is delivered."""

import asyncio
from collections.abc import Awaitable, Callable

from prometheus_client import Gauge

from assistant import telemetry
from assistant.errors import StorageUnavailable
from reply_svc.accounts import Connections
from reply_svc.clock import Clock
from reply_svc.lanes import Lanes
from reply_svc.outbox import Outbox, State

_EVERY_S = 5.0
_MEASURE_EVERY_S = 15.0
_DAY_S = 86_400.0

_rows = Gauge("assistant_outbox_rows", "Deliveries by how they stand.", ("state",))


class Upkeep:
    """Tells whether the outbox takes deliveries, takes over what other processes left, and forgets what is old."""

    def __init__(
        self,
        outbox: Outbox,
        lanes: Lanes,
        connections: Connections,
        clock: Clock,
        *,
        keep_days: float,
        serving: Callable[[bool], None],
    ) -> None:
        """`serving` is told every few seconds whether the outbox takes deliveries."""
        self._outbox = outbox
        self._lanes = lanes
        self._connections = connections
        self._clock = clock
        self._keep_s = keep_days * _DAY_S
        self._serving = serving

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.gather(_every(_EVERY_S, self._once), self._measure_later())

    async def _measure_later(self) -> None:
        await asyncio.sleep(_MEASURE_EVERY_S)  # after a start all are busy, and the platform may be starting too
        await _every(_MEASURE_EVERY_S, self._measure)

    async def _measure(self) -> None:
        counts = await self._outbox.counts()
        for state in State:
            _rows.labels(state.name.lower()).set(counts.get(state, 0))
        await self._connections.check()

    async def _once(self) -> None:
        try:
            await self._outbox.probe()
        except StorageUnavailable:
            self._serving(False)
            raise
        self._serving(True)
        await self._lanes.recover()
        await self._outbox.purge(self._clock.now() - self._keep_s)
        self._connections.forget_idle()


async def _every(seconds: float, job: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await job()
        except Exception as error:
            telemetry.error("upkeep_failed", error)
        await asyncio.sleep(seconds)
