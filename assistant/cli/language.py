"""The language that an operator is spoken to in: what the locale of the terminal says, as POSIX reads it."""

import os

from assistant.findings import CHINESE, ENGLISH, Language

_VARIABLES = ("LC_ALL", "LC_MESSAGES", "LANG")
"""The first that is set counts."""


def language() -> Language:
    """Chinese where the locale is one of China's, else English."""
    locale = next((value for name in _VARIABLES if (value := os.environ.get(name))), "")
    return CHINESE if locale.lower().startswith("zh") else ENGLISH
