"""The process that holds the callback keys: `python -m crypto_svc`."""

import asyncio

from assistant import plugin, telemetry, tls
from assistant.api.crypto.v1.crypto_pb2 import DESCRIPTOR
from assistant.audit import Audit
from assistant.server import Server, run, serve
from assistant.settings import Source
from crypto_svc.keyring import AccountName, Keyring
from crypto_svc.service import CryptoService
from crypto_svc.settings import CryptoSettings

_SERVICE = DESCRIPTOR.services_by_name["CryptoService"]
_KEY_METHODS = [f"{_SERVICE.full_name}.{name}" for name in ("ListKeys", "AddKey", "RetireKey")]


def main() -> None:
    """Serve until told to stop."""
    telemetry.start("crypto_svc")
    run(_main())


async def _main() -> None:
    source = Source.load()
    settings = source.read(CryptoSettings, "crypto")
    keyring = Keyring(settings.keys_file, _accounts(source), Audit("crypto_svc"))
    server = Server(
        {_SERVICE: CryptoService(keyring, settings.max_age_s)},
        listen=settings.listen,
        listen_setting="crypto.listen",
        admin=settings.admin,
        admin_setting="crypto.admin",
        identity=tls.identity(source, "crypto_svc"),
        callers={_SERVICE.full_name: settings.callers, **dict.fromkeys(_KEY_METHODS, settings.key_callers)},
    )
    server.health.set(_SERVICE.full_name, len(keyring) > 0)
    following = asyncio.create_task(keyring.follow())
    await serve(server)
    following.cancel()


def _accounts(source: Source) -> dict[AccountName, plugin.Crypto]:
    """The crypto facet of every configured account. A channel without accounts is not even imported."""
    return {
        (name, account): plugin.load("channels", name, "crypto")(settings)
        for name, channel in plugin.channels().items()
        for account, settings in source.accounts(channel.crypto, name, channel.settings()).items()
    }


if __name__ == "__main__":
    main()
