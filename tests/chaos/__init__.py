"""`make chaos`: faults under load, and independent books of what every message came to. See docs/reliability.md."""
