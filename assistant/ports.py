"""The ports of a mesh, in one place. One setting moves them all, so that meshes run side by side.

All lie below the ephemeral range (32768 and up) on purpose: a port there may be taken by an outgoing
connection just when a service wants to listen on it.
"""

import os

from assistant.errors import InvalidSetting

EDGE_HTTP = 8080
EDGE_HTTPS = 8443
EDGE_MESH = 9443
GATEWAY = 7000
CRYPTO = 7001
NLP = 7002
REPLY = 7003
GATEWAY_GRPC = 7004
SIMULATOR = 7050
ENVOY_ADMIN = 9901

ADMIN_OFFSET = 100
"""A service's metrics are served on its own port plus this."""

OFFSET_VARIABLE = "AI_ASSISTANT_PORT_OFFSET"


def moved(port: int) -> int:
    """The port as it is used here: moved by AI_ASSISTANT_PORT_OFFSET. Raises InvalidSetting."""
    text = os.environ.get(OFFSET_VARIABLE, "0")
    try:
        offset = int(text)
    except ValueError:
        raise InvalidSetting(f"{OFFSET_VARIABLE} is {text!r}: give a whole number, such as 1000") from None
    if not 1 <= port + offset <= 65535:
        raise InvalidSetting(f"{OFFSET_VARIABLE} is {text!r}: port {port} would become {port + offset}")
    return port + offset


def cannot_listen(address: str, why: str, setting: str) -> InvalidSetting:
    """What to raise where an address cannot be had; `setting` is where it comes from."""
    return InvalidSetting(
        f"cannot listen on {address}: {why}. Free it, set `{setting}` to another address, or move all ports with "
        f"{OFFSET_VARIABLE}"
    )
