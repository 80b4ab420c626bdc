"""The same work by other assistants, as their makers publish them, each in an environment of its own.

AstrBot and LangBot acknowledge a callback and answer by the platform's API, so answers that reach the platform are
compared. They stand without an Envoy in front; we have one, and two durable writes besides.

Installing them takes minutes: `python -m tests.bench --only peers` does it once, into build/peers.
"""

import json
import os
import shutil
import statistics
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench import load
from tests.bench.measure import Processes
from tests.bench.sections import Run, Stage
from tests.bench.systems import Helper, Mesh, wait_until_answered
from tests.bench.table import Goal, number, table

ENVIRONMENTS = Path("build/peers")
_PYTHONS = ("python3.13", "python3.12", "python3")
_SETTLED_S = 3.0
_READY_WITHIN_S = 120.0
_CONNECTIONS = 32
_COMMAND = "!ping"
"""Everybody answers it: we and LangBot that we do not know it, AstrBot by an echo."""

# The clients that these products use have the vendor's address in their code. Only that is changed.
_SHIM = """
from wechatpy.enterprise import WeChatClient
WeChatClient.API_BASE_URL = "http://{platform}/cgi-bin/"
WeChatClient.fetch_access_token = lambda self: self._fetch_access_token(
    url="http://{platform}/cgi-bin/gettoken", params={{"corpid": self.corp_id, "corpsecret": self.secret}})
"""


class Peer:
    """A product in an environment of its own."""

    def __init__(self, name: str, folder: Path, url: str, path: str, command: list[str], **environ: str) -> None:
        self.name = name
        self.url = url
        self.path = path
        log = (folder / f"{name}.log").open("wb")
        self._process = subprocess.Popen(
            command, cwd=folder, env=os.environ | environ, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until_answered(int(url.rpartition(":")[2]), "/", within_s=_READY_WITHIN_S)
        except SystemExit:
            self.stop()
            raise

    def processes(self) -> Processes:
        """Its only one."""
        return {self.name: self._process.pid}

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def peers(run: Run) -> None:
    """Answers delivered per second, at 32 connections."""
    rates: dict[str, float] = {}
    with Stage() as stage:
        platform = stage.start(run.helper("platform", 0))
        with Stage() as ours_alone:
            ours = run.mesh("active", 0, f"http://{platform.address}", gateway={"held_callbacks": 0})
            ours_alone.start(ours)
            rates["mesh"] = _median_rate(run, ours, platform, load.PATH, 5_000)
        for name, start, most_per_s in (("astrbot", _astrbot, 1_500), ("langbot", _langbot, 100)):
            binary = _installed(name)
            if binary is None:
                run.say(f"{name} is left out: it could not be installed (see {ENVIRONMENTS / name}.log)")
                continue
            try:
                with Stage() as peer_alone:
                    peer = peer_alone.start(start(run, binary, platform))
                    rates[name] = _median_rate(run, peer, platform, peer.path, most_per_s)
            except SystemExit as error:
                run.say(f"{name} is left out: {error}")
    rows = [[name, number(rate), f"{rates['mesh'] / rate:.1f}×" if rate else "–"] for name, rate in rates.items()]
    run.say(f"Answers delivered per second, {_CONNECTIONS} connections\n\n" + table(["", "per second", "we are"], rows))
    for name, must, aim in (("astrbot", 10, 17), ("langbot", 200, 300)):
        if rates.get(name):
            ratio = rates["mesh"] / rates[name]
            ours_s, theirs = f"{number(rates['mesh'])}/s", f"{number(rates[name])}/s"
            title = f"delivered answers/s against {name}"
            run.goals.append(Goal(title, ours_s, theirs, ratio, must, aim, "×", more_is_better=True))


def _median_rate(run: Run, system: "Peer | Mesh", platform: Helper, path: str, most_per_s: int) -> float:
    """Answers that reached the platform per second, until the last one came."""
    load.send(system.url, run.callbacks(200, 200, path, _COMMAND), 4, 2)
    time.sleep(_SETTLED_S)
    return statistics.median(_rate(run, system, platform, path, most_per_s) for _ in range(run.rounds))


def _rate(run: Run, system: "Peer | Mesh", platform: Helper, path: str, most_per_s: int) -> float:
    seconds = max(run.seconds, 4)
    count = most_per_s * seconds
    callbacks = run.callbacks(
        count, count, path, _COMMAND
    )  # each from another member: nobody's limit per member decides
    before, began = _delivered(platform), time.monotonic()
    load.send(system.url, callbacks, _CONNECTIONS, seconds)
    found, last = _delivered(platform), time.monotonic()
    while time.monotonic() < last + _SETTLED_S:
        time.sleep(0.05)
        if (now := _delivered(platform)) > found:
            found, last = now, time.monotonic()
    return (found - before) / (last - began)


def _delivered(platform: Helper) -> int:
    count: int = platform.get("/delivered/count")["count"]
    return count


# --- The products -----------------------------------------------------------------------------------------


def _installed(name: str) -> Path | None:
    """The folder of its commands; None if it cannot be installed here."""
    environment = ENVIRONMENTS.absolute() / name
    python = next(filter(_runs, _PYTHONS), "python3")
    if not (environment / "installed").exists():
        environment.parent.mkdir(parents=True, exist_ok=True)
        with environment.with_suffix(".log").open("wb") as log:
            for command in ([python, "-m", "venv", str(environment)], [str(environment / "bin/pip"), "install", name]):
                if subprocess.run(command, stdout=log, stderr=log).returncode:
                    return None
        (environment / "installed").touch()
    return environment / "bin"


def _runs(python: str) -> bool:
    """Whether there is such a Python; a version manager's name may stand for one that is not chosen."""
    found = shutil.which(python)
    return found is not None and subprocess.run([found, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0


def _shim(binary: Path, platform: Helper) -> None:
    """Loaded at every start of this environment's Python."""
    packages = next((binary.parent / "lib").glob("python*/site-packages"))
    (packages / "bench_shim.py").write_text(_SHIM.format(platform=platform.address))
    (packages / "bench_shim.pth").write_text("import bench_shim\n")


def _astrbot(run: Run, binary: Path, platform: Helper) -> Peer:
    folder = run.folder / "astrbot"
    echo = folder / "data" / "plugins" / "echo"
    echo.mkdir(parents=True)
    _shim(binary, platform)
    subprocess.run([binary / "astrbot", "init"], cwd=folder, input=b"y\n" * 9, capture_output=True)
    port = 6195 + run.offset
    adapter = _wecom(run.credentials) | {
        "type": "wecom",
        "id": "wecom",
        "enable": True,
        "kf_name": "",
        "unified_webhook_mode": False,
        "callback_server_host": "127.0.0.1",
        "port": port,
        "api_base_url": f"http://{platform.address}/cgi-bin/",
    }
    settings = {
        "platform": [adapter],
        "dashboard": {"enable": False},
        "platform_settings": {"rate_limit": {"count": 0}},
    }
    (folder / "data" / "cmd_config.json").write_text(json.dumps(settings))
    (echo / "metadata.yaml").write_text("name: echo\nauthor: bench\ndesc: echo\nversion: 1.0.0\n")
    (echo / "main.py").write_text(_ASTRBOT_ECHO)
    return Peer("astrbot", folder, f"http://127.0.0.1:{port}", "/callback/command", [str(binary / "astrbot"), "run"])


def _wecom(credentials: Mapping[str, Any]) -> dict[str, str]:
    names = {"corpid": "corpid", "secret": "secret", "token": "token", "encoding_aes_key": "aeskey"}
    return {theirs: str(credentials[ours]) for theirs, ours in names.items()}


_ASTRBOT_ECHO = """
from astrbot.api.event import AstrMessageEvent, filter
from astrbot.api.star import Context, Star, register


@register("echo", "bench", "echo", "1.0.0")
class Echo(Star):
    @filter.event_message_type(filter.EventMessageType.ALL)
    async def echo(self, event: AstrMessageEvent):
        yield event.plain_result(f"{event.message_str} {event.message_obj.message_id}")
        event.stop_event()
"""


def _langbot(run: Run, binary: Path, platform: Helper) -> Peer:
    """Answers "!ping" by its command for unknown commands, plugins off: the shortest way through its pipeline."""
    folder = run.folder / "langbot"
    folder.mkdir()
    port = 5300 + run.offset
    environ = {
        "API__PORT": str(port),
        "SPACE__DISABLE_TELEMETRY": "true",
        "SPACE__DISABLE_MODELS_SERVICE": "true",
        "BOX__ENABLED": "false",
        "PLUGIN__ENABLE": "false",
        "CONCURRENCY__PIPELINE": "500",
        "CONCURRENCY__PENDING_QUERIES": "5000",
        "CONCURRENCY__PENDING_QUERIES_PER_WORKSPACE": "5000",
    }
    peer = Peer("langbot", folder, f"http://127.0.0.1:{port}", "", [str(binary / "langbot")], **environ)
    api = _Api(f"{peer.url}/api/v1")
    user = {"user": "bench@example.org", "password": "bench-password-1"}
    api.post("/user/init", user)
    api.token = api.post("/user/auth", user)["token"]
    api.post("/pipelines", {"name": "bench", "description": "", "is_default": True})
    config = {
        "corpid": run.credentials["corpid"],
        "secret": run.credentials["secret"],
        "token": run.credentials["token"],
        "EncodingAESKey": run.credentials["aeskey"],
        "contacts_secret": "",
        "api_base_url": f"http://{platform.address}/cgi-bin",
    }
    bot = {"name": "bench", "description": "", "adapter": "wecom", "enable": True, "adapter_config": config}
    peer.path = f"/bots/{api.post('/platform/bots', bot)['uuid']}"
    time.sleep(2)
    return peer


class _Api:
    def __init__(self, url: str) -> None:
        self._url = url
        self.token = ""

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.token}"}
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.loads(response.read())["data"]
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{self._url}{path} answered {error.code}: {error.read().decode()[:300]}") from None
