"""The WeCom platform as an app sees it: for trying the assistant without a company, and for tests.

It seals and opens with code of its own (`envelope`, on another cryptography library than crypto.py), so that an
error there cannot hide here. `application` plays one company with one app: the API below /cgi-bin, its own API
below /simulator, and a page to chat in at /.
"""

import secrets
import string
import time
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from assistant import plugin
from plugins.channels.wecom.simulator import control, qyapi
from plugins.channels.wecom.simulator.callbacks import Sealer
from plugins.channels.wecom.simulator.company import Company, new_message_id
from plugins.channels.wecom.simulator.kinds import KINDS
from plugins.channels.wecom.simulator.rules import Faults

_KEY_CHARACTERS = string.ascii_letters + string.digits
_LARGEST_REQUEST_BYTES = 21 * 2**20  # a file of 20 MB and the form around it


class Simulator(plugin.Simulator):
    """One app of one company. Settings: corpid, token, aeskey; for `application` also secret and agentid."""

    @classmethod
    def credentials(cls) -> dict[str, Any]:
        """Settings of a new app in a new company, random."""
        return {
            "corpid": "ww" + secrets.token_hex(8),
            "secret": _random_word(43),
            "token": _random_word(32),
            "aeskey": _random_word(43),
            "agentid": 1_000_002 + secrets.randbelow(1000),
        }

    def __init__(self, settings: Mapping[str, Any], clock: Callable[[], float] = time.time) -> None:
        """Raises ValueError if the aeskey is none. `clock` gives Unix time in seconds."""
        self._settings = settings
        self._clock = clock
        self._sealer = Sealer(
            corpid=str(settings["corpid"]),
            token=str(settings["token"]),
            aeskey=str(settings["aeskey"]),
            agentid=str(settings.get("agentid") or ""),
            clock=clock,
        )

    def callback(self, text: str, member: str) -> tuple[plugin.Callback, str]:
        """A callback that brings a text of a member, signed and sealed now, and its MsgId."""
        message_id = new_message_id()
        return self._sealer.seal(KINDS["text"], member, message_id, {"Content": text}, Faults()), message_id

    def read_reply(self, body: bytes) -> str | None:
        """The reply's text, or "[kind] …" for other kinds; None if there is none. Raises ValueError if it is forged."""
        message = self._sealer.read_reply(body)
        return None if message is None else message.text

    def application(self, callback_url: str) -> web.Application:
        """The company with its app, which is called back at `callback_url`."""
        company = Company(self._settings, self._sealer, callback_url, self._clock)
        app = web.Application(client_max_size=_LARGEST_REQUEST_BYTES)
        app.on_startup.append(company.open)
        app.on_shutdown.append(company.close)
        app.add_subapp("/cgi-bin", qyapi.application(company, self._clock))
        app.add_subapp("/simulator", control.application(company))
        app.router.add_get("/", control.page)
        app.router.add_static("/page", control.PAGE)
        return app


def _random_word(length: int) -> str:
    return "".join(secrets.choice(_KEY_CHARACTERS) for _ in range(length))
