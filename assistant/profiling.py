"""Profiles of a running process, for pprof. Nothing is measured, and nothing costs, until somebody asks.

    go tool pprof 'http://127.0.0.1:7100/debug/pprof/profile?seconds=10'

A profile shows how the process works inside, so it is given to callers on the same machine only.
"""

import gzip
import ipaddress
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from types import FrameType
from typing import NamedTuple
from urllib.parse import parse_qs

from assistant.api.pprof.v1.profile_pb2 import Profile

PATH = "/debug/pprof/"
LONGEST_S = 60.0
_DEFAULT_S = 10.0
_EVERY_S = 0.01
_HEAP_DEPTH = 32
_one_at_a_time = threading.Lock()


class Page(NamedTuple):
    """What an HTTP request is answered."""

    status: int
    content_type: str
    body: bytes


class _Place(NamedTuple):
    """A line of code."""

    function: str
    file: str
    line: int


class _Stack(NamedTuple):
    thread: str
    places: tuple[_Place, ...]
    """Innermost first."""


def page(path: str, query: str, peer: str) -> Page:
    """The page at `path`; waits for as long as the profile takes. `peer` is the IP address of whoever asks."""
    profile = _PROFILES.get(path.removeprefix(PATH))
    if profile is None:
        return _told(HTTPStatus.NOT_FOUND, f"There are {', '.join(PATH + name for name in _PROFILES)}.")
    if not _is_local(peer):
        return _told(HTTPStatus.FORBIDDEN, "Profiles are given to callers on the same machine only.")
    try:
        seconds = float(parse_qs(query).get("seconds", [str(_DEFAULT_S)])[0])
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_S:
        return _told(HTTPStatus.BAD_REQUEST, f"seconds must be a number above 0, at most {LONGEST_S:.0f}.")
    if not _one_at_a_time.acquire(blocking=False):
        return _told(HTTPStatus.CONFLICT, "Another profile is being made: ask again when it is done.")
    try:
        return Page(HTTPStatus.OK, "application/octet-stream", gzip.compress(profile(seconds).SerializeToString()))
    finally:
        _one_at_a_time.release()


def cpu(seconds: float) -> Profile:
    """Where the threads of this process are, 100 times a second, and the CPU time that each of them took."""
    began_ns, until = time.time_ns(), time.monotonic() + seconds
    cpu_ns: Counter[_Stack] = Counter()
    wall_ns: Counter[_Stack] = Counter()
    clocks = {thread.native_id: _cpu_time_ns(thread.native_id) for thread in threading.enumerate()}
    seen_ns = time.monotonic_ns()
    while time.monotonic() < until:
        time.sleep(_EVERY_S)
        frames, now_ns = sys._current_frames(), time.monotonic_ns()
        for thread in threading.enumerate():
            if thread.ident == threading.get_ident() or thread.ident not in frames:
                continue
            used_ns = _cpu_time_ns(thread.native_id)
            stack = _Stack(thread.name, _places(frames[thread.ident]))
            wall_ns[stack] += now_ns - seen_ns
            cpu_ns[stack] += used_ns - clocks.get(thread.native_id, used_ns)
            clocks[thread.native_id] = used_ns
        seen_ns = now_ns
    samples = {stack: (wall, cpu_ns[stack]) for stack, wall in wall_ns.items()}
    profile = _profile((("wall", "nanoseconds"), ("cpu", "nanoseconds")), samples, began_ns)
    profile.period = int(_EVERY_S * 1e9)
    profile.period_type.CopyFrom(profile.sample_type[0])
    return profile


def heap(seconds: float) -> Profile:
    """What was allocated within so many seconds and is still in use at their end.

    Meanwhile every allocation takes many times as long. If the process was started with PYTHONTRACEMALLOC=32, it is
    what was allocated since then, at once.
    """
    began_ns = time.time_ns()
    traced_already = tracemalloc.is_tracing()
    if not traced_already:
        tracemalloc.start(_HEAP_DEPTH)
        time.sleep(seconds)
    snapshot = tracemalloc.take_snapshot()
    if not traced_already:
        tracemalloc.stop()
    samples = {}
    for found in snapshot.statistics("traceback"):
        places = (_Place(f"{frame.filename}:{frame.lineno}", frame.filename, frame.lineno) for frame in found.traceback)
        samples[_Stack("", tuple(places)[::-1])] = (found.count, found.size)
    return _profile((("inuse_objects", "count"), ("inuse_space", "bytes")), samples, began_ns)


_PROFILES: Mapping[str, Callable[[float], Profile]] = {"profile": cpu, "heap": heap}


def _told(status: HTTPStatus, text: str) -> Page:
    return Page(status, "text/plain; charset=utf-8", f"{text}\n".encode())


def _is_local(peer: str) -> bool:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _cpu_time_ns(thread: int | None) -> int:
    """CPU time of a thread of this process, by its number in the kernel; 0 if it is gone.

    Linux makes a thread's clock of its number (clock_getcpuclockid(3)). pthread_getcpuclockid(3), which Python has,
    may crash with a thread that has just ended.
    """
    if thread is None:
        return 0
    try:
        return time.clock_gettime_ns((~thread << 3) | 6)
    except OSError:
        return 0


def _places(frame: FrameType | None) -> tuple[_Place, ...]:
    places = []
    while frame is not None:
        code = frame.f_code
        places.append(_Place(code.co_qualname, code.co_filename, frame.f_lineno or code.co_firstlineno))
        frame = frame.f_back
    return tuple(places)


def _profile(types: Iterable[tuple[str, str]], samples: Mapping[_Stack, tuple[int, int]], began_ns: int) -> Profile:
    profile = Profile(time_nanos=began_ns, duration_nanos=time.time_ns() - began_ns)
    texts: dict[str, int] = {"": 0}
    functions: dict[tuple[str, str], int] = {}
    locations: dict[_Place, int] = {}

    def text(value: str) -> int:
        return texts.setdefault(value, len(texts))

    def function(place: _Place) -> int:
        key = place.function, place.file
        if key not in functions:
            functions[key] = len(functions) + 1
            name, file = text(place.function), text(place.file)
            profile.function.add(id=functions[key], name=name, system_name=name, filename=file)
        return functions[key]

    def location(place: _Place) -> int:
        if place not in locations:
            locations[place] = len(locations) + 1
            profile.location.add(id=locations[place], mapping_id=1).line.add(
                function_id=function(place), line=place.line
            )
        return locations[place]

    for kind, unit in types:
        profile.sample_type.add(type=text(kind), unit=text(unit))
    profile.mapping.add(
        id=1, filename=text(sys.executable), has_functions=True, has_filenames=True, has_line_numbers=True
    )
    for stack, values in samples.items():
        sample = profile.sample.add(location_id=[location(place) for place in stack.places], value=values)
        if stack.thread:
            sample.label.add(key=text("thread"), str=text(stack.thread))
    profile.string_table.extend(texts)
    return profile
