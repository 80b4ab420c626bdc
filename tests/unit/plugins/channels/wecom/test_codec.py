"""What is WeCom's own in reading and writing messages; every kind of them is a case in the plugin's vectors."""

import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant.api.message.v1.message_pb2 import Account, Content, Text
from plugins.channels.wecom import CodecSettings
from plugins.channels.wecom.codec import Codec

CORPID = "ww1234567890abcdef"
CODEC = Codec(Account(channel="wecom", name="default"), CodecSettings(corpid=CORPID, agentid=1000002))
CLICK = {
    "ToUserName": CORPID,
    "FromUserName": "zhangsan",
    "CreateTime": "1700000000",
    "MsgType": "event",
    "AgentID": "1000002",
    "Event": "template_card_event",
    "EventKey": "approve",
    "TaskId": "card-1",
    "ResponseCode": "one",
}


def payload(**changes: str) -> bytes:
    fields = CLICK | changes
    return f"<xml>{''.join(f'<{name}>{value}</{name}>' for name, value in fields.items())}</xml>".encode()


def test_an_event_that_is_sent_again_is_the_same() -> None:
    """An event has the same id in every attempt, even if its permission to change the card is another."""
    first, second = CODEC.parse(payload()), CODEC.parse(payload(ResponseCode="two"))
    assert first.message_id == second.message_id


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FromUserName", "lisi"),
        ("CreateTime", "1700000001"),
        ("Event", "template_card_menu_event"),
        ("EventKey", "reject"),
        ("TaskId", "card-2"),
    ],
)
def test_other_events_of_the_same_second_are_others(name: str, value: str) -> None:
    """Two clicks are two events, though they may fall into one second."""
    assert CODEC.parse(payload()).message_id != CODEC.parse(payload(**{name: value})).message_id


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=500))
def test_any_words_are_well_formed(text: str) -> None:
    """Whatever an answer says, it is XML that says the same, without the characters that XML has not."""
    message = CODEC.parse(payload(MsgType="text", MsgId="1", Content="hello"))
    written = CODEC.format(message, [Content(text=Text(text=text))])
    assert written is not None
    sayable = re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]", "", text)
    assert ElementTree.fromstring(written).findtext("Content") == re.sub("\r\n?", "\n", sayable)


def test_an_answer_goes_back_where_the_message_came_from() -> None:
    """Sender and receiver change places in a reply."""
    message = CODEC.parse(payload(MsgType="text", MsgId="1", Content="hello"))
    reply = ElementTree.fromstring(CODEC.format(message, [Content(text=Text(text="hi"))]) or b"")
    assert (reply.findtext("ToUserName"), reply.findtext("FromUserName")) == ("zhangsan", CORPID)
