"""What both sides of a connection agree on."""

from collections.abc import Callable

from google.protobuf.message import Message

from assistant.errors import PayloadTooLarge

_LENGTH_DELIMITED = 2
"""The wire type of messages, strings and bytes."""

MAX_MESSAGE_BYTES = 1 << 20
"""The largest request or response."""

REQUEST_ID = "x-request-id"
"""The metadata key of the request id."""

STATUS_DETAILS = "grpc-status-details-bin"
"""The metadata key of the serialised google.rpc.Status."""

OPTIONS: tuple[tuple[str, int], ...] = (
    # Room for the frame around the largest message, and for a batch to which the largest was added last.
    ("grpc.max_receive_message_length", 2 * MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", 2 * MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 64 << 10),
    ("grpc.absolute_max_metadata_size", 64 << 10),
)
"""Options of every channel and server."""


def checked(method: str, what: str, message: bytes) -> bytes:
    """The serialised message, if it may travel. Raises PayloadTooLarge."""
    if len(message) > MAX_MESSAGE_BYTES:
        raise PayloadTooLarge(
            f"the {what} of {method} has {len(message)} bytes; at most {MAX_MESSAGE_BYTES} may travel"
        )
    return message


def part(message: type[Message], name: str) -> Callable[[bytes], bytes]:
    """How the serialised value of a field becomes a part of its serialised message: joined parts are merged.

    It is for fields that hold messages, and spares parsing and writing again what is at hand as bytes.
    """
    tag = _varint(message.DESCRIPTOR.fields_by_name[name].number << 3 | _LENGTH_DELIMITED)

    def write(value: bytes) -> bytes:
        return tag + _varint(len(value)) + value

    return write


def _varint(number: int) -> bytes:
    """Seven bits to a byte, the lowest first; all but the last have the eighth bit set."""
    written = bytearray()
    while number > 0x7F:
        written.append(number & 0x7F | 0x80)
        number >>= 7
    written.append(number)
    return bytes(written)
