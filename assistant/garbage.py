"""The garbage collector, told what a server's memory is like."""

import gc

_YOUNG = 20_000
"""Objects between two looks. A message leaves hundreds, none of them in a cycle unless something failed."""


def settle() -> None:
    """Call it once all is set up: what lives now lives as long as the process, and is not looked at again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG)
