"""Who may call what: decided here, whichever way a call comes.

A caller is known by the URI in its certificate, `spiffe://ai-assistant/<name>`. Without certificates nobody can
be told apart, and everybody may call everything: then the network has to keep strangers out.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from grpc_health.v1 import health_pb2

from assistant import dispatch, tls
from assistant.dispatch import Call, Method, Servicers
from assistant.errors import CallerNotPermitted

Callers = Mapping[str, str]
"""Full name of a service, or of one method of it -> names of those who may call, with commas between.

The entry of a method wins over that of its service. Without either, nobody may call it.
"""

_HEALTH: Any = health_pb2.DESCRIPTOR.services_by_name["Health"]
_PREFIX = tls.uri("")


class Access:
    """The methods of a server as each caller finds them. `callers` None: everybody may call everything."""

    def __init__(self, servicers: Servicers, callers: Callers | None) -> None:
        self._servicers = servicers
        self._callers = callers
        self._methods = dispatch.methods(servicers)
        self._by_caller: dict[str, Mapping[str, Method]] = {}

    def all(self) -> Mapping[str, Method]:
        """Every method by path, with nobody refused."""
        return self._methods

    def methods(self, context: Any) -> Mapping[str, Method]:
        """All methods by path, for whoever called with this context: those that it may not call refuse."""
        if self._callers is None:
            return self._methods
        caller = _caller(context)
        found = self._by_caller.get(caller)
        if found is None:
            found = self._by_caller[caller] = self._found_by(caller, self._callers)
        return found

    def _found_by(self, caller: str, callers: Callers) -> Mapping[str, Method]:
        refusing = dispatch.methods(dict.fromkeys(self._servicers, _Refusing(caller)))
        permitted = {
            "/{}/{}".format(*method.full_name.rsplit(".", 1))
            for service in self._servicers
            for method in service.methods
            if _permitted(caller, service, method, callers)
        }
        return {path: method if path in permitted else refusing[path] for path, method in self._methods.items()}


def _permitted(caller: str, service: ServiceDescriptor, method: MethodDescriptor, callers: Callers) -> bool:
    if service is _HEALTH:
        return True
    names = callers.get(method.full_name, callers.get(service.full_name, ""))
    return caller in {name.strip() for name in names.split(",")} - {""}


def caller(context: Any) -> str:
    """Who called with this context, for records: by name, or where it came from if nothing proves who it is."""
    if name := _caller(context):
        return name
    kind, _, address = context.peer().partition(":")
    where = unquote(address.rpartition(":")[0]).strip("[]")
    local = kind == "unix" or where == "::1" or where.startswith("127.")
    return f"unauthenticated ({'loopback' if local else where})"


def _caller(context: Any) -> str:
    """The name in the certificate of whoever calls. Empty: it has none of ours."""
    for value in context.auth_context().get("peer_spiffe_id", ()):
        identity = value.decode()
        if identity.startswith(_PREFIX):
            return str(identity.removeprefix(_PREFIX))
    return ""


class _Refusing:
    """A servicer of whose methods a caller may call none."""

    def __init__(self, caller: str) -> None:
        self._caller = caller

    def __getattr__(self, name: str) -> Callable[[object, Call], NoReturn]:
        return self._refuse

    def _refuse(self, request: object, call: Call) -> NoReturn:
        who = self._caller or "a caller whose certificate does not name a process of this mesh"
        raise CallerNotPermitted(f"{who} may not call {call.method}: the setting `callers` of the service says who may")
