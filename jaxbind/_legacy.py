"""The interface of JAXbind 1.3: `get_linear_call`, `get_nonlinear_call`, `load_kwargs`.

A thin layer: each function ``f(out, args, kwargs_dump)`` is bound as it is, its derivatives are
the bindings' derivatives, and ``func_can_batch`` is a ``vectorized`` binding whose loop
dimensions are announced as ``batch_axes``. See arXiv:2403.08847.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from jaxbind._binding import Binding
from jaxbind._definition import Definition
from jaxbind._options import Options
from jaxbind._roles import Function
from jaxbind._shapes import FromOut


class KwargsDump:
    """The keyword arguments of a call, on their way to `load_kwargs`."""

    __slots__ = ("values",)

    def __init__(self, values: dict[str, Any]):
        self.values = values


def load_kwargs(kwargs_dump: Any, /) -> dict[str, Any]:
    """The keyword arguments of a call, inside a function bound by this interface.

    Args:
      kwargs_dump: the third argument of the function (or, for calling such a function by hand, a
        ``uint8`` array of a pickled dict, as JAXbind 1.3 passed it).

    Returns:
      A new dict.
    """
    if isinstance(kwargs_dump, KwargsDump):
        return dict(kwargs_dump.values)
    return pickle.loads(np.asarray(kwargs_dump, np.uint8).tobytes())


@dataclass(frozen=True, eq=False)
class _Function:
    """What the user declared; ``_replace`` as in the named tuples of JAXbind 1.3."""

    f: Callable
    abstract: Callable
    abstract_T: Any
    first_n_args_fixed: int
    can_batch: bool
    T: Any = None
    derivatives: tuple[Callable, Callable] | None = None

    def _replace(self, **changes: Any) -> _Function:
        return replace(self, **changes)

    @cached_property
    def binding(self) -> Binding:
        fixed = frozenset(range(self.first_n_args_fixed))
        multilinear: frozenset[int] = frozenset()
        if isinstance(self.T, (tuple, list)):
            multilinear = frozenset(range(len(self.T))) - fixed
        role = Function(
            FromOut(self._shapes, None),
            self.derivatives is None and not multilinear,
            multilinear,
            fixed,
            None,
        )
        definition = Definition(
            _Caller(self, self.f, self.abstract),
            role,
            label=getattr(self.f, "__name__", "f"),
            module=getattr(self.f, "__module__", "") or "",
            options=Options(vectorized=self.can_batch, rules_vectorized=self.can_batch),
        )
        binding = Binding(definition)
        self._declare_derivatives(binding)
        return binding

    def _shapes(self, *args: Any, **kwargs: Any) -> list[jax.ShapeDtypeStruct]:
        if self.can_batch:
            kwargs["batch_axes"] = None
        declared = self.abstract(*args, **kwargs)
        return [jax.ShapeDtypeStruct(_shape(entry[0]), entry[1]) for entry in declared]

    def _declare_derivatives(self, binding: Binding) -> None:
        if self.derivatives is not None:
            jvp, vjp = self.derivatives
            binding.def_jvp(_Caller(self, jvp, self.abstract, kind="jvp"))
            binding.def_vjp(_Caller(self, vjp, self.abstract_T, kind="vjp"))
        elif isinstance(self.T, (tuple, list)):
            for position, (rule, abstract) in enumerate(zip(self.T, self.abstract_T, strict=True)):
                if rule is not None and position >= self.first_n_args_fixed:
                    caller = _Caller(self, rule, abstract, kind="transpose")
                    binding.def_transpose(position)(caller)
        elif self.T is not None:
            caller = _Caller(self, self.T, self.abstract_T, kind="transpose")
            binding.def_transpose(caller)


def _shape(given: Any) -> tuple[int, ...]:
    """A shape, which may be the size of a vector."""
    return (int(given),) if isinstance(given, (int, np.integer)) else tuple(given)


class _Caller:
    """Calls ``f(out, args, kwargs_dump)`` from a function or rule of a binding."""

    takes_loop = True

    def __init__(self, owner: _Function, f: Callable, abstract: Callable, kind: str = "call"):
        self.owner = owner
        self.f = f
        self.abstract = abstract
        self.kind = kind
        self.__name__ = getattr(f, "__name__", "f")

    def __call__(self, *args: Any, out: Any, loop: int = 0, **kwargs: Any) -> None:
        operands, outs = self._flat(args, out, loop)
        if self.owner.can_batch:
            operands, outs, kwargs = self._announce(operands, outs, loop, kwargs)
        self.f(tuple(outs), tuple(operands), KwargsDump(kwargs))

    def _flat(self, args: tuple, out: Any, loop: int) -> tuple[list[Any], list[Any]]:
        """The operands and results in JAXbind's order; each result has all loop dimensions."""
        fixed = self.owner.first_n_args_fixed
        if self.kind == "call":
            return list(args), list(out)
        if self.kind == "transpose":
            return [*args[:-1], *args[-1]], list(out) if isinstance(out, tuple) else [out]
        primals, second = args
        if self.kind == "jvp":
            return [*primals, *second[fixed:]], list(out)
        # JAXbind 1.3 has no `wrt`: the rule writes the cotangents of all arguments
        operands = [*primals, *second]
        full = np.broadcast_shapes(*(x.shape[:loop] for x in operands if x is not None))
        outs = [
            np.empty(full + x.shape[loop:], x.dtype) if o is None else o
            for o, x in zip(out[fixed:], primals[fixed:], strict=True)
        ]
        return operands, outs

    def _announce(
        self, operands: list[Any], outs: list[Any], loop: int, kwargs: dict[str, Any]
    ) -> tuple[list[Any], list[Any], dict[str, Any]]:
        """Loop dimensions as ``batch_axes``: per operand the axes, the newest last.

        A loop dimension of size 1 means that the operand is not batched along it.
        """
        live = [a for a in range(loop) if any(x.shape[a] != 1 for x in operands)]
        if not live:
            squeeze = (0,) * loop
            kwargs["batch_axes"] = None
            return [x[squeeze] for x in operands], [o[squeeze] for o in outs], kwargs
        own = [[a for a in live if x.shape[a] != 1] for x in operands]
        stripped = [
            x.reshape([x.shape[a] for a in axes] + list(x.shape[loop:]))
            for x, axes in zip(operands, own, strict=True)
        ]
        # where the batch axes of the results are: asked axis by axis, the oldest first
        places: list[list[int]] = [[] for _ in outs]
        axes: tuple = ()
        for count in range(1, len(live) + 1):
            seen = [[a for a in mine if a in live[-count:]] for mine in own]
            axes = tuple(tuple(range(len(mine) - 1, -1, -1)) for mine in seen)
            structs = [
                jax.ShapeDtypeStruct(tuple(x.shape[a] for a in mine) + x.shape[loop:], x.dtype)
                for x, mine in zip(operands, seen, strict=True)
            ]
            declared = self.abstract(*structs, **{**kwargs, "batch_axes": axes})
            for place, entry in zip(places, declared, strict=True):
                new = entry[2] if len(entry) > 2 and isinstance(entry[2], int) else 0
                place[:] = [p + (p >= new) for p in place] + [new]
        kwargs["batch_axes"] = axes
        newest_first = [
            o[tuple(slice(None) if a in live else 0 for a in range(loop))] for o in outs
        ]
        sources = list(range(len(live) - 1, -1, -1))
        moved = [
            np.moveaxis(o, sources, place) for o, place in zip(newest_first, places, strict=True)
        ]
        return stripped, moved, kwargs


def legacy_call(*args: Any, _func: _Function, **kwargs: Any) -> list[jax.Array]:
    return _func.binding(*args, **kwargs)


def get_linear_call(
    f: Callable,
    f_T: Callable | Sequence[Callable | None],
    /,
    abstract: Callable,
    abstract_T: Callable | Sequence[Callable | None],
    *,
    first_n_args_fixed: int = 0,
    func_can_batch: bool = False,
) -> partial:
    """Bind a linear, or multilinear, function (interface of JAXbind 1.3).

    New code is better served by `bind` with ``linear=`` or ``multilinear=``.

    Args:
      f: ``f(out, args, kwargs_dump)`` writes its results into the arrays of the tuple ``out``.
      f_T: its transpose, called alike with the fixed arguments and the cotangents; for a
        multilinear function a tuple with the transpose in each argument, called with the
        other arguments and the cotangents.
      abstract: ``abstract(*args, **kwargs)`` returns a tuple with ``(shape, dtype)`` for each
        result, with ``func_can_batch`` the result's newest batch axis behind them.
      abstract_T: the same for ``f_T``, a tuple if that is one.
      first_n_args_fixed: so many leading arguments are not differentiated (and f need not be
        linear in them).
      func_can_batch: f understands the keyword ``batch_axes``: ``None``, or for each argument a
        tuple of the axes that are batched.

    Returns:
      A function of the arguments and keywords that returns a list of arrays.
    """
    return partial(
        legacy_call,
        _func=_Function(f, abstract, abstract_T, first_n_args_fixed, func_can_batch, T=f_T),
    )


def get_nonlinear_call(
    f: Callable,
    f_derivative: tuple[Callable, Callable],
    /,
    abstract: Callable,
    abstract_reverse: Callable,
    *,
    first_n_args_fixed: int = 0,
    func_can_batch: bool = False,
) -> partial:
    """Bind a function with its first derivatives (interface of JAXbind 1.3).

    New code is better served by `bind`, `Binding.def_jvp` and `Binding.def_vjp`.

    Args:
      f: as in `get_linear_call`.
      f_derivative: the pushforward, called with the arguments and the tangents of those that
        are not fixed, and the pullback, called with the arguments and the cotangents.
      abstract: as in `get_linear_call`, for f and the pushforward.
      abstract_reverse: the same for the pullback.
      first_n_args_fixed: so many leading arguments are not differentiated.
      func_can_batch: as in `get_linear_call`, for f and both derivatives.

    Returns:
      A function of the arguments and keywords that returns a list of arrays.
    """
    jvp, vjp = f_derivative
    return partial(
        legacy_call,
        _func=_Function(
            f,
            abstract,
            abstract_reverse,
            first_n_args_fixed,
            func_can_batch,
            derivatives=(jvp, vjp),
        ),
    )
