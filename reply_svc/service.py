"""ReplyService: the contract, unpacked and packed."""

from collections.abc import AsyncIterator
from functools import partial

from assistant.api.reply.v1.reply_pb2 import (
    CheckAccountRequest,
    CheckAccountResponse,
    DeliverReplyRequest,
    DeliverReplyResponse,
    DeliveryState,
    FetchMediaRequest,
    FetchMediaResponse,
    GetDeliveryRequest,
    GetDeliveryResponse,
    GetMemberRequest,
    GetMemberResponse,
    ListCallbackSourcesRequest,
    ListCallbackSourcesResponse,
    ListDeliveriesRequest,
    ListDeliveriesResponse,
    RecallDeliveryRequest,
    RecallDeliveryResponse,
    RetryDeliveryRequest,
    RetryDeliveryResponse,
    UploadMediaHeader,
    UploadMediaRequest,
    UploadMediaResponse,
)
from assistant.errors import InvalidMedia, InvalidRequest, NotRecallable, Overloaded
from assistant.paging import before, next_page_token, page_size
from assistant.server import Call, to_its_end
from reply_svc.accounts import Connections
from reply_svc.lanes import Lanes
from reply_svc.outbox import Delivery, Outbox, State, delivery_id
from reply_svc.requests import check_delivery, check_upload

_MAX_UPLOAD_BYTES = 20 << 20
_MAX_CHUNK_BYTES = 64 * 1024
_OVERLOAD_PAUSE_S = 5.0


class ReplyService:
    """Accepts deliveries, tells how they stand, and brings files to and from the platforms."""

    def __init__(self, outbox: Outbox, lanes: Lanes, connections: Connections, max_open: int) -> None:
        """`max_open` is how many deliveries may wait at once."""
        self._outbox = outbox
        self._lanes = lanes
        self._connections = connections
        self._max_open = max_open

    # --- Deliveries ---------------------------------------------------------------------------------------

    async def DeliverReply(self, request: DeliverReplyRequest, call: Call) -> DeliverReplyResponse:
        check_delivery(request)
        self._connections.of(request.account)
        if len(self._lanes) >= self._max_open:
            raise Overloaded(f"{self._max_open} deliveries wait already", retry_after_s=_OVERLOAD_PAUSE_S)
        delivery = await to_its_end(self._accept(request))
        return DeliverReplyResponse(delivery_id=delivery.id, state=delivery.state)

    async def _accept(self, request: DeliverReplyRequest) -> Delivery:
        delivery, new = await self._outbox.admit(request)
        if new and delivery.row.state == State.PENDING:
            self._lanes.add(delivery)
        return delivery

    async def GetDelivery(self, request: GetDeliveryRequest, call: Call) -> GetDeliveryResponse:
        if not request.WhichOneof("id"):
            raise InvalidRequest("neither delivery_id nor request_id is set")
        delivery = await self._outbox.get(request.delivery_id or delivery_id(request.request_id))
        return GetDeliveryResponse(delivery=delivery.message(with_content=True))

    async def ListDeliveries(self, request: ListDeliveriesRequest, call: Call) -> ListDeliveriesResponse:
        if request.state not in DeliveryState.values():
            raise InvalidRequest(f"state {request.state} is unknown")
        size = page_size(request.page_size)
        found = await self._outbox.list(request.state, before(request.page_token), size + 1)
        return ListDeliveriesResponse(
            deliveries=[delivery.message(with_content=False) for delivery in found[:size]],
            next_page_token=next_page_token([delivery.row for delivery in found], size),
        )

    async def RetryDelivery(self, request: RetryDeliveryRequest, call: Call) -> RetryDeliveryResponse:
        delivery = await self._outbox.get(request.delivery_id)
        self._connections.of(delivery.request.account)
        reopened = await to_its_end(self._reopen(delivery))
        return RetryDeliveryResponse(state=(reopened or delivery).state)

    async def _reopen(self, delivery: Delivery) -> Delivery | None:
        reopened = await self._outbox.reopen(delivery.id)
        if reopened:
            self._lanes.add(reopened)
        return reopened

    async def RecallDelivery(self, request: RecallDeliveryRequest, call: Call) -> RecallDeliveryResponse:
        delivery = await self._outbox.get(request.delivery_id)
        if delivery.row.state != State.RECALLED:
            await self._recall(delivery)
        return RecallDeliveryResponse(state=(await self._outbox.get(delivery.id)).state)

    async def _recall(self, delivery: Delivery) -> None:
        if delivery.row.state != State.DELIVERED:
            raise NotRecallable(f"the delivery is {State(delivery.row.state).name.lower()}, not delivered")
        if delivery.progress.carries or delivery.progress.carried_by:
            raise NotRecallable("the delivery went in one message with others, which would be taken back too")
        connection = self._connections.of(delivery.request.account)
        for sent in delivery.progress.sent:
            await connection.call(partial(connection.sender.recall, sent.message_id))
        await self._outbox.recalled(delivery.id)

    # --- Files --------------------------------------------------------------------------------------------

    async def FetchMedia(self, request: FetchMediaRequest, call: Call) -> AsyncIterator[FetchMediaResponse]:
        connection = self._connections.of(request.account)
        if not request.media_id:
            raise InvalidRequest("media_id is empty")
        fetched = await connection.call(partial(connection.sender.fetch_media, request.media_id))
        yield FetchMediaResponse(description=fetched.description)
        async for chunk in fetched.chunks:
            for start in range(0, len(chunk), _MAX_CHUNK_BYTES):
                yield FetchMediaResponse(chunk=chunk[start : start + _MAX_CHUNK_BYTES])

    async def UploadMedia(self, requests: AsyncIterator[UploadMediaRequest], call: Call) -> UploadMediaResponse:
        header = await _header(requests)
        check_upload(header)
        connection = self._connections.of(header.account)
        data = await _data(requests)
        uploaded = await connection.call(partial(connection.sender.upload_media, header.kind, header.description, data))
        response = UploadMediaResponse(media_id=uploaded.media_id)
        if uploaded.expires_at:
            response.expires_at.FromDatetime(uploaded.expires_at)
        return response

    # --- Accounts -----------------------------------------------------------------------------------------

    async def CheckAccount(self, request: CheckAccountRequest, call: Call) -> CheckAccountResponse:
        checked = await self._connections.of(request.account).check()
        response = CheckAccountResponse(connected=checked.error is None)
        if checked.error is not None:
            response.error_code = checked.error.metadata.get("error_code", "")
            response.advice = str(checked.error)
        response.checked_at.FromNanoseconds(int(checked.at * 1e9))
        return response

    async def ListCallbackSources(self, request: ListCallbackSourcesRequest, call: Call) -> ListCallbackSourcesResponse:
        connection = self._connections.of(request.account)
        return ListCallbackSourcesResponse(networks=await connection.call(connection.sender.callback_sources))

    async def GetMember(self, request: GetMemberRequest, call: Call) -> GetMemberResponse:
        connection = self._connections.of(request.account)
        if not request.member_id:
            raise InvalidRequest("member_id is empty")
        return GetMemberResponse(department_ids=await connection.departments_of(request.member_id))


async def _header(requests: AsyncIterator[UploadMediaRequest]) -> UploadMediaHeader:
    async for request in requests:
        if request.HasField("header"):
            return request.header
        break
    raise InvalidRequest("the first request must be a header")


async def _data(requests: AsyncIterator[UploadMediaRequest]) -> bytes:
    data = bytearray()
    async for request in requests:
        if not request.HasField("chunk"):
            raise InvalidRequest("every request after the header must be a chunk")
        data += request.chunk
        if len(data) > _MAX_UPLOAD_BYTES:
            raise InvalidMedia(f"the file is larger than {_MAX_UPLOAD_BYTES >> 20} MB, the most that can be uploaded")
    return bytes(data)
