"""Ufuncs and gufuncs: their own inner loops, found by the dtypes of operands."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from jaxbind import _dtypes, _loops
from jaxbind._loop import Loop
from jaxbind._signature import Signature

#: NumPy's ufuncs that work in place on an operand, and what to bind instead
WRITE_INTO_OPERANDS = {"qr_r_raw": "bind a function that calls np.linalg.qr(a, mode='raw')"}


def writes_into_operands(function: Any) -> str | None:
    """The remedy for a ufunc whose loop changes its operands; ``None`` for others."""
    ufunc: Any = ufunc_of(function)
    if getattr(getattr(function, "gufunc_builder", None), "writable_args", ()):  # Numba's
        return "leave out writable_args=, and work on a copy or in a further output"
    return WRITE_INTO_OPERANDS.get(ufunc.__name__)


def ufunc_of(function: Any) -> np.ufunc | None:
    """The ufunc that a function is, or is made of (Numba's)."""
    if isinstance(function, np.ufunc):
        return function
    inner = getattr(function, "ufunc", None)
    if isinstance(inner, np.ufunc) and type(function).__module__.startswith("numba."):
        return inner
    return None


def partial_of_ufunc(function: Any) -> tuple[np.ufunc, int] | None:
    """The ufunc inside of a `functools.partial`, and how many of its operands that gives."""
    given = 0
    while isinstance(function, partial):
        given += len(function.args)
        function = function.func
    ufunc = ufunc_of(function)
    return None if ufunc is None else (ufunc, given)


def input_names(ufunc: Any) -> tuple[str, ...]:
    """What its documentation calls the inputs; NumPy's ``x1``, ``x2`` where it does not."""
    call = re.compile(rf"^\s*{re.escape(ufunc.__name__)}\(([^()]*)", re.MULTILINE)
    found = [f"x{i + 1}" for i in range(ufunc.nin)]
    for match in call.finditer(ufunc.__doc__ or ""):  # the last is SciPy's own
        names = [name.strip() for name in re.sub(r"[\[\]/]", "", match[1]).split(",")]
        names = [name for name in names if name][: ufunc.nin]
        if len(set(names)) == ufunc.nin and all(name.isidentifier() for name in names):
            found = names
    return tuple(found)


class UfuncLoops:
    """The inner loops of a ufunc, found by the dtypes of its operands.

    Args:
      results: the dtypes of its results, if they were declared.
    """

    def __init__(
        self, function: Any, signature: Signature, results: Sequence[np.dtype] | None = None
    ):
        self.function = function
        self.signature = signature
        self.results = results
        #: SciPy's and Numba's loops raise where they are told to
        self.may_raise = type(function) is not np.ufunc or _module_of(function) != "numpy"

    @property
    def ufunc(self) -> Any:
        """NumPy's object; Numba makes a new one for each loop that it adds."""
        return ufunc_of(self.function)

    @property
    def of_objects(self) -> bool:
        """Whether all loops are over Python objects (``np.frompyfunc``)."""
        types = self.ufunc.types
        return bool(types) and all(set(text) <= set("O->") for text in types)

    def over_arrays(self) -> Callable[..., None]:
        """A function over arrays of numbers, in place of loops over objects."""
        ufunc = self.ufunc

        def call(*operands: np.ndarray, out: Any) -> None:
            results = ufunc(*operands)
            if ufunc.nout == 1:
                out[...] = results
                return
            for place, result in zip(out, results, strict=True):
                place[...] = result

        call.__name__ = call.__qualname__ = ufunc.__name__
        call.__module__ = ""
        return call

    def resolve(self, dtypes: Sequence[np.dtype]) -> tuple[np.dtype, ...]:
        """The dtypes of the loop that NumPy chooses.

        Raises:
          TypeError: if there is none.
        """
        if not self.ufunc.ntypes or (
            self.ufunc is not self.function and self._exact(dtypes) is None
        ):
            self._compile(dtypes)
        return self.ufunc.resolve_dtypes((*dtypes, *[None] * self.ufunc.nout))

    def of_numbers(
        self, dtypes: Sequence[np.dtype], weak: Sequence[bool]
    ) -> tuple[np.dtype, ...] | None:
        """The operands' dtypes, some of which are numbers of Python's, in NumPy's loop for them.

        ``None`` where NumPy does not know before it is called.
        """
        kinds = {"b": bool, "i": int, "f": float, "c": complex}
        asked = [kinds.get(d.kind, d) if w else d for d, w in zip(dtypes, weak, strict=True)]
        try:
            found = self.ufunc.resolve_dtypes((*asked, *[None] * self.ufunc.nout))
        except TypeError:
            return None
        return tuple(map(_dtypes.canonical, found[: len(dtypes)]))

    def computed_sizes(
        self, core_shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype]
    ) -> dict[str, int]:
        """The sizes of core dimensions of the results; NumPy tells them for no data at all."""
        empty = [np.empty((0, *s), d) for s, d in zip(core_shapes, dtypes, strict=True)]
        results = self.ufunc(*empty)
        results = results if isinstance(results, tuple) else (results,)
        return {
            dim.name: size
            for core, result in zip(self.signature.outputs, results, strict=True)
            for dim, size in zip(core, result.shape[1:], strict=True)
        }

    def _exact(self, dtypes: Sequence[np.dtype]) -> int | None:
        for index, text in enumerate(self.ufunc.types):
            inputs = text.partition("->")[0]
            if [np.dtype(c) for c in inputs] == list(dtypes):
                return index
        return None

    def _compile(self, dtypes: Sequence[np.dtype]) -> None:
        """Have Numba compile a loop, if it does so at the first call."""
        if getattr(self.function, "_frozen", False):
            return
        if self.ufunc.signature is None:
            self.function(*[np.zeros(1, d) for d in dtypes])
        elif getattr(self.function, "is_dynamic", False):  # its results are arguments, too
            results = self.results or [np.result_type(*dtypes)] * self.ufunc.nout
            self.function.add(_numba_signature(self.signature, dtypes, results))
            self.function.build_ufunc()

    def loop_for(self, dtypes: Sequence[np.dtype]) -> Loop | None:
        """The loop for operands of these dtypes; ``None`` if Python must call it."""
        if "?" in str(self.signature) or "|1" in str(self.signature):
            return None  # dimensions that come and go: NumPy knows how
        try:
            resolved = self.resolve(dtypes)
        except TypeError:
            return None
        return self.loop_of(resolved)

    def loop_of(self, resolved: Sequence[np.dtype]) -> Loop | None:
        if any(d not in _dtypes.CODE_OF or _loops_cannot(d) for d in resolved):
            return None
        for index, text in enumerate(self.ufunc.types):
            if [np.dtype(c) for c in text.replace("->", "")] == list(resolved):
                return self._loop(index, tuple(resolved))
        return None  # a loop of somebody's own dtype, or one that is chosen otherwise

    def _loop(self, index: int, dtypes: tuple[np.dtype, ...]) -> Loop | None:
        function, data = _loops.ufunc_loop(self.ufunc, index)
        if not function:
            return None
        return Loop(
            function,
            data,
            self.function,
            self.signature,
            dtypes,
            # so do NumPy's for integers: a negative power, say
            may_raise=self.may_raise or all(d.kind in "iu" for d in dtypes),
        )


def _numba_signature(
    signature: Signature, inputs: Sequence[np.dtype], outputs: Sequence[np.dtype]
) -> str:
    """As `numba.guvectorize` takes it: ``void(float64[:,:], float64, float64[:])``."""

    def array(dtype: np.dtype, rank: int) -> str:
        name = "boolean" if dtype.kind == "b" else dtype.name
        return name + (f"[{','.join(':' * rank)}]" if rank else "")

    given = [array(d, len(core)) for d, core in zip(inputs, signature.inputs, strict=True)]
    # a scalar result is an array of one element
    made = [array(d, len(core) or 1) for d, core in zip(outputs, signature.outputs, strict=True)]
    return f"void({', '.join(given + made)})"


def _loops_cannot(dtype: np.dtype) -> bool:
    return dtype.kind == "V" and dtype.name != "bfloat16"


def _module_of(ufunc: np.ufunc) -> str:
    return "numpy" if getattr(np, ufunc.__name__, None) is ufunc else ""
