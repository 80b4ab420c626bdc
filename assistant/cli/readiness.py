"""Whether a process is ready for work."""

import http.client
import socket
from urllib.parse import urlsplit

_PATIENCE_S = 1.0


def is_ready(question: str) -> bool:
    """Ask once: `grpc://host:port` for the health of a service, or an HTTP address that answers 200."""
    where = urlsplit(question)
    host, port = where.hostname or "", where.port or 0
    try:
        if where.scheme == "grpc":
            return _is_serving(host, port)
        connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE_S)
        try:
            connection.request("GET", where.path)
            return connection.getresponse().status == http.client.OK
        finally:
            connection.close()
    except (OSError, http.client.HTTPException):
        return False


def _is_serving(host: str, port: int) -> bool:
    socket.create_connection((host, port), _PATIENCE_S).close()  # cheaper than a channel, while nobody listens
    import grpc  # a quarter of a second that other commands need not spend
    from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

    with grpc.insecure_channel(f"{host}:{port}") as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check", HealthCheckRequest.SerializeToString, HealthCheckResponse.FromString
        )
        try:
            answer = check(HealthCheckRequest(), timeout=_PATIENCE_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == HealthCheckResponse.SERVING)
