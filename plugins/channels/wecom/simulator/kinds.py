"""What a member can send to an app: every message (90239) and event (90240) of a self-built app.

Each field stands with an example: it is sent where a request does not say otherwise, and the page offers it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_SCAN = {"ScanType": "qrcode", "ScanResult": "https://example.com/asset/42"}
_PICTURES = {"Count": 1, "PicList": {"item": [{"PicMd5Sum": "5a75aaca956d97be686719218f275c6b"}]}}
_PLACE = {"Location_X": "39.908", "Location_Y": "116.397", "Scale": "15", "Label": "北京市东城区", "Poiname": "天安门"}
_CHOICE = {"SelectedItem": [{"QuestionKey": "question", "OptionIds": {"OptionId": ["option"]}}]}
_CUSTOMER_SERVICE = {"Token": "ENCApHxnGDNAVNY4AaSJKj4Tb5mwsEMzxhFmHVGcra996NR", "OpenKfId": "wkAJ2GCAAAZ"}


@dataclass(frozen=True)
class Kind:
    """One MsgType, or one Event."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    event: bool = False
    takes_reply: bool = True
    """Whether the platform shows a reply in the HTTP answer to it."""
    from_app: bool = True
    """Whether it names the app; events of the whole company do not."""


def _message(name: str, **fields: Any) -> Kind:
    return Kind(name, fields)


def _event(name: str, **fields: Any) -> Kind:
    return Kind(name, fields, event=True)


def _notice(name: str, **fields: Any) -> Kind:
    return Kind(name, fields, event=True, takes_reply=False)


def _company_notice(name: str, **fields: Any) -> Kind:
    return Kind(name, fields, event=True, takes_reply=False, from_app=False)


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        _message("text", Content="你好"),
        _message("image", PicUrl="", MediaId=""),
        _message("voice", MediaId="", Format="amr"),
        _message("video", MediaId="", ThumbMediaId=""),
        _message(
            "location",
            Location_X="39.908",
            Location_Y="116.397",
            Scale=15,
            Label="北京市东城区天安门",
            AppType="wxwork",
        ),
        _message("link", Title="周报", Description="第 47 周的进展", Url="https://example.com/weekly/47", PicUrl=""),
        _event("subscribe"),
        _notice("unsubscribe"),
        _event("enter_agent", EventKey=""),
        _event("LOCATION", Latitude="39.908", Longitude="116.397", Precision="65", AppType="wxwork"),
        _event("click", EventKey="help"),
        _event("view", EventKey="https://example.com/handbook"),
        _event("view_miniprogram", EventKey="pages/index"),
        _notice("scancode_push", EventKey="scan", ScanCodeInfo=_SCAN),
        _event("scancode_waitmsg", EventKey="scan", ScanCodeInfo=_SCAN),
        _notice("pic_sysphoto", EventKey="photo", SendPicsInfo=_PICTURES),
        _notice("pic_photo_or_album", EventKey="photo", SendPicsInfo=_PICTURES),
        _notice("pic_weixin", EventKey="photo", SendPicsInfo=_PICTURES),
        _notice("location_select", EventKey="place", SendLocationInfo=_PLACE, AppType="wxwork"),
        _event(
            "template_card_event",
            EventKey="approve",
            TaskId="task-1",
            CardType="button_interaction",
            ResponseCode="",
            SelectedItems=_CHOICE,
        ),
        _event("template_card_menu_event", EventKey="menu", TaskId="task-1", CardType="text_notice", ResponseCode=""),
        _event("taskcard_click", EventKey="approve", TaskId="task-1"),
        _company_notice(
            "batch_job_result", BatchJob={"JobId": "S0MrnndvRG5f", "JobType": "sync_user", "ErrCode": 0, "ErrMsg": "ok"}
        ),
        _company_notice("change_contact", ChangeType="update_user", UserID="zhangsan", Department="1,2"),
        _notice(
            "open_approval_change",
            ApprovalInfo={"ThirdNo": "201806010001", "OpenSpName": "付款", "OpenSpStatus": 1},
        ),
        _notice("share_agent_change"),
        _notice("share_chain_change"),
        _notice("inactive_alert", EffectTime=1700000000),
        _notice("low_active_alert", EffectTime=1700000000),
        _notice("close_inactive_agent"),
        _notice("reopen_inactive_agent"),
        _notice("low_active"),
        _notice("active_restored"),
        _company_notice("kf_msg_or_event", **_CUSTOMER_SERVICE),
    )
}


def payload(kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of one message or event: those given, else the examples. Raises ValueError, naming a wrong field."""
    unknown = sorted(given.keys() - kind.fields.keys())
    if unknown:
        known = ", ".join(kind.fields) or "no fields"
        raise ValueError(f"{unknown[0]!r} is not a field of {kind.name!r}: it has {known}")
    for name, value in given.items():
        example = kind.fields[name]
        if type(value) is not type(example):
            raise ValueError(f"{name!r} has the wrong form: write it like {example!r}")
    return {**kind.fields, **given}
