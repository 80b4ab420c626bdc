"""What both sides of a connection agree on."""

from assistant.errors import PayloadTooLarge

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
