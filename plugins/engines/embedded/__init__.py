"""The engine that is always there: commands, small talk and the time, without a model and without a network."""

from assistant.plugin import EnginePlugin

manifest = EnginePlugin(name="embedded", title={"en": "Embedded", "zh-CN": "内置引擎"})
