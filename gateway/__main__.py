"""Starts the gateway: gunicorn with one event-loop worker, on the public and on the admin address."""

import socket
import sys
from typing import Any

from gunicorn.app.base import BaseApplication
from uvicorn_worker import UvicornWorker

from assistant import ports, telemetry, tracing
from assistant.errors import InvalidSetting
from assistant.settings import Address
from gateway.app import create_app
from gateway.connection import Connection
from gateway.loop import FlaskOnLoop
from gateway.settings import Configuration


class Worker(UvicornWorker):  # type: ignore[misc]  # gunicorn and its workers are not typed
    """One event loop: uvloop, httptools, and a lane for callbacks; our own log lines instead of access lines."""

    CONFIG_KWARGS = {  # noqa: RUF012 - gunicorn's way of configuring a worker
        "loop": "uvloop",
        "http": Connection,
        "lifespan": "on",
        "access_log": False,
        "server_header": False,
        "date_header": False,  # Envoy's to say
        "proxy_headers": False,  # who calls is Envoy's to log
        "timeout_keep_alive": 75,  # longer than Envoy keeps an idle connection, so that Envoy closes first
    }


class Server(BaseApplication):  # type: ignore[misc]
    """gunicorn, told everything by us and nothing by files or the environment."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
        super().__init__()

    def load_config(self) -> None:
        """Set what gunicorn needs to know."""
        gateway = self._configuration.gateway
        options: dict[str, Any] = {
            "bind": [str(gateway.listen), str(gateway.admin)],
            "workers": 1,
            "worker_class": Worker,
            "graceful_timeout": 10,
            "timeout": 60,
            "control_socket_disable": True,
            "logger_class": "gunicorn.glogging.Logger",
            "loglevel": "warning",
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> FlaskOnLoop:
        """Runs in the worker, after the fork, which the thread that writes log lines did not outlive."""
        telemetry.start("gateway")
        return create_app(self._configuration)


def _check_free(setting: str, address: Address) -> None:
    """gunicorn would try for seconds, and name no setting. Raises InvalidSetting."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address.host else socket.AF_INET) as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gunicorn does
            tried.bind((address.host, address.port))
    except OSError as error:
        raise ports.cannot_listen(address, error.strerror or "", setting) from error


def main() -> None:
    """Run until SIGTERM."""
    telemetry.start("gateway")
    try:
        configuration = Configuration.load()
        tracing.check()
        _check_free("gateway.listen", configuration.gateway.listen)
        _check_free("gateway.admin", configuration.gateway.admin)
    except InvalidSetting as error:
        sys.exit(f"gateway cannot start:\n{error}")
    Server(configuration).run()


if __name__ == "__main__":
    main()
