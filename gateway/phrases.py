"""What the gateway itself says to members: one sentence when an answer could not be made."""

_APOLOGY = {
    "zh": "抱歉，我现在无法回答这条消息，请稍后再试。",
    "en": "Sorry, I cannot answer this message right now. Please try again later.",
}


def apology(locale: str) -> str:
    """The sentence for a turn that failed, in the member's language; Chinese where we have no other."""
    return _APOLOGY.get(locale.split("-")[0].lower(), _APOLOGY["zh"])
