"""`python -m assistant.cli` is `ai-assistant-cli`."""

from assistant.cli import main

main(prog_name="ai-assistant-cli")
