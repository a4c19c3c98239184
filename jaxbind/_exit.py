"""The interpreter leaves: calls in flight end, new ones are refused, and nothing is printed.

Daemon threads go on until Python kills them, one at a time, where they next ask for the GIL. One
that calls JAX is killed inside of frames of C++ that nothing may unwind, and would take the
process with it: it is made to wait instead. Refused calls of daemon threads are not reported, nor
the effects for which JAX then waits in vain.
"""

from __future__ import annotations

import atexit
import sys
import threading
from collections.abc import Callable
from typing import Any

from jaxbind import _sites


def prepare() -> None:
    """Arrange for the end; once, after JAX has arranged for its own, so that ours comes first."""
    atexit.register(_leave)


def _leave() -> None:
    threading.excepthook = _silent_about_refusals(threading.excepthook)
    sys.unraisablehook = _silent_about_refusals(sys.unraisablehook)
    _sites.drain()


def _silent_about_refusals(report: Callable[[Any], object]) -> Callable[[Any], None]:
    def hook(args: Any) -> None:
        thread = getattr(args, "thread", None)
        own = thread is not None and not thread.daemon
        if own or _sites.REFUSED not in str(args.exc_value):
            report(args)

    return hook
