"""`Handler`: an XLA FFI handler that somebody else compiled."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxbind import _dtypes, _loops
from jaxbind._attributes import Attributes
from jaxbind._loop import held, names_of
from jaxbind._pointers import pointer_of


class Handler:
    """An XLA FFI handler of another library, to be bound with `jaxbind.bind`.

    ``bind(Handler(symbol), "(n)->(n)", dtype=...)`` declares shapes as for any function. The
    handler gets buffers of core dimensions; loop dimensions are looped over around it, inside one
    foreign call, unless it is bound with ``vectorized=True``. Static parameters become attributes:
    booleans, integers (int64), floats (float64), strings, NumPy scalars, and tuples of numbers
    (arrays).

    Args:
      pointer: a ctypes symbol, a capsule (as `jax.ffi.pycapsule` makes), or an address of a
        ``XLA_FFI_Error *handler(XLA_FFI_CallFrame *)`` for the CPU, which must keep no state of its
        own (no instantiate stage). It is kept alive.
      operands: how many arrays it takes, or their names (one name, or several).
      attributes: names of its attributes, or a mapping to their dtypes.
      name: how errors call it.

    Raises:
      TypeError: for a pointer of unknown kind.
      ValueError: for a null pointer.
    """

    def __init__(
        self,
        pointer: Any,
        operands: int | str | Sequence[str] = 1,
        *,
        attributes: str | Sequence[str] | Mapping[str, Any] = (),
        name: str | None = None,
    ):
        self.pointer = pointer_of(pointer, "Handler")
        found = getattr(pointer, "__name__", None)
        self.__name__ = name or (found if isinstance(found, str) and found else "handler")
        self.__module__ = ""
        self.__doc__ = None
        names = _numbered(operands) if isinstance(operands, int) else names_of(operands)
        if not isinstance(attributes, Mapping):
            attributes = dict.fromkeys(names_of(attributes))
        self.attributes = {n: None if d is None else np.dtype(d) for n, d in attributes.items()}
        self.__signature__ = inspect.Signature(
            [
                *(inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in names),
                *(inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in self.attributes),
            ]
        )

    def __repr__(self) -> str:
        return f"<jaxbind.Handler {self.__name__}>"

    def __call__(self, *operands: Any, **attributes: Any) -> Any:
        raise TypeError(
            f"{self.__name__}: an XLA handler can only be called by XLA; call its binding instead"
        )

    # What a definition asks of compiled functions: see `_loop.Loop` ------------------------------

    dtypes = ()

    def loop_for(self, dtypes: Sequence[np.dtype]) -> Handler:
        del dtypes
        return self

    def loop_of(self, resolved: Sequence[np.dtype]) -> Handler:
        del resolved
        return self

    def check(self, label: str, static: Mapping[str, Any]) -> None:
        for name, value in static.items():
            self._attribute(label, name, value)

    def site(
        self,
        label: str,
        names: Sequence[str],
        results: int,
        loop: int,
        threads: int,
        static: Mapping[str, Any],
    ) -> _loops.LoopSite:
        """The call site of a program that calls it."""
        count = len(names) + results
        values = {name: self._attribute(label, name, value) for name, value in static.items()}
        return _loops.LoopSite(
            label=label,
            names=list(names),
            owner=self.pointer,
            function=self.pointer.address,
            data=0,
            inner_loop=False,
            operands=len(names),
            loop=loop,
            codes=[1] * count,
            cores=[[]] * count,
            dims=0,
            source=[-1] * count,
            fortran=False,
            slots=[],
            returns=0,
            result_code=0,
            may_raise=False,
            threads=threads,
            attributes=Attributes(values),
        )

    def _attribute(self, label: str, name: str, value: Any) -> Any:
        dtype = self.attributes.get(name)
        if isinstance(value, str) and dtype is None:
            return value
        try:
            array = np.asarray(value) if dtype is None else held(value, dtype)
        except (TypeError, ValueError, OverflowError):
            array = None
        if array is None or array.dtype not in _dtypes.CODE_OF or array.ndim > 1:
            kind = f" of dtype {dtype.name}" if dtype is not None else ""
            raise TypeError(
                f"{label}: static parameter {name}={value!r} is no attribute{kind}; attributes are"
                " numbers, booleans, strings, and tuples of numbers"
            )
        return array


def _numbered(count: int) -> tuple[str, ...]:
    """Names of operands that have none."""
    return tuple(f"x{i + 1}" for i in range(count))
