"""Log lines and the admin server, as a process shows them."""

import socket
import subprocess
import sys
import urllib.error
import urllib.request

import orjson
import pytest

from assistant.errors import InvalidSetting
from assistant.settings import Address
from assistant.telemetry import serve_admin

START = "from assistant import telemetry; telemetry.start('probe');"


def lines_of(program: str) -> list[dict[str, object]]:
    """What a process that runs `program` wrote."""
    done = subprocess.run([sys.executable, "-c", START + program], capture_output=True, check=False, timeout=60)
    return [orjson.loads(line) for line in done.stdout.splitlines()]


def test_a_line_says_when_who_what_and_for_which_message():
    """A line has time, level, service, event, both ids and the fields given; it is written at the latest at exit."""
    (line,) = lines_of(
        "telemetry.request_id.set('r-1'); telemetry.message_id.set('loopback:default:m-1');"
        "telemetry.info('delivered', attempts=2)"
    )
    assert line.pop("time")
    expected = {"level": "info", "service": "probe", "event": "delivered", "request_id": "r-1", "attempts": 2}
    assert line == expected | {"message_id": "loopback:default:m-1"}


def test_a_line_is_written_soon():
    """A process that is killed has written the lines that are older than a moment, and warnings at once."""
    kill = "import os, signal, time; {} os.kill(os.getpid(), signal.SIGKILL)"
    assert lines_of(kill.format("telemetry.warning('odd');"))[0]["event"] == "odd"
    assert lines_of(kill.format("telemetry.info('usual'); time.sleep(2);"))[0]["event"] == "usual"


def test_no_line_is_lost_between_threads():
    """Lines written by many threads at once all arrive, whole."""
    write = "import threading; f = lambda: [telemetry.info('x', n=n) for n in range(2000)];"
    run = "t = [threading.Thread(target=f) for _ in range(8)]; [x.start() for x in t]; [x.join() for x in t]"
    assert len(lines_of(write + run)) == 16_000


def test_an_unknown_exceptions_text_is_not_written():
    """Of an exception that is not ours only its type and where it was raised are logged."""
    program = "\ntry:\n  raise ValueError('the secret')\nexcept ValueError as e:\n  telemetry.error('failed', e, n=1)"
    (line,) = lines_of(program)
    assert (line["exception"], line["n"]) == ("ValueError", 1)
    assert line["stack"]
    assert "secret" not in str(line)


def test_an_error_of_ours_is_written_with_its_message():
    """An AssistantError is logged with reason, message and metadata."""
    program = "from assistant import errors; telemetry.error('failed', errors.UnknownMedia('gone', media_id='m1'))"
    (line,) = lines_of(program)
    assert (line["reason"], line["message"], line["media_id"]) == ("UNKNOWN_MEDIA", "gone", "m1")


def test_what_libraries_log_has_our_form():
    """Warnings of libraries are lines like ours; below that they are silent; texts of exceptions are left out."""
    program = "import logging; log = logging.getLogger('lib'); log.info('no'); log.warning('be careful')\n"
    program += "try:\n  raise ValueError('the secret')\nexcept ValueError:\n  log.exception('failed\\nthe secret')"
    warned, failed = lines_of(program)
    assert (warned["level"], warned["logger"], warned["message"]) == ("warning", "lib", "be careful")
    assert (failed["message"], failed["exception"]) == ("failed", "ValueError")
    assert "secret" not in str(failed)


def test_a_stray_exception_is_logged_without_its_text():
    """An exception of a task that nobody awaits is a line, by type and place."""
    program = """
import asyncio, gc
from assistant import server
async def fail(): raise ValueError('the secret')
async def main():
    task = asyncio.create_task(fail()); await asyncio.sleep(0); await asyncio.sleep(0)
    del task; gc.collect()
server.run(main())
"""
    (line,) = lines_of(program)
    assert (line["event"], line["exception"]) == ("stray_exception", "ValueError")
    assert "secret" not in str(line)


def test_a_main_that_raises_an_error_of_ours_ends_with_1():
    """`run` logs an AssistantError of the main coroutine and ends the process with status 1."""
    program = START + (
        "from assistant import errors, server\n"
        "async def main(): raise errors.InvalidSetting('crypto.listen is wrong')\n"
        "server.run(main())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False, timeout=60)
    assert done.returncode == 1
    assert orjson.loads(done.stdout)["message"] == "crypto.listen is wrong"


def test_the_admin_server_shows_metrics_and_health():
    """/metrics is Prometheus's text; a check is 200 while it holds and 503 else; anything else is 404."""
    healthy = True
    address, admin = _admin(lambda: healthy)
    try:
        assert b"python_info" in urllib.request.urlopen(f"http://{address}/metrics").read()
        assert urllib.request.urlopen(f"http://{address}/healthz").status == 200
        healthy = False
        for path, status in (("/healthz", 503), ("/", 404)):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"http://{address}{path}")
            assert caught.value.code == status
        with pytest.raises(InvalidSetting, match=f"{address}.* set `crypto.admin` to another address"):
            serve_admin(address, {}, "crypto.admin")
    finally:
        admin.shutdown()
        admin.server_close()


def _admin(healthy):
    """An admin server on a free port; asks again if another process took it in between."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = Address(f"127.0.0.1:{free.getsockname()[1]}")
        try:
            return address, serve_admin(address, {"/healthz": healthy}, "crypto.admin")
        except InvalidSetting:
            continue
