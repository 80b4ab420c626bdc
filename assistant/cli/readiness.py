"""Whether a process is ready for work."""

import http.client
from urllib.parse import urlsplit

_PATIENCE_S = 1.0


def is_ready(question: str) -> bool:
    """Ask once: an HTTP address, which answers 200 if it is."""
    where = urlsplit(question)
    try:
        connection = http.client.HTTPConnection(where.hostname or "", where.port or 0, timeout=_PATIENCE_S)
        try:
            connection.request("GET", where.path)
            return connection.getresponse().status == http.client.OK
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return False
