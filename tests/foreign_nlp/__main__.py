"""An NLP service that owes nothing to ours: plain synchronous grpcio and the generated messages.

    python tests/foreign_nlp [VARIANT...]

It echoes, and asks a skill for the time. Each variant but "honest" breaks the contract in one way. For each
one it is asked for, it prints the name and the port, and serves them all until it is killed.
"""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from assistant.api.nlp.v1 import nlp_pb2, nlp_pb2_grpc


class Honest(nlp_pb2_grpc.NlpServiceServicer):
    """Keeps the contract."""

    def GenerateReply(self, request: Any, context: Any) -> Any:
        if not request.turn_id or not request.message.content:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "turn_id and message.content are needed")
        return self.reply(request)

    def StreamReply(self, request: Any, context: Any) -> Iterator[Any]:
        reply = self.GenerateReply(request.request, context)
        for content in reply.content:
            for word in content.text.text.split():
                yield nlp_pb2.StreamReplyResponse(text_delta=word + " ")
        yield nlp_pb2.StreamReplyResponse(summary=reply)

    def DescribeModel(self, request: Any, context: Any) -> Any:
        return nlp_pb2.DescribeModelResponse(provider="foreign", model="echo", version="1", ready=True)

    def reply(self, request: Any) -> Any:
        words = "".join(content.text.text for content in request.message.content)
        if request.skill_results:
            return self.say("done" if request.skill_results[-1].succeeded else "that did not work")
        if ("几点" in words or "time" in words) and any(skill.name == "clock" for skill in request.skills):
            return self.propose("clock", what="time")
        return self.say(f"You said: {words[:1000]}")

    def say(self, text: str) -> Any:
        reply = nlp_pb2.GenerateReplyResponse(model="echo/1", intent="echo", confidence=0.5)
        reply.content.add().text.text = text
        reply.state["turns"] = 1
        return reply

    def propose(self, skill: str, **arguments: str) -> Any:
        reply = nlp_pb2.GenerateReplyResponse(model="echo/1")
        action = reply.actions.add(skill=skill)
        action.arguments.update(arguments)
        return reply


class NotReady(Honest):
    def DescribeModel(self, request: Any, context: Any) -> Any:
        return nlp_pb2.DescribeModelResponse(provider="foreign", model="echo", version="1")


class Silent(Honest):
    def say(self, text: str) -> Any:
        return nlp_pb2.GenerateReplyResponse(model="echo/1")


class Nameless(Honest):
    def say(self, text: str) -> Any:
        reply = super().say(text)
        reply.model = ""
        return reply


class TooSure(Honest):
    def say(self, text: str) -> Any:
        reply = super().say(text)
        reply.confidence = 99
        return reply


class WordsOnly(Honest):
    def reply(self, request: Any) -> Any:
        if any(content.WhichOneof("kind") != "text" for content in request.message.content):
            raise NotImplementedError
        return super().reply(request)


class ShortOfMemory(Honest):
    def reply(self, request: Any) -> Any:
        if len(request.history) > 150:
            raise MemoryError
        return super().reply(request)


class Presumptuous(Honest):
    def reply(self, request: Any) -> Any:
        if "time" in "".join(content.text.text for content in request.message.content):
            return self.propose("clock", what="time")
        return super().reply(request)


class Careless(Honest):
    def propose(self, skill: str, **arguments: str) -> Any:
        return super().propose(skill, what="noon")


class Endless(Honest):
    def reply(self, request: Any) -> Any:
        if request.skill_results:
            return self.propose(request.skill_results[-1].action.skill)
        return super().reply(request)


class NoSummary(Honest):
    def StreamReply(self, request: Any, context: Any) -> Iterator[Any]:
        yield from list(super().StreamReply(request, context))[:-1]


class OtherSummary(Honest):
    def StreamReply(self, request: Any, context: Any) -> Iterator[Any]:
        *deltas, _ = super().StreamReply(request, context)
        yield from deltas
        yield nlp_pb2.StreamReplyResponse(summary=self.say("something else"))


class Lenient(Honest):
    def GenerateReply(self, request: Any, context: Any) -> Any:
        return self.reply(request)


class Terse(Honest):
    def GenerateReply(self, request: Any, context: Any) -> Any:
        if not request.turn_id or not request.message.content:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "")
        return self.reply(request)


class Crashing(Honest):
    def GenerateReply(self, request: Any, context: Any) -> Any:
        if not request.turn_id or not request.message.content:
            raise KeyError("message")
        return self.reply(request)


class Strict(Honest):
    def reply(self, request: Any) -> Any:
        if request.HasField("state") and "turns" not in request.state:
            raise KeyError("turns")
        return super().reply(request)


class Forgetful(Honest):
    """Takes a repeated turn for a mistake."""

    def __init__(self) -> None:
        self._turns: set[str] = set()

    def reply(self, request: Any) -> Any:
        if request.turn_id in self._turns and not request.skill_results:
            raise ValueError("again")
        self._turns.add(request.turn_id)
        return super().reply(request)


def serve(servicer: Honest) -> tuple[grpc.Server, int]:
    server = grpc.server(ThreadPoolExecutor(max_workers=4), options=[("grpc.so_reuseport", 0)])
    nlp_pb2_grpc.add_NlpServiceServicer_to_server(servicer, server)
    checker = health.HealthServicer()
    service = nlp_pb2.DESCRIPTOR.services_by_name["NlpService"].full_name
    checker.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checker, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def main() -> None:
    variants = {cls.__name__: cls for cls in (Honest, *Honest.__subclasses__())}
    servers = [(name, *serve(variants[name]())) for name in sys.argv[1:] or variants]
    for name, _, port in servers:
        print(name, port, flush=True)
    for _, server, _ in servers:
        server.wait_for_termination()


if __name__ == "__main__":
    main()
