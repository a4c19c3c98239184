"""Functions of SciPy that write beyond their memory at some arguments: not called there."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from typing import Any

import numpy as np
import scipy.special


def guarded(name: str, operands: str, is_safe: Callable[..., Any]) -> Callable:
    """A function of SciPy over arrays, NaN where it is not safe.

    Args:
      name: in ``scipy.special``.
      operands: the names of its arguments.
      is_safe: of arrays of them, where SciPy can be called. A comparison with NaN is false.
    """
    ufunc = getattr(scipy.special, name)

    def function(*given: np.ndarray) -> Any:
        shape = np.broadcast_shapes(*(x.shape for x in given))
        results = tuple(np.full(shape, np.nan) for _ in range(ufunc.nout))
        with np.errstate(invalid="ignore"):
            ufunc(*given, out=results, where=is_safe(*given))
        return results if ufunc.nout > 1 else results[0]

    kind = Parameter.POSITIONAL_OR_KEYWORD
    vars(function)["__signature__"] = Signature([Parameter(o, kind) for o in operands.split()])
    function.__name__ = function.__qualname__ = name
    return function


def signature_of(name: str) -> str:
    """That of an elementwise function of SciPy."""
    ufunc = getattr(scipy.special, name)
    return f"{','.join(['()'] * ufunc.nin)}->{','.join(['()'] * ufunc.nout)}"
