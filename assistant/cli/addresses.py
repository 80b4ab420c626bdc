"""Addresses: how to reach them, and who has taken them."""

import socket
from pathlib import Path

from assistant.settings import Address

_LISTENING = "0A"  # the kernel's code of the state, in /proc/net/tcp


def reachable(address: Address) -> Address:
    """Where to call what listens on `address`: on all interfaces means on this machine too."""
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - compared, not listened on
    return Address(f"{everywhere.get(address.host, address.host)}:{address.port}")


def is_free(address: Address) -> bool:
    """Whether a server could listen there now."""
    family, *_, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: old connections do not count
        try:
            probe.bind(where)
            probe.listen()  # a second bind alone is allowed to those who share the port
        except OSError:
            return False
    return True


def occupant(port: int) -> str:
    """Which process listens on a port, for people: its number and command. Empty if it cannot be told."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(str(file.readlink()) in sockets for file in (process / "fd").iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"process {process.name} ({command[:80]})"
        except OSError:  # it ended meanwhile, or is somebody else's
            continue
    return ""


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            columns = line.split()
            if columns[3] == _LISTENING and int(columns[1].rpartition(":")[2], 16) == port:
                inodes.add(columns[9])
    return inodes
