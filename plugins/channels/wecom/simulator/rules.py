"""What the platform does by its own rules, and what it can be told to do wrong."""

from typing import Annotated, Literal

import msgspec

Amount = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000)]


class Rules(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """How the platform behaves when all is well. Defaults are the vendor's figures."""

    reply_limit_s: Amount = 5.0
    """How long an app may take to answer a callback (90238)."""
    check_limit_s: Amount = 1.0
    """How long an app may take to answer when its URL is saved (90930)."""
    attempts: Annotated[int, msgspec.Meta(ge=1, le=10)] = 3
    """How often a callback is sent in all (90238)."""
    retry_pause_s: Amount = 1.0
    """Pause between attempts; the vendor does not say."""
    retry_every_failure: bool = False
    """Whether a callback is sent again after an HTTP status other than 200 as well, or only after no answer at all.

    The vendor's pages disagree. The default is the reading that forgives an app less.
    """
    token_lifetime_s: Count = 7200
    """Life of an access token (91039)."""
    wrong_secrets_per_hour: Count = 2000
    """After so many wrong secrets an address is blocked for an hour (90313; the figure is from the community)."""
    sends_per_minute: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 30
    """What one member may be sent in a minute; the excess is dropped without a word (90312)."""
    sends_per_hour: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 1000
    """What one member may be sent in an hour; the excess is dropped without a word (90312)."""
    callback_addresses: list[str] = msgspec.field(default_factory=lambda: ["127.0.0.1"])
    """Where callbacks are said to come from; they come from this machine all the same (92521)."""
    departments: dict[int, int] = msgspec.field(default_factory=lambda: {1: 0, 2: 1, 3: 1, 4: 2})
    """Each department with the one above it; 1 is the company, above which is 0 (95350)."""


class Faults(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What goes wrong now. All defaults together mean: nothing."""

    only: str = ""
    """The interface that the faults of the API concern, such as "message/send". Empty: all."""
    latency_ms: Amount = 0
    """Time before each answer of the API."""
    error_code: int = 0
    """The errcode that the next `error_calls` calls are answered with."""
    error_calls: Count = 0
    """Counts down."""
    http_status: Annotated[int, msgspec.Meta(ge=0, le=599)] = 0
    """The HTTP status that calls are answered with, 400 or more. 0: as usual."""
    hang: bool = False
    """Calls get no answer until this ends or the caller gives up."""
    drop_connection: Literal["", "before", "after"] = ""
    """The connection breaks before the call is looked at, or after it was carried out."""
    date_late_s: Amount = 0
    """The Date of the API's answers is this many seconds behind, as if the caller's clock were ahead."""
    calls_per_minute: Count = 0
    """More calls of one interface within a minute get errcode 45009 for a minute. 0: no limit."""
    wrong_signature: bool = False
    """Callbacks carry a signature of nobody."""
    wrong_receiver: bool = False
    """Callbacks are encrypted for another CorpID."""
    age_s: Amount = 0
    """Callbacks carry a timestamp this old, like a replay."""
    twice: bool = False
    """Each callback is sent twice at the same moment."""
    out_of_order: bool = False
    """A callback waits until another one has overtaken it, at most 2 s."""
    plus_as_space: bool = False
    """The "+" of an echostr is not percent-encoded when a URL is saved, so that it reads as a space."""

    def __post_init__(self) -> None:
        if 0 < self.http_status < 400:
            raise ValueError("http_status is a failure, 400 to 599, or 0 for none")


class Books(msgspec.Struct, kw_only=True):
    """What has happened since the start. `sent` = `acknowledged` + `lost` + `forged` + those still on their way."""

    sent: int = 0
    """Callbacks, each message or event counted once."""
    acknowledged: int = 0
    """Callbacks that the app answered as it should, with a reply or without."""
    answered_passively: int = 0
    """Replies in the HTTP answer to a callback, shown to the member."""
    answered_actively: int = 0
    """Messages shown to a member that came by the API."""
    lost: int = 0
    """Callbacks that the app never took."""
    retried: int = 0
    """Further attempts to send a callback."""
    forged: int = 0
    """Callbacks whose reply had a wrong signature, did not decrypt or was no reply; nothing was shown."""
    dropped_by_quota: int = 0
    """Messages to a member over the quota, accepted and not shown."""
    duplicates_suppressed: int = 0
    """Calls recognised by the duplicate check, accepted and not shown."""
    api_calls: int = 0
    """Calls of the API."""
    api_errors: int = 0
    """Calls of the API that were answered with an errcode."""
