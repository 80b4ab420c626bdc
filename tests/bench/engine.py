"""An NLP service that answers each message with its own words after a pause, as a model would."""

import asyncio
import random
import sys

from assistant import server
from assistant.api.nlp.v1 import nlp_pb2
from assistant.api.nlp.v1.nlp_pb2 import (
    DescribeModelRequest,
    DescribeModelResponse,
    GenerateReplyRequest,
    GenerateReplyResponse,
)

_SERVICE = nlp_pb2.DESCRIPTOR.services_by_name["NlpService"]


class Echo:
    """Takes `least_s` to `most_s` seconds for an answer."""

    def __init__(self, least_s: float, most_s: float) -> None:
        self._least_s = least_s
        self._most_s = most_s

    async def GenerateReply(self, request: GenerateReplyRequest, call: server.Call) -> GenerateReplyResponse:
        await asyncio.sleep(random.uniform(self._least_s, self._most_s))
        return GenerateReplyResponse(content=request.message.content, model="echo")

    def DescribeModel(self, request: DescribeModelRequest, call: server.Call) -> DescribeModelResponse:
        return DescribeModelResponse(provider="bench", model="echo", ready=True)


if __name__ == "__main__":
    port, least_s, most_s = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    server.run(server.serve(server.Server({_SERVICE: Echo(least_s, most_s)}, listen=f"127.0.0.1:{port}")))
