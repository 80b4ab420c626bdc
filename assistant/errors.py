"""The error tree, and its one table: class -> gRPC status, ErrorInfo reason, HTTP status.

One class for each thing a caller may do differently; the docstring says what to do. An error of this
tree travels between services by itself: the server writes it as a google.rpc.Status with an ErrorInfo,
the client raises the same class again. Anything else leaves a process as `Internal` with a fixed text,
since its own text may hold a secret.
"""

from typing import ClassVar

from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

DOMAIN = "ai-assistant"
"""`domain` of every ErrorInfo that we write."""

_MAX_MESSAGE_CHARACTERS = 1000  # a status travels in headers, whose size is limited


class AssistantError(Exception):
    """Something that means something to the caller.

    `message` is for a person who has to mend it: it names the thing and the fix, and never holds a secret
    or a message's text. `retry_after_s` says when another attempt makes sense, in seconds. `metadata` are
    short facts for programs.
    """

    code: ClassVar[StatusCode] = StatusCode.UNKNOWN
    http: ClassVar[int] = 500
    reason: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str = "", *, retry_after_s: float | None = None, **metadata: str) -> None:
        super().__init__(message)
        self.message = message or (self.__doc__ or self.reason).split("\n", 1)[0]
        self.retry_after_s = retry_after_s
        self.metadata = metadata

    def __str__(self) -> str:
        return self.message


# --- Callbacks: what a platform, or somebody who plays one, sent us ---------------------------------------


class SignatureMismatch(AssistantError):
    """The callback is not signed with a key of this account. Do not retry."""

    code, http, reason = StatusCode.UNAUTHENTICATED, 401, "SIGNATURE_MISMATCH"


class StaleCallback(AssistantError):
    """The callback is older than the freshness window, perhaps a replay. Do not retry."""

    code, http, reason = StatusCode.UNAUTHENTICATED, 401, "STALE_CALLBACK"


class ReceiverMismatch(AssistantError):
    """The callback was meant for another company or app. Do not retry."""

    code, http, reason = StatusCode.UNAUTHENTICATED, 401, "RECEIVER_MISMATCH"


class MalformedEnvelope(AssistantError):
    """The callback's query or body has not the form that the platform sends. Do not retry."""

    code, http, reason = StatusCode.INVALID_ARGUMENT, 400, "MALFORMED_ENVELOPE"


class Undecryptable(AssistantError):
    """The signature fits, but the ciphertext does not decrypt: EncodingAESKey and Token are of two apps."""

    code, http, reason = StatusCode.INVALID_ARGUMENT, 400, "UNDECRYPTABLE"


class UnsupportedMediaType(AssistantError):
    """The callback's content type is none that the platform sends. Do not retry."""

    code, http, reason = StatusCode.INVALID_ARGUMENT, 415, "UNSUPPORTED_MEDIA_TYPE"


class MalformedPayload(AssistantError):
    """The decrypted message has not the form that the platform sends. Do not retry."""

    code, http, reason = StatusCode.INVALID_ARGUMENT, 400, "MALFORMED_PAYLOAD"


class SourceNotPermitted(AssistantError):
    """The callback comes from an address that none of this account is accepted from. Do not retry."""

    code, http, reason = StatusCode.PERMISSION_DENIED, 403, "SOURCE_NOT_PERMITTED"


class PayloadTooLarge(AssistantError):
    """The request's body is larger than any callback. Do not retry."""

    code, http, reason = StatusCode.INVALID_ARGUMENT, 413, "PAYLOAD_TOO_LARGE"


# --- Names that nothing answers to ------------------------------------------------------------------------


class UnknownChannel(AssistantError):
    """No plugin of this name is installed, or none of its accounts is configured."""

    code, http, reason = StatusCode.NOT_FOUND, 404, "UNKNOWN_CHANNEL"


class UnknownAccount(AssistantError):
    """The account is not configured here."""

    code, http, reason = StatusCode.NOT_FOUND, 404, "UNKNOWN_ACCOUNT"


class UnknownKey(AssistantError):
    """The account has no live key of this name."""

    code, http, reason = StatusCode.NOT_FOUND, 404, "UNKNOWN_KEY"


class UnknownDelivery(AssistantError):
    """No delivery has this name."""

    code, http, reason = StatusCode.NOT_FOUND, 404, "UNKNOWN_DELIVERY"


class UnknownMessage(AssistantError):
    """No message of the inbox has this name."""

    code, http, reason = StatusCode.NOT_FOUND, 404, "UNKNOWN_MESSAGE"


class UnknownMedia(AssistantError):
    """The platform has no such file, or no longer."""

    code, http, reason = StatusCode.NOT_FOUND, 404, "UNKNOWN_MEDIA"


class UnknownSkill(AssistantError):
    """No skill has this name."""

    code, http, reason = StatusCode.NOT_FOUND, 404, "UNKNOWN_SKILL"


class UnknownService(AssistantError):
    """This server has no service of this name."""

    code, http, reason = StatusCode.NOT_FOUND, 404, "UNKNOWN_SERVICE"


class UnknownPlugin(AssistantError):
    """No plugin of this kind has this name."""

    code, http, reason = StatusCode.NOT_FOUND, 404, "UNKNOWN_PLUGIN"


# --- Requests that cannot be served as they are -----------------------------------------------------------


class InvalidRequest(AssistantError):
    """A field of the request is missing or wrong; the message names it. Do not retry unchanged."""

    code, http, reason = StatusCode.INVALID_ARGUMENT, 400, "INVALID_REQUEST"


class InvalidArguments(AssistantError):
    """The arguments do not fit the skill's schema; the message names what does not."""

    code, http, reason = StatusCode.INVALID_ARGUMENT, 400, "INVALID_ARGUMENTS"


class InvalidKey(AssistantError):
    """The key's material has not the form that the channel needs; the message names what is wrong."""

    code, http, reason = StatusCode.INVALID_ARGUMENT, 400, "INVALID_KEY"


class InvalidMedia(AssistantError):
    """The platform does not take a file of this size or type; the message says what it takes."""

    code, http, reason = StatusCode.INVALID_ARGUMENT, 400, "INVALID_MEDIA"


class InvalidSetting(AssistantError):
    """A setting is missing, unknown or wrong; the message names it, the problem and the fix."""

    code, http, reason = StatusCode.FAILED_PRECONDITION, 500, "INVALID_SETTING"


class KeyExists(AssistantError):
    """Another key of the account has this name. Choose another name."""

    code, http, reason = StatusCode.ALREADY_EXISTS, 409, "KEY_EXISTS"


class LastKey(AssistantError):
    """The last live key cannot be retired: no callback could be opened. Add another one first."""

    code, http, reason = StatusCode.FAILED_PRECONDITION, 409, "LAST_KEY"


class NotRecallable(AssistantError):
    """The platform cannot take this back, or no longer."""

    code, http, reason = StatusCode.FAILED_PRECONDITION, 409, "NOT_RECALLABLE"


class NotRetryable(AssistantError):
    """The message is neither dead nor unconfirmed: nothing is to be tried again. Look how it stands."""

    code, http, reason = StatusCode.FAILED_PRECONDITION, 409, "NOT_RETRYABLE"


class NotOffered(AssistantError):
    """The platform of this channel offers no such thing. Do not retry."""

    code, http, reason = StatusCode.FAILED_PRECONDITION, 409, "NOT_OFFERED"


class SkillNotPermitted(AssistantError):
    """The member may not use this skill."""

    code, http, reason = StatusCode.PERMISSION_DENIED, 403, "SKILL_NOT_PERMITTED"


class CallerNotPermitted(AssistantError):
    """The certificate of the caller names nobody who may call this method. Do not retry."""

    code, http, reason = StatusCode.PERMISSION_DENIED, 403, "CALLER_NOT_PERMITTED"


class SkillOutcomeUnknown(AssistantError):
    """An earlier attempt at this use of the skill was cut off: whether it was done is unknown. Do not repeat; look."""

    code, http, reason = StatusCode.FAILED_PRECONDITION, 409, "SKILL_OUTCOME_UNKNOWN"


class AuditBroken(AssistantError):
    """The audit log was changed by somebody else: what has to be recorded is not done until an operator has looked."""

    code, http, reason = StatusCode.FAILED_PRECONDITION, 500, "AUDIT_BROKEN"


class Unimplemented(AssistantError):
    """The service has no such method."""

    code, http, reason = StatusCode.UNIMPLEMENTED, 501, "UNIMPLEMENTED"


# --- What the platform answered when we called it ---------------------------------------------------------


class PlatformUnavailable(AssistantError):
    """The platform was not reached, is busy, or failed. Nothing was done; repeat later."""

    code, http, reason = StatusCode.UNAVAILABLE, 503, "PLATFORM_UNAVAILABLE"


class PlatformOutcomeUnknown(AssistantError):
    """The platform may or may not have done it: the answer did not arrive. Repeat only what it can recognise."""

    code, http, reason = StatusCode.UNAVAILABLE, 503, "PLATFORM_OUTCOME_UNKNOWN"


class PlatformThrottled(AssistantError):
    """The platform wants fewer calls. Repeat after `retry_after_s`."""

    code, http, reason = StatusCode.RESOURCE_EXHAUSTED, 429, "PLATFORM_THROTTLED"


class PlatformTokenRejected(AssistantError):
    """The platform no longer takes this access token. Fetch another one and repeat once."""

    code, http, reason = StatusCode.UNAVAILABLE, 503, "PLATFORM_TOKEN_REJECTED"


class PlatformMisconfigured(AssistantError):
    """The platform refuses this account: secret, address or permission. An operator must act; do not retry."""

    code, http, reason = StatusCode.FAILED_PRECONDITION, 502, "PLATFORM_MISCONFIGURED"


class PlatformRefused(AssistantError):
    """The platform refuses this recipient or this content for good. Do not retry."""

    code, http, reason = StatusCode.FAILED_PRECONDITION, 502, "PLATFORM_REFUSED"


# --- The mesh itself --------------------------------------------------------------------------------------


class ServiceUnavailable(AssistantError):
    """A service of the mesh does not answer. Repeat what is repeatable."""

    code, http, reason = StatusCode.UNAVAILABLE, 503, "SERVICE_UNAVAILABLE"


class EngineUnavailable(AssistantError):
    """The engine cannot answer now. Repeat later."""

    code, http, reason = StatusCode.UNAVAILABLE, 503, "ENGINE_UNAVAILABLE"


class StorageUnavailable(AssistantError):
    """The database takes nothing: disk full, locked or unreachable. Nothing was stored; repeat later."""

    code, http, reason = StatusCode.UNAVAILABLE, 503, "STORAGE_UNAVAILABLE"


class DeadlineExceeded(AssistantError):
    """The time given for the call is over. Whether it was done is unknown."""

    code, http, reason = StatusCode.DEADLINE_EXCEEDED, 504, "DEADLINE_EXCEEDED"


class Cancelled(AssistantError):
    """The caller no longer waits."""

    code, http, reason = StatusCode.CANCELLED, 499, "CANCELLED"


class Overloaded(AssistantError):
    """More is asked at once than this process takes. Repeat after `retry_after_s`."""

    code, http, reason = StatusCode.RESOURCE_EXHAUSTED, 503, "OVERLOADED"


class Internal(AssistantError):
    """Something failed that should not; the log of the service says what."""

    code, http, reason = StatusCode.INTERNAL, 500, "INTERNAL"


def _tree(base: type[AssistantError]) -> list[type[AssistantError]]:
    return [cls for child in base.__subclasses__() for cls in (child, *_tree(child))]


BY_REASON: dict[str, type[AssistantError]] = {cls.reason: cls for cls in _tree(AssistantError)}
"""The table, by ErrorInfo reason."""

_BY_CODE: dict[int, type[AssistantError]] = {
    cls.code.value[0]: cls
    for cls in (
        Cancelled,
        InvalidRequest,
        DeadlineExceeded,
        SkillNotPermitted,
        Overloaded,
        Unimplemented,
        Internal,
        ServiceUnavailable,
    )
}


def to_status(error: AssistantError) -> status_pb2.Status:
    """The error as it travels: a google.rpc.Status with ErrorInfo and, where it says when, RetryInfo."""
    status = status_pb2.Status(code=error.code.value[0], message=error.message[:_MAX_MESSAGE_CHARACTERS])
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
    status.details.add().Pack(info)
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def from_status(code: int, message: str, details: bytes = b"") -> AssistantError:
    """The error that a gRPC status stands for.

    `details` is the serialised google.rpc.Status, empty if the other side sent none; a foreign service
    may send none, or reasons that we do not know: then the code alone decides.
    """
    cls = _BY_CODE.get(code, Internal)
    metadata: dict[str, str] = {}
    retry_after_s = None
    if details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        for detail in status_pb2.Status.FromString(details).details:
            if detail.Unpack(info):
                cls = BY_REASON.get(info.reason, cls)
                metadata = {key: value for key, value in info.metadata.items() if key.isidentifier()}
            elif detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    error = cls(message, retry_after_s=retry_after_s)
    error.metadata = metadata
    return error
