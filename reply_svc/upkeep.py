"""What has to be done every few seconds, whether or not anything is delivered."""

import asyncio
from collections.abc import Callable

from assistant import telemetry
from assistant.errors import StorageUnavailable
from reply_svc.accounts import Connections
from reply_svc.clock import Clock
from reply_svc.lanes import Lanes
from reply_svc.outbox import Outbox

_EVERY_S = 5.0
_DAY_S = 86_400.0


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
        while True:
            try:
                await self._once()
            except Exception as error:
                telemetry.error("upkeep_failed", error)
            await asyncio.sleep(_EVERY_S)

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
