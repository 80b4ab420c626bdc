"""What GET /health says, and means: every service serves, and every platform takes our credentials."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from grpc.aio import Channel
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from assistant.api.message.v1.message_pb2 import Account
from assistant.api.reply.v1.reply_pb2 import CheckAccountRequest
from assistant.errors import AssistantError
from gateway.inbox import Inbox

if TYPE_CHECKING:
    from assistant.api.reply.v1.reply_pb2_grpc import ReplyServiceAsyncStub

_TIMEOUT_S = 1.0
_ACCOUNT_TIMEOUT_S = 3.0


class Health:
    """Asks everything that an answer needs."""

    def __init__(
        self,
        services: Mapping[str, tuple[Channel, str]],
        reply: "ReplyServiceAsyncStub",
        accounts: Iterable[Account],
        inbox: Inbox,
    ) -> None:
        # The type of HealthStub knows none of its methods.
        self._services: dict[str, tuple[Any, str]] = {
            name: (HealthStub(channel), service) for name, (channel, service) in services.items()
        }
        self._reply = reply
        self._accounts = list(accounts)
        self._inbox = inbox

    async def check(self) -> dict[str, Any]:
        """The report; `status` is "ok" only if all of it is well."""
        names = list(self._services)
        states, platforms, inbox = await asyncio.gather(
            asyncio.gather(*(self._service(name) for name in names)),
            asyncio.gather(*(self._platform(account) for account in self._accounts)),
            self._inbox_state(),
        )
        services = dict(zip(names, states, strict=True))
        report: dict[str, Any] = {"status": "ok"}
        advice = {}
        for account, (connected, what) in zip(self._accounts, platforms, strict=True):
            if report.get(account.channel) in (None, "connected"):
                report[account.channel] = "connected" if connected else "disconnected"
            if not connected:
                advice[f"{account.channel}.{account.name}"] = what
        report["services"] = {"gateway": inbox, **services}
        if advice:
            report["problems"] = advice
        if advice or not self._accounts or any(state != "serving" for state in report["services"].values()):
            report["status"] = "unavailable"
        if not self._accounts:
            report["problems"] = {"channels": "no channel is configured: ai-assistant-cli config set channels.…"}
        return report

    async def _service(self, name: str) -> str:
        stub, service = self._services[name]
        try:
            answer = await stub.Check(HealthCheckRequest(service=service), timeout=_TIMEOUT_S)
        except AssistantError as error:
            return error.reason.lower()
        return "serving" if answer.status == HealthCheckResponse.SERVING else "not_serving"

    async def _platform(self, account: Account) -> tuple[bool, str]:
        try:
            answer = await self._reply.CheckAccount(CheckAccountRequest(account=account), timeout=_ACCOUNT_TIMEOUT_S)
        except AssistantError as error:
            return False, f"reply_svc: {error.message}"
        return answer.connected, f"{answer.error_code} {answer.advice}".strip()

    async def _inbox_state(self) -> str:
        try:
            await self._inbox.oldest_open_s()
        except AssistantError as error:
            return error.reason.lower()
        return "serving"
