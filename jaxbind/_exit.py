"""The interpreter leaves: calls in flight end, new ones are refused, and nothing is printed.

Daemon threads go on until Python kills them, one at a time, where they next ask for the GIL. One
that calls JAX is killed inside of frames of C++ that nothing may unwind, and would take the
process with it: it is made to wait instead. One that a refused call still reaches is not reported.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Callable
from typing import Any

from jaxbind import _frame


def prepare() -> None:
    """Arrange for the end; once, after JAX has arranged for its own, so that ours comes first."""
    atexit.register(_leave)


def _leave() -> None:
    threading.excepthook = _silent_about_refusals(threading.excepthook)
    _frame.drain()


def _silent_about_refusals(report: Callable[[Any], object]) -> Callable[[Any], None]:
    def excepthook(args: Any) -> None:
        thread = args.thread
        if thread is None or not thread.daemon or _frame.REFUSED not in str(args.exc_value):
            report(args)

    return excepthook
