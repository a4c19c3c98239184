"""Whether objects have been freed."""

import gc
import sys
import time
import weakref

import jax


def collect() -> None:
    """Free what only JAX's caches and reference cycles keep."""
    jax.clear_caches()
    gc.collect()


def gone(*references: weakref.ref) -> bool:
    """Whether these objects are gone.

    A thread of the runtime lets go of a program a moment after its results are there; without
    the GIL nothing makes this thread wait for it.
    """
    latest = time.monotonic() + (0 if getattr(sys, "_is_gil_enabled", lambda: True)() else 10)
    while any(reference() is not None for reference in references):
        if time.monotonic() > latest:
            return False
        time.sleep(0.01)
        gc.collect()
    return True
