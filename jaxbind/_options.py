"""`Options`: how a function is called, as its user asked in `bind`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True, eq=False)
class Options:
    """How a function is called.

    Attributes:
      vectorized: whether the function takes loop dimensions itself.
      rules_vectorized: whether its rules do.
      order: of the arrays that it sees, ``"C"`` or ``"F"``.
      compute_dtype: the only dtype that it knows, if it knows one only.
      compiled: the loops of a ufunc, a kernel or a handler, that are called without Python.
      threads: how many the loop dimensions are spread over, 0 for all.
      aliases: pairs of an argument and a result that may share memory.
      allow_jax: whether the function calls JAX.
      effect: ``"unordered"`` or ``"ordered"``, if calls must not be merged or left out.
    """

    vectorized: bool = False
    rules_vectorized: bool = False
    order: Literal["C", "F"] = "C"
    compute_dtype: np.dtype | None = None
    compiled: Any = None
    threads: int = 1
    aliases: tuple[tuple[int, int], ...] = ()
    allow_jax: bool = False
    effect: Literal["unordered", "ordered"] | None = None

    def of_rules(self) -> Options:
        """How the function's rules are called, which are Python functions and pure."""
        return replace(
            self,
            vectorized=self.rules_vectorized,
            compiled=None,
            threads=self.threads if self.compiled is None else 1,  # that says C code is safe
            aliases=(),
            effect=None,
        )
