"""`Loop`: a compiled function with all that is needed to call it without Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxbind import _dtypes, _loops
from jaxbind._signature import Signature

#: kinds of slots, as in ``_loops.h``
BUFFER, ELEMENT, DIM, DIM_POINTER, VALUE, VALUE_POINTER, STATUS, DATA = range(8)
#: what a function returns
NOTHING, RETURNS_STATUS, RESULT = range(3)


class Slot(NamedTuple):
    """One argument of a C function: what is passed, and as which type.

    Attributes:
      char: whether the number stands for a letter.
      length: whether the length of the text is passed, not the text.
    """

    kind: int
    index: int
    dtype: np.dtype
    name: str = ""
    char: bool = False
    length: bool = False


@dataclass(frozen=True, eq=False)
class Loop:
    """A compiled function with the dtypes that it knows.

    Attributes:
      function, data: addresses.
      owner: what keeps them valid.
      signature: its core dimensions.
      dtypes: of inputs and outputs.
      slots: its arguments; ``None`` for the inner loop of a gufunc.
      returns: ``NOTHING``, ``RETURNS_STATUS`` or ``RESULT``.
      source: for each output, the input whose value it starts with, or -1.
      may_raise: whether it may leave a Python exception behind.
      status: the type of the status that it returns.
    """

    function: int
    data: int
    owner: Any
    signature: Signature
    dtypes: tuple[np.dtype, ...]
    slots: tuple[Slot, ...] | None = None
    returns: int = NOTHING
    source: tuple[int, ...] = ()
    fortran: bool = False
    may_raise: bool = False
    status: np.dtype = np.dtype(np.int32)  # noqa: RUF009

    def static_values(self, label: str, static: Mapping[str, Any]) -> list[bytes]:
        """The bytes of the static parameters, empty for other slots.

        Raises:
          TypeError: naming one that does not fit its C type.
        """
        return [_value(label, slot, static) for slot in self.slots or ()]

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
        signature = self.signature
        assert results == len(signature.outputs)
        cores = [*signature.inputs, *signature.outputs]
        dims = dim_numbers(signature)
        source = self.source or (-1,) * len(signature.outputs)
        values = self.static_values(label, static)
        slots = [
            (s.kind, s.index, _dtypes.CODE_OF[s.dtype], value)
            for s, value in zip(self.slots or (), values, strict=True)
        ]
        return _loops.LoopSite(
            label=label,
            names=list(names),
            owner=self,
            function=self.function,
            data=self.data,
            inner_loop=self.slots is None,
            operands=len(signature.inputs),
            loop=loop,
            codes=[_dtypes.CODE_OF[d] for d in self.dtypes],
            cores=[[dims[d.name] for d in core] for core in cores],
            dims=len(dims),
            source=[-1] * len(signature.inputs) + list(source),
            fortran=self.fortran,
            slots=slots,
            returns=self.returns,
            result_code=_dtypes.CODE_OF[
                self.status if self.returns == RETURNS_STATUS else self.dtypes[-1]
            ],
            may_raise=self.may_raise,
            threads=threads,
        )

    def on_arrays(self, label: str, names: Sequence[str], given: Sequence[Any], **static: Any):
        """Call it on NumPy arrays; loop dimensions broadcast."""
        arrays = [np.asarray(x, dtype) for x, dtype in zip(given, self.dtypes, strict=False)]
        cores = [len(core) for core in self.signature.inputs]
        for name, x, core in zip(names, arrays, cores, strict=True):
            if x.ndim < core:
                raise ValueError(
                    f"{label}: {name} has {x.ndim} dimensions; the signature {self.signature} has"
                    f" {core} core dimensions for it"
                )
        loops = [x.shape[: x.ndim - core] for x, core in zip(arrays, cores, strict=True)]
        sizes = self.signature.sizes(
            [x.shape[x.ndim - core :] for x, core in zip(arrays, cores, strict=True)], names
        )
        full = np.broadcast_shapes(*loops) if loops else ()
        results = [
            np.empty((*full, *shape), dtype)
            for shape, dtype in zip(
                self.signature.output_shapes(sizes), self.dtypes[len(arrays) :], strict=True
            )
        ]
        order = [_ordered(x, len(core), self.fortran) for x, core in self._cores(arrays, results)]
        padded = [
            x.reshape((1,) * (len(full) - len(loop)) + x.shape)
            for x, loop in zip(order[: len(arrays)], loops, strict=True)
        ]
        site = self.site(label, names, len(results), len(full), 1, static)
        made = order[len(arrays) :]
        site.on_arrays([*padded, *made])
        results = [
            _back(x, len(core), self.fortran)
            for x, core in zip(made, self.signature.outputs, strict=True)
        ]
        return results[0] if len(results) == 1 else tuple(results)

    def _cores(self, arrays: Sequence[Any], results: Sequence[Any]) -> list[tuple[Any, Any]]:
        cores = [*self.signature.inputs, *self.signature.outputs]
        return list(zip([*arrays, *results], cores, strict=True))


def _ordered(x: np.ndarray, core: int, fortran: bool) -> np.ndarray:
    """C-contiguous memory with the core dimensions in the order that the function wants."""
    if fortran and core > 1:
        x = np.ascontiguousarray(
            x.transpose(*range(x.ndim - core), *reversed(range(x.ndim - core, x.ndim)))
        )
        return x.reshape(x.shape[: x.ndim - core] + x.shape[x.ndim - core :][::-1])
    return np.ascontiguousarray(x).reshape(x.shape)


def _back(x: np.ndarray, core: int, fortran: bool) -> np.ndarray:
    if fortran and core > 1:
        loop = x.ndim - core
        turned = x.reshape(x.shape[:loop] + x.shape[loop:][::-1])
        return turned.transpose(*range(loop), *reversed(range(loop, x.ndim)))
    return x


def dim_numbers(signature: Signature) -> dict[str, int]:
    """Core dimensions numbered in order of appearance, as NumPy passes their sizes."""
    names = [d.name for core in (*signature.inputs, *signature.outputs) for d in core]
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def _value(label: str, slot: Slot, static: Mapping[str, Any]) -> bytes:
    """The bytes of a static parameter: a number, or behind a pointer several, or a text."""
    if slot.kind not in (VALUE, VALUE_POINTER):
        return b""
    if not slot.name:
        return b"\0" * 16
    value, pointer = static[slot.name], slot.kind == VALUE_POINTER
    try:
        if slot.length:
            text = value.encode() if isinstance(value, str) else value
            return np.asarray(np.size(text) if np.ndim(text) else len(text), slot.dtype).tobytes()
        if slot.char and isinstance(value, (str, bytes)):
            return _text(value, pointer)
        array = held(value, slot.dtype)
        if array.ndim > pointer:
            raise TypeError("one number is wanted")
        return array.tobytes() + b"\0" * (slot.char and pointer)
    except (TypeError, ValueError, OverflowError) as error:
        kind = "char" if slot.char else slot.dtype.name
        raise TypeError(
            f"{label}: static parameter {slot.name}={value!r} does not fit the kernel's"
            f" {kind}{' *' * pointer}: {error}"
        ) from None


def _text(value: str | bytes, pointer: bool) -> bytes:
    """A text as C has it: one ``char``, or behind a pointer bytes that end with a null."""
    text = value.encode() if isinstance(value, str) else value
    if not pointer and len(text) != 1:
        raise ValueError(f"one letter is wanted, and this has {len(text)} bytes")
    if b"\0" in text:
        raise ValueError("a text ends with its first null in C")
    return text + b"\0" * pointer


def held(value: Any, dtype: np.dtype) -> np.ndarray:
    """Numbers as a C type holds them: whole ones by their values, others by their kinds.

    NumPy's casting rules would not do: by them no signed number is an unsigned one, and an
    integer of Python's is signed.

    Raises:
      TypeError, ValueError, OverflowError: for what the type cannot hold.
    """
    array = np.asarray(value)
    if array.size == 0:
        return array.astype(dtype)
    whole = dtype.kind in "iu" and all(isinstance(v, (int, np.integer)) for v in _elements(value))
    if whole:
        array = np.asarray(value, object)  # NumPy makes floating-point numbers of mixed ones
    elif array.dtype.kind not in "biufc":
        raise TypeError(f"a {type(value).__name__} is no number that C has")
    if not whole and (array.dtype.kind not in "iu" or dtype.kind not in "iub"):
        if not np.can_cast(array.dtype, dtype, "same_kind"):
            raise TypeError(f"{array.dtype} cannot be cast to {dtype}")
        return array.astype(dtype)
    made = array.astype(dtype)
    if made.tolist() != array.tolist():  # as Python's integers, which are exact
        raise OverflowError(f"{value} is out of the range of {dtype}")
    return made


def _elements(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def names_of(given: str | Sequence[str]) -> tuple[str, ...]:
    """Several names, of which one may be given alone."""
    return (given,) if isinstance(given, str) else tuple(given)
