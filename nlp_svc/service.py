"""NlpService: checks what it is asked and passes it to the engine."""

from collections.abc import AsyncIterator
from operator import attrgetter
from time import monotonic

from assistant import telemetry
from assistant.api.nlp.v1.nlp_pb2 import (
    ROLE_UNSPECIFIED,
    DescribeModelRequest,
    DescribeModelResponse,
    GenerateReplyRequest,
    GenerateReplyResponse,
    StreamReplyRequest,
    StreamReplyResponse,
)
from assistant.errors import InvalidRequest
from assistant.server import Call
from nlp_svc.router import Router

_ROLE = attrgetter("role")


class NlpService:
    """Any engine, behind the contract."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def GenerateReply(self, request: GenerateReplyRequest, call: Call) -> GenerateReplyResponse:
        _check(request)
        telemetry.message_id.set(request.turn_id)
        began_at = monotonic()
        response = await self._router.engine().generate(request)
        telemetry.info("reply_generated", model=response.model, seconds=round(monotonic() - began_at, 4))
        return response

    async def StreamReply(self, request: StreamReplyRequest, call: Call) -> AsyncIterator[StreamReplyResponse]:
        _check(request.request)
        async for piece in self._router.engine().stream(request.request):
            if isinstance(piece, str):
                yield StreamReplyResponse(text_delta=piece)
            else:
                yield StreamReplyResponse(summary=piece)
                return
        raise RuntimeError("the engine's stream ended without the whole answer")

    def DescribeModel(self, request: DescribeModelRequest, call: Call) -> DescribeModelResponse:
        return self._router.describe()


def _check(request: GenerateReplyRequest) -> None:
    """Raises InvalidRequest."""
    if not request.turn_id:
        raise InvalidRequest("turn_id is empty: give every message a turn of its own")
    if not request.message.content:
        raise InvalidRequest("message.content is empty: there is nothing to answer")
    roles = list(map(_ROLE, request.history))
    if ROLE_UNSPECIFIED in roles:
        raise InvalidRequest(f"history[{roles.index(ROLE_UNSPECIFIED)}].role is not set: say who spoke")
