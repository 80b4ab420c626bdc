"""What the gateway itself says to members: one sentence each, when the engine is not asked or does not answer."""

_APOLOGY = {
    "zh": "抱歉，我现在无法回答这条消息，请稍后再试。",
    "en": "Sorry, I cannot answer this message right now. Please try again later.",
}
_DENIAL = {
    "zh": "抱歉，您暂时没有使用本助手的权限。如需开通，请联系管理员。",
    "en": "Sorry, you do not have access to this assistant. Please ask your administrator if you need it.",
}
_PATIENCE = {
    "zh": "您的消息有些频繁，我暂时处理不过来，请过一分钟再发。",
    "en": "That is more messages than I can keep up with. Please wait a minute before you write again.",
}


def apology(locale: str) -> str:
    """For a turn that failed."""
    return _said(_APOLOGY, locale)


def denial(locale: str) -> str:
    """For a member who may not use the assistant."""
    return _said(_DENIAL, locale)


def patience(locale: str) -> str:
    """For a member who sends too many messages."""
    return _said(_PATIENCE, locale)


def _said(sentence: dict[str, str], locale: str) -> str:
    """In the member's language; in Chinese where we have no other."""
    return sentence.get(locale.split("-")[0].lower(), sentence["zh"])
