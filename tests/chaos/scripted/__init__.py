"""An engine for the chaos runs: each message says how long to think about it and how long the answer shall be."""

from assistant.plugin import EnginePlugin

manifest = EnginePlugin(name="scripted", title={"en": "Scripted"})
