"""The microkernel that every process shares. It imports no service, and no plugin by name."""
