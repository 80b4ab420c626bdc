"""The microkernel that every process shares. It imports no service, and no plugin by name."""

import os

# gRPC can poll its sockets in threads of its own ("event engine") or in the thread that waits for its events anyway.
# Python's asyncio has that thread in any case, so an engine only adds a hand-over to every message: 265 against
# 155 us of CPU for a message there and back. Here, since gRPC reads it once, when it is first imported.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener,-event_engine_callback_cq")
