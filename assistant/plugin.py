"""The contracts of plugins: a channel's facets, an engine, a skill; how they are found and loaded.

A plugin is a package whose `__init__.py` holds a `manifest` and imports nothing heavy. What it does lies in
modules beside it, each named for its facet, with a class of that name: `crypto.py` holds `Crypto`. A process
loads only the facets that it needs, so that a secret's code runs only where the secret is.

Built-in plugins are the folders of `plugins/<kind>/`. An installed package brings its own with an entry
point in the group `ai_assistant.<kind>`: `name = "package:manifest"`.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import os
import pkgutil
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from assistant.api.message.v1.message_pb2 import Account, Content, InboundMessage, Recipient
from assistant.api.nlp.v1.nlp_pb2 import DescribeModelResponse, GenerateReplyRequest, GenerateReplyResponse
from assistant.api.reply.v1.reply_pb2 import MediaDescription, MediaKind
from assistant.api.skill.v1.skill_pb2 import InvokeSkillRequest, InvokeSkillResponse
from assistant.api.skill.v1.skill_pb2 import Skill as SkillDescription
from assistant.errors import NotOffered, UnknownPlugin
from assistant.findings import Finding, Remedy, Text, same
from assistant.policy import Policy
from assistant.settings import DEFAULT_ACCOUNT, Settings, fields

if TYPE_CHECKING:
    import aiohttp
    from aiohttp import web

Kind = Literal["channels", "engines", "skills"]

SELF_TEST_MEMBER = "ai-assistant-self-test"
"""The member that `ai-assistant-cli test` plays. Answers to it are recorded and never sent to a platform."""


# --- Manifests --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """What is known of a plugin before any of its code runs."""

    name: str
    """The name of its folder, in lower case: also its name in configuration, paths and metrics."""
    title: Mapping[str, str]
    """What people call it, by BCP 47 tag; has "en" and "zh-CN"."""


@dataclass(frozen=True)
class KeyChange:
    """How the callback key of an account is changed on the platform."""

    make: Callable[[], Mapping[str, str]]
    """New random material, by the names of the settings, that the platform takes."""
    steps: Mapping[str, Sequence[str]]
    """What an administrator does in the platform's console once the key is live here, step by step, by BCP 47 tag;
    has "en" and "zh-CN"."""
    simulated: str = ""
    """Path at which the channel's simulator takes the new key, as JSON with PUT. Empty: it takes none."""


@dataclass(frozen=True)
class Channel(Manifest):
    """A platform that members write on.

    Each facet has settings of its own, the part of an account that its service is given: codec the gateway,
    crypto crypto_svc, sender reply_svc. A setting of the same name is the same setting. The policy is no facet:
    every account has it, and the gateway is given it.
    """

    codec: type[Settings] = Settings
    crypto: type[Settings] = Settings
    sender: type[Settings] = Settings
    policy: type[Policy] = Policy
    """Who may use an account, for the gateway. A subclass says what else the platform makes possible."""
    headers: frozenset[str] = frozenset({"content-type"})
    """HTTP headers of a callback that `Crypto.open` needs, in lower case."""
    key_change: KeyChange | None = None
    """None: nothing is known of it; new material has to be given, and the operator has to know where to save it."""
    tried_first: bool = False
    """Whether its platform is simulated while no channel is configured, so that there is something to try."""

    def settings(self) -> frozenset[str]:
        """Names of all settings of an account."""
        return frozenset().union(*(fields(part) for part in (self.codec, self.crypto, self.sender, self.policy)))


@dataclass(frozen=True)
class EnginePlugin(Manifest):
    """Something that understands and answers. Facet: `engine`."""

    engine: type[Settings] = Settings


@dataclass(frozen=True)
class SkillPlugin(Manifest):
    """Something that can be done for a member. Facet: `skill`."""

    skill: type[Settings] = Settings


# --- Channel: crypto, loaded by crypto_svc ----------------------------------------------------------------


class Callback(NamedTuple):
    """One HTTP request of a platform, as received."""

    method: str
    query: str
    """Without "?", still percent-encoded."""
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


class HttpBody(NamedTuple):
    """The body of an HTTP answer."""

    body: bytes
    content_type: str


class Opened(NamedTuple):
    """A callback that was verified and decrypted."""

    key_id: str
    """The key that fitted."""
    payload: bytes = b""
    """The plaintext."""
    challenge: HttpBody | None = None
    """Set instead of `payload` when the platform checks the address: answer with exactly this."""


class Crypto(ABC):
    """Opens what the platform sent to one account and seals what we answer. Pure computation: no I/O, no clock."""

    @abstractmethod
    def __init__(self, settings: Any, random: Callable[[int], bytes] = os.urandom) -> None:
        """`settings` is an instance of the manifest's `crypto`. `random` gives so many random bytes."""

    @abstractmethod
    def configured_material(self) -> Mapping[str, str]:
        """The material of the key in the account's settings, by the names of the settings."""

    @abstractmethod
    def key(self, material: Mapping[str, str]) -> Any:
        """Parse a key's material into what `open` and `seal` work with. Raises InvalidKey."""

    @abstractmethod
    def open(self, callback: Callback, keys: Mapping[str, Any], now: float, max_age_s: float) -> Opened:
        """Verify and decrypt a callback with whichever of the live keys fits (key_id -> key).

        `now` is Unix time in seconds; a callback older than `max_age_s`, or as far in the future, is stale.
        Raises SignatureMismatch, StaleCallback, ReceiverMismatch, MalformedEnvelope, UnsupportedMediaType,
        Undecryptable.
        """

    @abstractmethod
    def seal(self, payload: bytes, query: str, key: Any, now: float) -> HttpBody:
        """Encrypt and sign the answer to the callback that came with `query`."""


# --- Channel: codec, loaded by the gateway ----------------------------------------------------------------


class Codec(ABC):
    """Translates between the platform's payloads and our messages for one account. Pure computation."""

    reply_limit_s: ClassVar[float]
    """How long the platform waits for the HTTP answer, in seconds."""
    redelivery_s: ClassVar[float]
    """How long after a callback's arrival the platform may still repeat it for want of an answer, in seconds."""
    acknowledgement: ClassVar[HttpBody]
    """The HTTP answer that says "received" and no more."""

    @abstractmethod
    def __init__(self, account: Account, settings: Any) -> None:
        """`settings` is an instance of the manifest's `codec`."""

    @abstractmethod
    def parse(self, payload: bytes) -> InboundMessage:
        """Read a decrypted payload. Unknown kinds of message and event become `Unknown` and `OtherEvent`.

        Raises MalformedPayload, ReceiverMismatch.
        """

    @abstractmethod
    def format(self, message: InboundMessage, content: Sequence[Content]) -> bytes | None:
        """Write an answer for the HTTP answer to the callback that brought `message`.

        None if it does not fit there (too long, several parts, a kind that the platform takes only by its API).
        """


# --- Channel: sender, loaded by reply_svc -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quota:
    """At most so many sends to one recipient within a window."""

    sends: int
    window_s: float


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What the platform gave for the account's secret."""

    value: str = field(repr=False)
    lifetime_s: float


@dataclass(frozen=True, slots=True)
class Receipt:
    """The platform accepted one request."""

    platform_message_id: str = ""
    """For recall. Empty where the platform gives none."""
    refused: tuple[str, ...] = ()
    """Recipients that the platform left out, where it served others."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file of the platform: what it is, and its bytes as they arrive."""

    description: MediaDescription
    chunks: AsyncIterator[bytes]


@dataclass(frozen=True, slots=True)
class Uploaded:
    """A file that the platform took."""

    media_id: str
    expires_at: datetime | None = None


class Sender(ABC):
    """Speaks the platform's API for one account. Keeps no state: tokens, pacing and retries are reply_svc's.

    Every method that calls the platform raises PlatformUnavailable, PlatformOutcomeUnknown,
    PlatformThrottled, PlatformTokenRejected, PlatformMisconfigured or PlatformRefused, with
    `error_code` (the platform's own) in the metadata and, as message, what an operator should do.
    """

    quotas: ClassVar[tuple[Quota, ...]] = ()
    """What one recipient may be sent. The platform may drop the excess without a word."""

    @abstractmethod
    def __init__(self, settings: Any, http: "aiohttp.ClientSession") -> None:
        """`settings` is an instance of the manifest's `sender`."""

    @abstractmethod
    async def fetch_token(self) -> AccessToken:
        """Get an access token for the account's secret. PlatformMisconfigured means: do not ask again."""

    @abstractmethod
    def render(self, delivery_id: str, number: int, recipient: Recipient, content: Iterable[Content]) -> list[bytes]:
        """The requests that deliver this content, in order: split and merged to the platform's sizes.

        The same arguments always give the same bytes, so that the platform can recognise a repeated request; other
        deliveries must give others. `delivery_id` is 20 characters of their own; `number` counts all deliveries,
        for a platform that leaves less room than that.
        Raises PlatformRefused for content that the platform cannot be sent at all.
        """

    @abstractmethod
    async def send(self, request: bytes, token: str) -> Receipt:
        """Send one rendered request."""

    @abstractmethod
    async def check(self, token: str) -> None:
        """Return if the platform accepts us. Costs no message quota."""

    async def recall(self, platform_message_id: str, token: str) -> None:
        """Take back what was sent. Raises NotRecallable where the platform cannot."""
        from assistant.errors import NotRecallable

        raise NotRecallable()

    async def fetch_media(self, media_id: str, token: str) -> Fetched:
        """Fetch a file. Raises UnknownMedia."""
        from assistant.errors import UnknownMedia

        raise UnknownMedia()

    async def upload_media(
        self, kind: "MediaKind.ValueType", description: MediaDescription, data: bytes, token: str
    ) -> Uploaded:
        """Give a file to the platform. Raises InvalidMedia."""
        from assistant.errors import InvalidMedia

        raise InvalidMedia("this channel sends no files")

    async def callback_sources(self, token: str) -> Sequence[str]:
        """Where the platform's callbacks come from: at least one address or range, as "203.0.113.0/24".

        Raises NotOffered where the platform publishes nothing; then `Policy.publishes_sources` is false.
        """
        raise NotOffered("the platform of this channel does not publish where its callbacks come from")

    async def departments_of(self, member_id: str, token: str) -> Sequence[str]:
        """Ids of the departments that a member belongs to, without those above them.

        Raises NotOffered where the platform has none; then `Policy.tells_departments` is false.
        """
        raise NotOffered("the platform of this channel does not tell departments")

    async def departments(self, token: str) -> Mapping[str, str]:
        """The departments that the account may see, each with the one above it; "" where there is none.

        Raises NotOffered like `departments_of`.
        """
        raise NotOffered("the platform of this channel does not tell departments")


# --- Channel: simulator, loaded by the command line and by tests ------------------------------------------


class Simulator(ABC):
    """Plays the platform from outside. Shares no code with the other facets."""

    @classmethod
    @abstractmethod
    def credentials(cls) -> dict[str, Any]:
        """Settings of a new account on the simulated platform, random, by the names of the settings."""

    @abstractmethod
    def __init__(self, settings: Mapping[str, Any], clock: Callable[[], float] = time.time) -> None:
        """`settings` are those of the account, by name. `clock` gives Unix time in seconds."""

    @abstractmethod
    def callback(self, text: str, member: str) -> tuple[Callback, str]:
        """A callback that brings a text of a member, signed and sealed now, and the message's id."""

    @abstractmethod
    def read_reply(self, body: bytes) -> str | None:
        """What the HTTP answer to a callback says. None if it only acknowledges. Raises ValueError if it is forged."""

    @abstractmethod
    def application(self, callback_url: str) -> "web.Application":
        """The platform's API and a page to chat in, calling back to `callback_url`."""


# --- Channel: doctor, loaded by the command line ----------------------------------------------------------


class Doctor:
    """Knows what goes wrong with one account of the platform, and what mends it. Pure computation.

    Optional: this is the doctor of a channel that brings none.
    """

    def __init__(self, channel: str, account: str) -> None:
        self.set_command = f"ai-assistant-cli config set channels.{channel}"
        """What an operator types to change the account's settings, without them."""
        if account != DEFAULT_ACCOUNT:
            self.set_command += f" --account {account}"

    def examine(self, settings: Mapping[str, Any]) -> Iterable[Finding]:
        """Look at the account's settings as they were given: some may be missing (None) or wrong.

        A finding's `check` is "settings.<name>". Whatever the channel refuses is found without this, in English.
        """
        return ()

    def explain(self, code: str, said: str) -> tuple[Text, Remedy]:
        """What it means, and what mends it, that the platform gave an error.

        `code` is the platform's own, or the reason (assistant.errors) for which a callback was refused; it may be
        empty. `said` is the message of the error that `Sender` or `Crypto` raised, empty if it is not known.
        """
        unknown = Text(
            "What comes from this platform, or goes to it, may get lost until this is mended.",
            "在解决之前，与该平台之间的消息可能无法送达。",
        )
        return same(said), Remedy(unknown)


# --- Engines and skills, loaded by nlp_svc ----------------------------------------------------------------


class Engine(ABC):
    """Understands and answers."""

    @abstractmethod
    def __init__(self, settings: Any) -> None:
        """`settings` is an instance of the manifest's `engine`."""

    async def load(self) -> None:
        """Get ready. Called once; until it returns the engine is not asked."""

    @abstractmethod
    def describe(self) -> DescribeModelResponse:
        """What answers here. `ready` and `load_time` are filled in by the caller."""

    @abstractmethod
    async def generate(self, request: GenerateReplyRequest) -> GenerateReplyResponse:
        """Answer one message, or propose actions. Raises EngineUnavailable."""

    async def stream(self, request: GenerateReplyRequest) -> AsyncIterator[str | GenerateReplyResponse]:
        """The same in pieces: words as they come, then the whole answer, last."""
        yield await self.generate(request)


class Skill(ABC):
    """Does one thing for a member."""

    @abstractmethod
    def __init__(self, settings: Any) -> None:
        """`settings` is an instance of the manifest's `skill`."""

    @abstractmethod
    def describe(self, locale: str) -> SkillDescription:
        """What an engine needs to know to propose it, in the language of `locale`."""

    @abstractmethod
    async def invoke(self, request: InvokeSkillRequest) -> InvokeSkillResponse:
        """Do it. Called once for each `turn_id` and `action_index`.

        Raises InvalidArguments. Of a skill that changes something, an AssistantError says that nothing was
        changed, and the skill may be called again; except the errors that mean that nobody knows, such as
        PlatformOutcomeUnknown and DeadlineExceeded.
        """


# --- Discovery --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    package: str
    manifest: Manifest


@functools.cache
def _discover(kind: Kind) -> Mapping[str, _Found]:
    folder = importlib.import_module(f"plugins.{kind}")
    packages = {
        entry.name: f"plugins.{kind}.{entry.name}" for entry in pkgutil.iter_modules(folder.__path__) if entry.ispkg
    }
    for entry in importlib.metadata.entry_points(group=f"ai_assistant.{kind}"):
        packages.setdefault(entry.name, entry.module)
    return {
        name: _Found(package, importlib.import_module(package).manifest) for name, package in sorted(packages.items())
    }


def installed(kind: Kind) -> dict[str, Manifest]:
    """The manifests of all plugins of a kind, by name."""
    return {name: found.manifest for name, found in _discover(kind).items()}


def channels() -> dict[str, Channel]:
    """The manifests of all channels, by name."""
    return {name: manifest for name, manifest in installed("channels").items() if isinstance(manifest, Channel)}


def load(kind: Kind, name: str, facet: str) -> type[Any]:
    """The class of one facet: `load("channels", "loopback", "crypto")` is `plugins.channels.loopback.crypto.Crypto`.

    Raises UnknownPlugin.
    """
    found = _discover(kind)
    if name not in found:
        raise UnknownPlugin(f"no plugin {name!r} among {kind}: installed are {', '.join(found) or 'none'}")
    module = importlib.import_module(f"{found[name].package}.{facet}")
    return getattr(module, facet.capitalize())  # type: ignore[no-any-return]


def doctor(channel: str, account: str) -> Doctor:
    """The doctor of one account of an installed channel."""
    package = _discover("channels")[channel].package
    brings_one = importlib.util.find_spec(f"{package}.doctor") is not None
    made: Doctor = (load("channels", channel, "doctor") if brings_one else Doctor)(channel, account)
    return made
