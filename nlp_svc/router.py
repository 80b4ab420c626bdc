"""The engine that answers: chosen by name, loaded in the background."""

import asyncio
from collections.abc import Sequence
from itertools import chain, repeat
from time import monotonic

from assistant import telemetry
from assistant.api.nlp.v1.nlp_pb2 import DescribeModelResponse
from assistant.errors import EngineUnavailable, InvalidSetting
from assistant.plugin import Engine, EnginePlugin, installed, load
from assistant.settings import Source

_RETRY_S = (1.0, 2.0, 5.0, 10.0, 30.0)
_ASK_AGAIN_S = 1.0


def create(provider: str, source: Source) -> Engine:
    """The engine of this name, with the settings of its section. Raises InvalidSetting."""
    plugins = installed("engines")
    plugin = plugins.get(provider)
    if not isinstance(plugin, EnginePlugin):
        raise InvalidSetting(f"nlp.provider is {provider!r}, which is not installed. Installed: {', '.join(plugins)}")
    engine: Engine = load("engines", provider, "engine")(source.read(plugin.engine, f"engines.{provider}"))
    return engine


class Router:
    """Leads to the engine once it is loaded."""

    def __init__(self, engine: Engine, retry_s: Sequence[float] = _RETRY_S) -> None:
        """`retry_s`: pauses between attempts to load it; the last one again and again."""
        self._engine = engine
        self._retry_s = retry_s
        self._load_time_s: float | None = None

    async def load(self) -> None:
        """Return when the engine is ready. A failure is logged and tried again: the cause may be out of our hands."""
        for pause_s in chain(self._retry_s, repeat(self._retry_s[-1])):
            started = monotonic()
            try:
                await self._engine.load()
            except Exception as error:
                telemetry.error("engine_not_loaded", error, retry_after_s=pause_s)
                await asyncio.sleep(pause_s)
            else:
                self._load_time_s = monotonic() - started
                return

    def engine(self) -> Engine:
        """Raises EngineUnavailable while it loads."""
        if self._load_time_s is None:
            raise EngineUnavailable("the engine is still loading", retry_after_s=_ASK_AGAIN_S)
        return self._engine

    def describe(self) -> DescribeModelResponse:
        """What answers here, and whether it would answer now."""
        description = DescribeModelResponse()
        description.CopyFrom(self._engine.describe())
        description.ready = self._load_time_s is not None
        if self._load_time_s is not None:
            description.load_time.FromNanoseconds(int(self._load_time_s * 1e9))
        return description
