"""Answers `<number> <seconds> <words>` after so many seconds with `begin-<number> … end-<number>`."""

import asyncio
from typing import Any

from assistant import plugin
from assistant.api.nlp.v1.nlp_pb2 import DescribeModelResponse, GenerateReplyRequest, GenerateReplyResponse


class Engine(plugin.Engine):
    """Thinks as long as it is told."""

    def __init__(self, settings: Any) -> None:
        """There is nothing to set."""

    def describe(self) -> DescribeModelResponse:
        return DescribeModelResponse(provider="scripted", model="scripted", version="1")

    async def generate(self, request: GenerateReplyRequest) -> GenerateReplyResponse:
        number, seconds, words = request.message.content[0].text.text.split()
        await asyncio.sleep(float(seconds))
        response = GenerateReplyResponse(model="scripted/1")
        response.content.add().text.text = " ".join((f"begin-{number}", *["word"] * int(words), f"end-{number}"))
        return response
