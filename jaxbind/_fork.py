"""Children of fork, in which JAX's runtime has lost its threads: new programs are refused.

JAX would wait for ever when it compiles one. What is compiled already works there, as far as JAX
runs it without its threads; an error of ours, on its way through the runtime, would not.
"""

from __future__ import annotations

import os

from jaxbind import _jax, _pycall, _sites

_refused = False


def check(label: str) -> None:
    """Raise in a process in which compiling would never end.

    Raises:
      RuntimeError: with the remedy.
    """
    if _refused:
        raise RuntimeError(
            f"{label}: this process is a child of fork, in which JAX's runtime has lost its threads"
            " and would wait for ever. Start processes with multiprocessing.get_context('spawn')"
            " or 'forkserver', or fork before JAX is used"
        )


def _in_child() -> None:
    global _refused
    _refused = _refused or _jax.runtime_has_started()
    _sites.forget_calls()
    _pycall.enter_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
