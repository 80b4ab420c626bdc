"""The errors that the platform's API answers with (90313)."""


class ApiError(Exception):
    """A call is answered with this errcode."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
