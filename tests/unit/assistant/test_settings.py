"""Settings: where a value comes from, and how a wrong one names itself, its problem and the fix."""

from pathlib import Path
from typing import Annotated

import pytest
from msgspec import Meta

from assistant.errors import InvalidSetting
from assistant.settings import Address, Secret, Settings, Source, fields, is_secret, meaning


class Example(Settings, frozen=True, kw_only=True):
    listen: Annotated[Address, Meta(description="where to listen")] = Address("127.0.0.1:7001")
    budget_s: Annotated[float, Meta(gt=0, le=4.5, description="seconds to wait")] = 4.0
    durable: Annotated[bool, Meta(description="whether to keep it")] = True
    folder: Annotated[Path | None, Meta(description="where to keep it")] = None
    secret: Annotated[Secret, Meta(description="the word")]

    def __post_init__(self) -> None:
        if self.folder is None and not self.durable:
            raise ValueError("what is not durable needs a folder")


def source(environ: dict[str, str] | None = None, **tables: object) -> Source:
    return Source(tables, environ or {}, "config.toml")


def problem(**given: object) -> str:
    with pytest.raises(InvalidSetting) as raised:
        source(example={"secret": "open sesame"} | given).read(Example, "example")
    return raised.value.message


def test_the_environment_wins_over_a_mounted_file_and_that_over_the_file(tmp_path: Path) -> None:
    """The strongest place that has a value gives it; the default stands where none has."""
    mounted = tmp_path / "secret"
    mounted.write_text("from a mount\n")
    environ = {"AI_ASSISTANT_EXAMPLE_SECRET_FILE": str(mounted)}
    table = {"secret": "from the file", "budget_s": 2}
    read = source(environ, example=table).read(Example, "example")
    assert (read.secret, read.budget_s, read.listen.port) == ("from a mount", 2.0, 7001)
    environ["AI_ASSISTANT_EXAMPLE_SECRET"] = "from the environment"
    assert source(environ, example=table).read(Example, "example").secret == "from the environment"


def test_a_setting_may_itself_be_called_file(tmp_path: Path) -> None:
    """A variable that ends with _FILE is a setting's own where one has that name, else names a file that holds it."""

    class Keys(Settings, frozen=True, kw_only=True):
        keys_file: Path

    given = {"AI_ASSISTANT_EXAMPLE_KEYS_FILE": str(tmp_path / "keys.json")}
    assert source(given).read(Keys, "example").keys_file == tmp_path / "keys.json"
    assert source(given).origin("example", "keys_file") == "AI_ASSISTANT_EXAMPLE_KEYS_FILE"
    mounted = tmp_path / "mounted"
    mounted.write_text("/keys.json\n")
    given = {"AI_ASSISTANT_EXAMPLE_KEYS_FILE_FILE": str(mounted)}
    assert source(given).read(Keys, "example").keys_file == Path("/keys.json")


def test_values_of_the_environment_are_read_by_their_type() -> None:
    """A variable is text; what it means is the setting's type."""
    environ = {
        "AI_ASSISTANT_EXAMPLE_BUDGET_S": "1.5",
        "AI_ASSISTANT_EXAMPLE_DURABLE": "false",
        "AI_ASSISTANT_EXAMPLE_FOLDER": "~/kept",
        "AI_ASSISTANT_EXAMPLE_LISTEN": "[::1]:9000",
        "AI_ASSISTANT_EXAMPLE_SECRET": "word",
    }
    read = source(environ).read(Example, "example")
    assert (read.budget_s, read.durable, read.folder) == (1.5, False, Path.home() / "kept")
    assert (read.listen.host, read.listen.port) == ("::1", 9000)


def test_an_unknown_key_is_named_with_the_one_that_was_meant() -> None:
    """A spelling mistake stops the start instead of leaving a default in place."""
    assert "example.budgets in config.toml is not a setting: did you mean 'budget_s'?" in problem(budgets=3)


def test_an_unknown_variable_is_named() -> None:
    """A spelling mistake in the environment does so too."""
    environ = {"AI_ASSISTANT_EXAMPLE_LISTNE": "127.0.0.1:1"}
    with pytest.raises(InvalidSetting, match=r"AI_ASSISTANT_EXAMPLE_LISTNE .* did you mean 'listen'"):
        source(environ, example={"secret": "x"}).read(Example, "example")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budget_s": "soon"}, "Expected `float`"),
        ({"budget_s": 9}, "<= 4.5"),
        ({"listen": "7001"}, "expected host:port"),
        ({"listen": "localhost:0"}, "expected host:port"),
        ({"durable": "perhaps"}, "Expected `bool`"),
        ({"folder": 3}, "expected text in quotes"),
    ],
)
def test_a_wrong_value_is_named_with_its_place_its_problem_and_its_meaning(given: dict[str, object], said: str) -> None:
    """Whoever reads the message can mend it without reading code."""
    (name,) = given
    message = problem(**given)
    assert message.startswith(f"example.{name} in config.toml is wrong: ")
    assert said in message
    assert meaning(fields(Example)[name]) in message


def test_all_problems_are_told_at_once() -> None:
    """Nobody mends a configuration one start at a time."""
    assert len(problem(budget_s=9, listen="x", budgets=1).splitlines()) == 3


def test_a_missing_value_is_named_with_the_command_that_sets_it() -> None:
    """What has no default must be given."""
    with pytest.raises(InvalidSetting, match=r"example.secret is missing \(the word\).* config set example.secret"):
        source().read(Example, "example")


def test_values_that_do_not_fit_together_are_refused() -> None:
    """A settings class may check more than one value."""
    assert problem(durable=False) == "example: what is not durable needs a folder"


def test_a_secret_is_never_shown() -> None:
    """Neither a repr nor a message about it holds a secret."""
    assert "sesame" not in repr(source(example={"secret": "open sesame"}).read(Example, "example"))
    with pytest.raises(InvalidSetting) as raised:
        source(example={"secret": ["open sesame"]}).read(Example, "example")
    assert "sesame" not in raised.value.message
    assert is_secret(fields(Example)["secret"])
    assert not is_secret(fields(Example)["folder"])


def test_a_secret_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A mount that is missing stops the start."""
    environ = {"AI_ASSISTANT_EXAMPLE_SECRET_FILE": str(tmp_path / "nothing")}
    with pytest.raises(InvalidSetting, match=r"SECRET_FILE names the file .*nothing, which cannot be read"):
        source(environ).read(Example, "example")


def test_a_reader_of_a_part_leaves_the_rest_of_a_section_alone() -> None:
    """A caller that needs a service's address is not its judge."""
    given = {"secret": "x", "for_somebody_else": 1}
    assert source(example=given).read(Example, "example", exact=False).secret == "x"


def test_a_file_that_is_not_toml_is_named_with_the_line(tmp_path: Path) -> None:
    """A broken file is told apart from a missing one."""
    file = tmp_path / "config.toml"
    file.write_text("[example]\nsecret = \n")
    with pytest.raises(InvalidSetting, match=r"config.toml cannot be read as TOML: .*line 2"):
        Source.load(file, {})
    assert Source.load(tmp_path / "missing.toml", {}).sections() == []


class Part(Settings, frozen=True, kw_only=True):
    token: str


KNOWN = frozenset({"token", "secret"})


def test_a_channel_has_a_default_account_and_named_ones() -> None:
    """Each service reads its own part of each account; the environment speaks of the default one."""
    table = {"token": "t", "secret": "s", "accounts": {"sales": {"token": "u"}}}
    given = source({"PLATFORM_TOKEN": "v"}, channels={"platform": table})
    accounts = given.accounts(Part, "platform", KNOWN)
    assert {name: account.token for name, account in accounts.items()} == {"default": "v", "sales": "u"}


def test_a_channel_that_nobody_configured_has_no_account() -> None:
    """Other variables that begin with the channel's name configure nothing."""
    assert source({"PLATFORM_HOME": "x"}).accounts(Part, "platform", KNOWN) == {}


def test_an_empty_table_is_no_account() -> None:
    """Neither that of the default account nor that of a named one."""
    assert source(channels={"platform": {"accounts": {"sales": {}}}}).accounts(Part, "platform", KNOWN) == {}


def test_a_missing_value_of_an_account_is_named_with_the_command_that_sets_it() -> None:
    """A named account is an option of that command."""
    table = {"accounts": {"sales": {"secret": "s"}}}
    with pytest.raises(InvalidSetting, match=r"config set channels.platform --account sales --token …$"):
        source(channels={"platform": table}).accounts(Part, "platform", KNOWN)


def test_a_wrong_key_of_an_account_is_named_with_the_account() -> None:
    """The message leads to the right one of several accounts."""
    table = {"accounts": {"sales": {"token": "u", "tokn": "v"}}}
    with pytest.raises(InvalidSetting, match=r"channels.platform.accounts.sales.tokn .* did you mean 'token'"):
        source(channels={"platform": table}).accounts(Part, "platform", KNOWN)
