"""Profiles of this process, read back as pprof reads them."""

import gzip
import threading
from collections import Counter

import pytest

from assistant import profiling
from assistant.api.pprof.v1.profile_pb2 import Profile

HERE = "127.0.0.1"


def profile(name: str, seconds: float) -> Profile:
    page = profiling.page(profiling.PATH + name, f"seconds={seconds}", HERE)
    assert (page.status, page.content_type) == (200, "application/octet-stream")
    return Profile.FromString(gzip.decompress(page.body))


def by_function(profile: Profile) -> Counter[str]:
    """The last value of all samples, which is the one that pprof shows first, for each function of their stacks."""
    names = {function.id: profile.string_table[function.name] for function in profile.function}
    functions = {location.id: names[location.line[0].function_id] for location in profile.location}
    total: Counter[str] = Counter()
    for sample in profile.sample:
        for name in {functions[location] for location in sample.location_id}:
            total[name] += sample.value[-1]
    return total


def test_a_cpu_profile_tells_who_works_from_who_waits() -> None:
    """CPU time is that of the function that burns it, whatever other threads wait for meanwhile."""
    over = threading.Event()

    def burn() -> None:
        while not over.is_set():
            sum(range(1000))

    def wait() -> None:
        over.wait()

    threads = [threading.Thread(target=work, name=work.__name__) for work in (burn, wait)]
    for thread in threads:
        thread.start()
    try:
        made = profile("profile", 0.5)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    cpu_ns = by_function(made)
    burned, waited = (next(n for name, n in cpu_ns.items() if name.endswith(f"<locals>.{f}")) for f in ("burn", "wait"))
    assert burned > 0
    assert burned > 10 * waited
    assert made.string_table[made.sample_type[-1].type] == "cpu"
    threads_seen = {made.string_table[label.str] for sample in made.sample for label in sample.label}
    assert {"burn", "wait"} <= threads_seen


def test_a_heap_profile_shows_what_was_kept() -> None:
    """Memory that is allocated meanwhile and kept appears with its size, at the line that allocated it."""
    kept: list[bytearray] = []
    over = threading.Event()

    def keep() -> None:
        while not over.wait(0.01):
            kept.append(bytearray(100_000))

    thread = threading.Thread(target=keep)
    thread.start()
    try:
        made = profile("heap", 0.5)
    finally:
        over.set()
        thread.join()
    ours = sum(size for place, size in by_function(made).items() if place.startswith(__file__))
    assert ours >= 100_000
    assert made.string_table[made.sample_type[-1].type] == "inuse_space"


@pytest.mark.parametrize("peer", ["10.0.0.7", "::ffff:10.0.0.7", "fe80::1", "", "localhost"])
def test_strangers_get_no_profile(peer: str) -> None:
    """Only a caller on the same machine, by its address, is given one."""
    assert profiling.page(profiling.PATH + "heap", "seconds=0.01", peer).status == 403


@pytest.mark.parametrize("peer", ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_local_callers_get_one(peer: str) -> None:
    """All spellings of the same machine are known."""
    assert profiling.page(profiling.PATH + "profile", "seconds=0.01", peer).status == 200


@pytest.mark.parametrize("seconds", ["0", "-1", "61", "nan", "inf", "many"])
def test_a_wrong_duration_is_refused(seconds: str) -> None:
    """It must be a number of seconds that somebody would wait."""
    page = profiling.page(profiling.PATH + "profile", f"seconds={seconds}", HERE)
    assert page.status == 400
    assert b"at most 60" in page.body


def test_what_is_no_profile_is_not_found() -> None:
    """The answer says what there is."""
    page = profiling.page(profiling.PATH + "goroutine", "", HERE)
    assert page.status == 404
    assert b"/debug/pprof/profile" in page.body


def test_there_is_one_profile_at_a_time() -> None:
    """A second one is refused while the first is made: together they would measure each other."""
    statuses: list[int] = []

    def insist() -> None:
        while not statuses or statuses[-1] != 200:
            statuses.append(profiling.page(profiling.PATH + "profile", "seconds=1", HERE).status)

    first = threading.Thread(target=insist)
    first.start()
    while (second := profiling.page(profiling.PATH + "profile", "seconds=0.01", HERE).status) == 200:
        assert first.is_alive()
    first.join()
    assert (second, statuses[-1]) == (409, 200)
