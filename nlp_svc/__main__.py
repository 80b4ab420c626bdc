"""Starts nlp_svc: `python -m nlp_svc`."""

import asyncio

from assistant import telemetry, tls
from assistant.api.nlp.v1 import nlp_pb2
from assistant.api.skill.v1 import skill_pb2
from assistant.audit import Audit
from assistant.journal import Journal
from assistant.server import Server, run, serve
from assistant.settings import Source
from nlp_svc import effects, router, skills
from nlp_svc.effects import Effects
from nlp_svc.router import Router
from nlp_svc.service import NlpService
from nlp_svc.settings import NlpSettings
from nlp_svc.skills import SkillService

_NLP = nlp_pb2.DESCRIPTOR.services_by_name["NlpService"]
_SKILLS = skill_pb2.DESCRIPTOR.services_by_name["SkillService"]


async def _main() -> None:
    source = Source.load()
    settings = source.read(NlpSettings, "nlp")
    engine = Router(router.create(settings.provider, source))
    journal = await Journal.open(settings.database, effects.MIGRATIONS)
    kept = Effects(journal, settings.effects_keep_days)
    skill_service = SkillService(skills.create(source), kept, Audit("nlp_svc"))
    server = Server(
        {_NLP: NlpService(engine), _SKILLS: skill_service},
        listen=settings.listen,
        listen_setting="nlp.listen",
        admin=settings.admin,
        admin_setting="nlp.admin",
        identity=tls.identity(source, "nlp_svc"),
        callers=dict.fromkeys((_NLP.full_name, _SKILLS.full_name), settings.callers),
    )
    server.health.set(_NLP.full_name, False)
    loading = asyncio.create_task(_load(engine, server))
    await serve(server)
    loading.cancel()
    await journal.close()


async def _load(engine: Router, server: Server) -> None:
    await engine.load()
    server.health.set(_NLP.full_name, True)
    telemetry.info("engine_ready", model=engine.describe().model)


def main() -> None:
    """Run until SIGTERM."""
    telemetry.start("nlp_svc")
    run(_main())


if __name__ == "__main__":
    main()
