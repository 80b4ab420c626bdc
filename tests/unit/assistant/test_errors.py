"""The error tree and its table: every class travels and comes back as itself."""

import pytest
from google.rpc import error_details_pb2

from assistant import errors
from assistant.errors import BY_REASON, AssistantError, from_status, to_status


@pytest.mark.parametrize("cls", BY_REASON.values(), ids=BY_REASON.keys())
def test_an_error_comes_back_as_the_class_that_it_was(cls: type[AssistantError]) -> None:
    """Reason, message, delay and facts survive the way between two processes."""
    status = to_status(cls("what to do", retry_after_s=1.5, account="sales"))
    again = from_status(status.code, status.message, status.SerializeToString())
    assert type(again) is cls
    assert (again.message, again.retry_after_s, again.metadata) == ("what to do", 1.5, {"account": "sales"})


def test_reasons_are_unique_and_every_class_says_what_to_do() -> None:
    """A caller tells errors apart by their reason, a person by their first sentence."""
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AssistantError)
    ]
    assert len({cls.reason for cls in classes}) == len(classes)
    assert all(cls().message for cls in classes)
    assert all(400 <= cls.http < 600 for cls in classes)


def test_a_foreign_status_without_details_is_judged_by_its_code() -> None:
    """A service that knows nothing of our reasons still gets the right treatment."""
    assert isinstance(from_status(14, "away"), errors.ServiceUnavailable)
    assert isinstance(from_status(3, "wrong"), errors.InvalidRequest)
    assert isinstance(from_status(12, "what?"), errors.Unimplemented)
    assert isinstance(from_status(2, "hm"), errors.Internal)


def test_an_unknown_reason_is_judged_by_its_code() -> None:
    """A newer service may have reasons that we do not know yet."""
    status = to_status(errors.ServiceUnavailable("away"))
    info = error_details_pb2.ErrorInfo(reason="NEW_REASON", domain="elsewhere", metadata={"a key": "x", "key": "y"})
    status.details[0].Pack(info)
    error = from_status(14, "away", status.SerializeToString())
    assert isinstance(error, errors.ServiceUnavailable)
    assert error.metadata == {"key": "y"}
