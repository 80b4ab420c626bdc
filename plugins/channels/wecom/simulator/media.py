"""Temporary files of the company (90253, 90254). In memory and bounded."""

import secrets
import struct
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from plugins.channels.wecom.simulator.errors import ApiError

LIFETIME_S = 3 * 24 * 3600
"""A file is gone after 3 days."""
STORE_BYTES = 128 * 2**20
"""So much is kept; the oldest goes first."""
SMALLEST_BYTES = 6
LARGEST_BYTES = {"image": 10 * 2**20, "voice": 2 * 2**20, "video": 10 * 2**20, "file": 20 * 2**20}


@dataclass(frozen=True)
class File:
    """One file."""

    kind: str
    name: str
    content_type: str
    data: bytes
    created_at: float


class Media:
    """The files that were uploaded or sent by members."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._files: OrderedDict[str, File] = OrderedDict()
        self._size_bytes = 0

    def add(self, kind: str, name: str, content_type: str, data: bytes) -> tuple[str, File]:
        """Keep a file; its media_id. Raises ApiError for a kind or size that the platform does not take."""
        if kind not in LARGEST_BYTES:
            raise ApiError(40005, f"invalid type: {', '.join(LARGEST_BYTES)} are taken")
        if len(data) < SMALLEST_BYTES:
            raise ApiError(40006, "invalid media size")
        if len(data) > LARGEST_BYTES[kind]:
            raise ApiError(45001, "media size out of limit")
        media_id, file = secrets.token_urlsafe(48), File(kind, name, content_type, data, self._clock())
        self._files[media_id] = file
        self._size_bytes += len(data)
        while self._size_bytes > STORE_BYTES:
            self._size_bytes -= len(self._files.popitem(last=False)[1].data)
        return media_id, file

    def get(self, media_id: str) -> File:
        """Raises ApiError if there is no such file, or no longer."""
        file = self._files.get(media_id)
        if file is None or file.created_at + LIFETIME_S <= self._clock():
            raise ApiError(40007, "invalid media_id")
        return file

    def has(self, media_id: str) -> bool:
        """Whether `get` gives it."""
        try:
            self.get(media_id)
        except ApiError:
            return False
        return True


def sample(kind: str) -> tuple[str, str, bytes]:
    """Name, media type and bytes of a file as a member may send it."""
    if kind == "image":
        return "sample.png", "image/png", _sample_picture(96)
    if kind == "voice":
        return "sample.amr", "audio/amr", b"#!AMR\n" + bytes(26)
    return "sample.mp4", "video/mp4", b"\x00\x00\x00\x18ftypmp42" + bytes(12)


def _sample_picture(size: int) -> bytes:
    """A PNG, `size` pixels wide and high, with a gradient."""
    rows = b"".join(b"\x00" + bytes(c for x in range(size) for c in (40 + x, 90 + y, 220)) for y in range(size))

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
