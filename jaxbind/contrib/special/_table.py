"""How a function of SciPy is declared here, and the table of all that are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, NamedTuple

import jax.numpy as jnp
import scipy.special

from jaxbind import bind
from jaxbind._binding import Binding

HOME = "jaxbind.contrib.special"


class Range(NamedTuple):
    """Where an argument was checked: the numbers (or integers) from ``low`` to ``high``."""

    low: float
    high: float
    integer: bool = False

    def __str__(self) -> str:
        kind = "integers " if self.integer else ""
        return f"{kind}{self.low:g} … {self.high:g}"


def integers(low: int, high: int) -> Range:
    return Range(low, high, True)


@dataclass(frozen=True)
class Entry:
    """A function with what is known about its derivatives.

    Attributes:
      name: as in ``scipy.special``.
      binding: the function.
      source: of its derivatives.
      domain: for each argument, where they were checked.
      analytic: whether they hold for complex arguments, too.
      differentiable: of each argument, whether it has a derivative.
      rtol: how exactly SciPy's values follow the formula, where that is not to rounding.
    """

    name: str
    binding: Binding
    source: str
    domain: tuple[Range, ...]
    analytic: bool
    differentiable: tuple[bool, ...]
    rtol: float | None = None


#: all functions, by name
FUNCTIONS: dict[str, Entry] = {}


def special(
    function: str | Callable,
    *partials: Callable | None,
    source: str,
    domain: tuple[Any, ...],
    analytic: bool = False,
    signature: str | None = None,
    dtype: Any = None,
    rtol: float | None = None,
) -> Binding:
    """Bind a function of SciPy with its partial derivatives.

    Args:
      function: its name in ``scipy.special``, or a function over arrays for what is no ufunc.
      partials: for each argument; ``None`` where there is no closed form.
      source: of the formulas.
      domain: for each argument, the range in which to check them: ``(low, high)`` or `integers`.
      analytic: whether they hold for complex arguments.
      signature, dtype: of a function that is no ufunc.
      rtol: how exactly SciPy's values follow the formula, where that is not to rounding.
    """
    fixed = [i for i, rule in enumerate(partials) if rule is None]
    if isinstance(function, str):
        name = function
        binding = bind(getattr(scipy.special, name), nondiff=fixed, threads=0)
    else:
        name = function.__name__
        binding = bind(
            function,
            signature,
            dtype=dtype,
            nondiff=fixed,
            vectorized=True,
            compute_dtype=float,
        )
    binding.definition.home = HOME
    binding.definition.module = ""
    binding.def_partials(*(rule and _of_signed(rule) for rule in partials))
    FUNCTIONS[name] = Entry(
        name,
        binding,
        source,
        tuple(r if isinstance(r, Range) else Range(*r) for r in domain),
        analytic,
        tuple(rule is not None for rule in partials),
        rtol,
    )
    return binding


def density(name: str, *partials: Callable | None) -> Binding:
    """A density of ``scipy.stats``, a ufunc that ``scipy.special`` does not show."""
    fixed = [i for i, rule in enumerate(partials) if rule is None]
    compiled = getattr(scipy.special._ufuncs, name, None)
    if compiled is not None:
        binding = bind(compiled, nondiff=fixed, threads=0)
    else:  # the name is SciPy's own, and may be another in a later release
        signature = ",".join(["()"] * len(partials)) + "->()"
        binding = bind(_density_of_stats(name), signature, nondiff=fixed, vectorized=True)
    binding.definition.home = f"{HOME}._statistics"
    binding.definition.module = ""
    binding.def_partials(*partials)
    return binding


def _density_of_stats(name: str) -> Callable:
    def pdf(*args: Any, out: Any) -> None:
        import scipy.stats  # takes a second

        distribution = getattr(scipy.stats, name.removeprefix("_").removesuffix("_pdf"))
        out[...] = distribution.pdf(*args)

    return pdf


def _of_signed(rule: Callable) -> Callable:
    """The rule with orders that it can lower by one: ``uint8(0) - 1`` is 255."""

    @wraps(rule)
    def partial(*primals: Any) -> Any:
        return rule(*map(_signed, primals))

    return partial


def _signed(x: Any) -> Any:
    narrow = jnp.issubdtype(x.dtype, jnp.integer) and x.dtype.itemsize < 4
    unsigned = jnp.issubdtype(x.dtype, jnp.unsignedinteger)
    return x.astype(int) if narrow or unsigned else x


def promote_dtypes(*operands: Any) -> list[Any]:
    """As arrays of one floating-point dtype."""
    dtype = jnp.result_type(*operands, float)
    return [jnp.asarray(x, dtype) for x in operands]


def either(condition: Any, x: Any, inside: Callable, outside: Callable, safe: float) -> Any:
    """``inside(x)`` where ``condition``, ``outside(x)`` elsewhere, each evaluated there only.

    ``safe`` is an argument at which ``outside`` is finite: a branch that is not taken must not
    put its nan into a derivative.
    """
    return jnp.where(
        condition, inside(jnp.where(condition, x, 0)), outside(_at(condition, x, safe))
    )


def _at(condition: Any, x: Any, safe: float) -> Any:
    return jnp.where(condition, jnp.asarray(safe, jnp.result_type(x)), x)


def real_only(name: str, *operands: Any) -> None:
    """Refuse the derivative of what is no analytic function.

    Raises:
      TypeError: if an operand is complex.
    """
    if any(jnp.iscomplexobj(x) for x in operands):
        raise TypeError(
            f"{name}: not differentiable at complex arguments, where it is not analytic (it takes"
            " an absolute value, or its derivative has no closed form)"
        )
