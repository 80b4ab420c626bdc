"""One running gateway: its connections, its inbox, its turns.

It is made on the event loop of a worker, never before the fork: no connection survives one.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

from prometheus_client import Gauge

from assistant import garbage, telemetry, tracing
from assistant.api.crypto.v1.crypto_pb2_grpc import CryptoServiceStub
from assistant.api.inbox.v1.inbox_pb2 import DESCRIPTOR
from assistant.api.message.v1.message_pb2 import Account
from assistant.api.nlp.v1.nlp_pb2_grpc import NlpServiceStub
from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceStub
from assistant.api.skill.v1.skill_pb2_grpc import SkillServiceStub
from assistant.client import connect
from assistant.errors import AssistantError, StorageUnavailable
from assistant.journal import Journal
from assistant.server import Server
from gateway.conversations import Conversations
from gateway.delivery import Delivery
from gateway.directory import Directory
from gateway.engine import Engine
from gateway.health import Health
from gateway.inbox import MIGRATIONS, Inbox, InboxState
from gateway.intake import Intake
from gateway.policy import Gatekeeper
from gateway.service import InboxService
from gateway.settings import Configuration
from gateway.sources import Sources
from gateway.turns import Turns

_SERVICE = DESCRIPTOR.services_by_name["InboxService"]
_OPERATORS_GRACE_S = 1.0
_DRAIN_S = 8.0
"""Together less than gunicorn gives a worker to end."""
_RECOVER_EVERY_S = 1.0
_COUNT_EVERY_S = 15.0
_PURGE_EVERY_S = 60.0
_PURGE_PAUSE_S = 0.1
_OPEN = Gauge("assistant_inbox_rows", "Messages by how they stand.", ["state"])
_OLDEST = Gauge("assistant_inbox_oldest_seconds", "Age of the oldest message that waits for its answer.")


class Gateway:
    """Everything a view needs; see `create`."""

    def __init__(self, configuration: Configuration, journal: Journal) -> None:
        settings = configuration.gateway
        to = partial(connect, multiplex=settings.multiplex, identity=configuration.identity)
        crypto = to(settings.crypto_target, server="crypto_svc")
        nlp_identity = None if configuration.nlp.plaintext else configuration.identity
        nlp = to(configuration.nlp.target, server="nlp_svc", identity=nlp_identity)
        skills = to(configuration.skills.target, server="nlp_svc")
        reply = to(settings.reply_target, server="reply_svc")
        self._channels = [crypto, nlp, skills, reply]
        self._settings = settings
        self._background: list[asyncio.Task[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.codecs = configuration.codecs()
        self.inbox = Inbox(journal, f"{socket.gethostname()}:{settings.listen.port}")
        self.turns = Turns(
            self.inbox,
            Conversations(self.inbox, settings.history_turns),
            Engine(
                NlpServiceStub(nlp),
                SkillServiceStub(skills),
                timeout_s=settings.engine_timeout_s,
                locale=settings.locale,
            ),
            Delivery(ReplyServiceStub(reply)),
            self.codecs,
            held_callbacks=settings.held_callbacks,
            locale=settings.locale,
            gatekeeper=Gatekeeper.of(configuration.policies, Directory(ReplyServiceStub(reply)), settings.locale),
        )
        self.sources = Sources.of(configuration.policies, ReplyServiceStub(reply))
        self.intake = Intake(
            CryptoServiceStub(crypto),
            self.turns,
            passive_budget_s=settings.passive_budget_s,
            sources=self.sources,
        )
        self.health = Health(
            {
                "crypto_svc": (crypto, "assistant.api.crypto.v1.CryptoService"),
                "nlp_svc": (nlp, "assistant.api.nlp.v1.NlpService"),
                "reply_svc": (reply, "assistant.api.reply.v1.ReplyService"),
            },
            ReplyServiceStub(reply),
            [Account(channel=channel, name=name) for channel, name in self.codecs],
            self.inbox,
        )
        self.operators = Server(
            {_SERVICE: InboxService(self.inbox, self.turns)},
            listen=settings.grpc,
            listen_setting="gateway.grpc",
            drain_s=0.0,
            grace_s=_OPERATORS_GRACE_S,
            identity=configuration.identity,
            callers={_SERVICE.full_name: settings.callers},
        )

    @classmethod
    async def create(cls, configuration: Configuration) -> "Gateway":
        """Open the inbox, take up what an earlier life left, and begin. Raises InvalidSetting, StorageUnavailable."""
        tracing.start("gateway")
        gateway = cls(configuration, await Journal.open(configuration.gateway.database, MIGRATIONS))
        await gateway.inbox.open()
        await gateway.turns.recover()
        await gateway.operators.start()
        gateway._background = [
            asyncio.create_task(gateway._every(_RECOVER_EVERY_S, gateway._take_over)),
            asyncio.create_task(gateway._every(_COUNT_EVERY_S, gateway._count)),
            asyncio.create_task(gateway._every(_PURGE_EVERY_S, gateway._purge)),
        ]
        if gateway.sources is not None:
            gateway._background.append(asyncio.create_task(gateway.sources.keep_fresh()))
        garbage.settle()
        telemetry.info("gateway_started", accounts=len(gateway.codecs))
        return gateway

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside the request that caused it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Finish what is under way, write what is to be written, and stop."""
        for task in self._background:
            task.cancel()
        await self.operators.stop()
        await self.turns.drain(_DRAIN_S)
        await self.inbox.close()
        for channel in self._channels:
            await channel.close()
        telemetry.info("gateway_stopped")
        telemetry.flush()  # the worker ends by the signal that stopped it, without Python's own clean-up
        tracing.stop()

    async def _every(self, seconds: float, job: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            with contextlib.suppress(AssistantError):
                await job()

    async def _take_over(self) -> None:
        if not self.inbox.shared:
            return
        serving = partial(self.operators.health.set, _SERVICE.full_name)
        try:
            await self.turns.recover()
        except StorageUnavailable:
            serving(False)
            raise
        serving(True)

    async def _count(self) -> None:
        counts = await self.inbox.counts()
        for state in InboxState:
            _OPEN.labels(state.name.lower()).set(counts.get(state, 0))
        _OLDEST.set(await self.inbox.oldest_open_s())

    async def _purge(self) -> None:
        forgotten = await self.inbox.purge(self._settings.keep_days)
        while forgotten:
            await asyncio.sleep(_PURGE_PAUSE_S)
            forgotten = await self.inbox.purge(self._settings.keep_days)
