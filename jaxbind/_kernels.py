"""`Kernel`: a C, Cython, Numba or Fortran function behind a pointer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxbind import _dtypes, _loops
from jaxbind._loop import (
    BUFFER,
    DATA,
    DIM,
    DIM_POINTER,
    ELEMENT,
    NOTHING,
    RESULT,
    RETURNS_STATUS,
    STATUS,
    VALUE,
    VALUE_POINTER,
    Loop,
    Slot,
    dim_numbers,
    names_of,
)
from jaxbind._pointers import CType, Pointer, Prototype, c_type, pointer_of
from jaxbind._signature import Signature, parse

#: the last argument of Cython's cpdef functions
_SKIPPED = "__pyx_skip_dispatch"

CONVENTIONS = ("C", "Fortran", "gufunc")


class Kernel:
    """A compiled function behind a C pointer, to be bound with `jaxbind.bind`.

    It is called without Python and without the GIL, once per iteration over the loop dimensions
    (or once for all of them, with the inner loop of a gufunc). Called itself, on NumPy arrays, it
    does the same.

    Args:
      pointer: a ctypes or cffi function, a Numba ``cfunc``, a capsule of a Cython module's
        ``__pyx_capi__``, a ``scipy.LowLevelCallable``, an f2py routine, a capsule, or an address.
        It is kept alive.
      signature: the core dimensions, as gufuncs write them. May be left out where the function
        takes and returns numbers only.
      args: the arguments in C's order: names of inputs, of outputs (``out``, ``out1``, or the
        last ones), of core dimensions (their sizes), of static parameters, ``status``. Each may
        have a type in front: ``"const double *x, double *out, int n, double alpha"``; inputs of
        no core dimensions are passed by value without the star. A result that is returned has no
        name; ``"double x -> double"`` gives its type. Default: what the pointer's own
        signature says, or pointers to inputs, then to outputs, then the sizes.
      dtypes: of inputs and outputs: one for all, or one for each. Default: from the types in
        ``args``, or of the pointer; otherwise float64.
      convention: ``"C"``: pointers to contiguous arrays, numbers by value. ``"Fortran"``:
        everything by reference, arrays column-major, sizes of type integer (32 bits).
        ``"gufunc"``: ``void loop(char **args, npy_intp const *dimensions, npy_intp const *steps,
        void *data)``.
      static: names in ``args`` that are static parameters, keyword-only for callers.
      inout: names in ``args`` of inputs that the function overwrites with results, the first ones.
        It gets the result's memory, which holds a copy of the input (none is made where JAX no
        longer needs the operand).
      status: how it reports failure, by a number that is not 0: ``"return"``, or the name of an
        integer in ``args`` that it gets by reference.
      data: an address that the function gets where ``args`` says ``data``, and as the last
        argument of an inner loop.
      name: how errors call it.

    Raises:
      TypeError: for a pointer of unknown kind, unsupported C types, or ``args`` that do not fit
        the pointer's own signature.
      ValueError: for a null pointer, or ``args`` that do not fit the gufunc signature.
    """

    def __init__(
        self,
        pointer: Any,
        signature: str | None = None,
        *,
        args: str | None = None,
        dtypes: Any = None,
        convention: str = "C",
        static: str | Sequence[str] = (),
        inout: str | Sequence[str] = (),
        status: str | None = None,
        data: int | None = None,
        name: str | None = None,
    ):
        if convention not in CONVENTIONS:
            raise ValueError(
                f"Kernel: convention={convention!r} is not understood; it is 'C', 'Fortran' or"
                " 'gufunc'"
            )
        self.pointer: Pointer = pointer_of(pointer, inner_loop=convention == "gufunc")
        self.given = pointer
        self.__name__ = name or _name_of(pointer)
        self.__module__ = ""
        self.__doc__ = getattr(pointer, "__doc__", None)
        self.convention = convention
        label = f"Kernel {self.__name__}"
        statics, shared = names_of(static), names_of(inout)
        self.status = status
        prototype = self.pointer.prototype
        plain = None
        if signature is None:
            if prototype is None or any(a.pointer for a in prototype.arguments[:-1]):
                raise TypeError(
                    f"{label}: it has no signature, and the pointer does not say that it is a"
                    " function of numbers. Give one, such as '(n),(n)->()'"
                )
            plain = _plain(prototype)
            count = len(plain) - len(statics)
            signature = f"{','.join(['()'] * count)}->()"
        self.signature = _parsed(label, signature)
        if "?" in signature or "|1" in signature:
            raise ValueError(
                f"{label}: the signature {signature} has '?' or '|1'; a kernel has not"
            )
        address = self.pointer.data if data is None else int(data)
        if convention == "gufunc":
            if args is not None or statics or shared:
                raise TypeError(
                    f"{label}: an inner loop has arguments of its own; args= is not for it"
                )
            if prototype is not None:
                raise TypeError(
                    f"{label}: it is {prototype} by its own signature, which is no inner loop:"
                    " void (char **, npy_intp *, npy_intp *, void *)"
                )
            wanted = len(self.signature.inputs) + len(self.signature.outputs)
            found = _dtypes_given(label, dtypes, wanted) or (np.dtype(float),) * wanted
            self.names = tuple(f"x{i + 1}" for i in range(len(self.signature.inputs)))
            self.statics: tuple[str, ...] = ()
            self.loop = Loop(
                self.pointer.address,
                address,
                self,
                self.signature,
                tuple(found),
                may_raise=self.pointer.may_raise,
            )
        else:
            made = _Arguments(
                label, self.signature, prototype, args, dtypes, convention, statics, shared, status
            )
            if made.returns == RESULT and hasattr(pointer, "_cpointer"):
                raise TypeError(
                    f"{label}: f2py's pointer to a Fortran function is a subroutine, which writes"
                    " the result into its first argument. Name that in args=: 'out, a, b', say"
                )
            self.names, self.statics = made.input_names, statics
            self.loop = Loop(
                self.pointer.address,
                address,
                self,
                self.signature,
                made.dtypes,
                made.slots,
                made.returns,
                made.source,
                fortran=convention == "Fortran",
                may_raise=self.pointer.may_raise,
                status=made.status,
            )
        for dtype in self.loop.dtypes:
            _dtypes.check(label, "an argument", dtype)
        parameters = [
            inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD) for n in self.names
        ]
        parameters += [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY) for n in self.statics]
        self.__signature__ = inspect.Signature(parameters)

    def loop_for(self, dtypes: Sequence[np.dtype]) -> Loop:
        del dtypes  # checked while tracing
        return self.loop

    def loop_of(self, resolved: Sequence[np.dtype]) -> Loop | None:
        return self.loop if list(resolved) == list(self.loop.dtypes) else None

    def __call__(self, *arrays: Any, **static: Any) -> Any:
        """Call it on NumPy arrays."""
        bound = self.__signature__.bind(*arrays, **static)
        given = [bound.arguments[n] for n in self.names]
        chosen = {n: bound.arguments[n] for n in self.statics}
        return self.loop.on_arrays(self.__name__, self.names, given, **chosen)

    def __repr__(self) -> str:
        return f"<jaxbind.Kernel {self.__name__} {self.signature}>"


def _name_of(pointer: Any) -> str:
    name = getattr(pointer, "__name__", None)
    return name if isinstance(name, str) and name.isidentifier() else "kernel"


def _parsed(label: str, signature: str) -> Signature:
    try:
        return parse(signature)
    except ValueError as error:
        computed = (
            parse(signature, computed=True).computed() if "only in an out" in str(error) else ()
        )
        if not computed:
            raise
        raise ValueError(
            f"{label}: core dimension {min(computed)} of the signature {signature} stands only in"
            " an output, so its size is unknown, and a kernel gets its results' memory. Bind a"
            " Python function with out= that makes the result and calls the C function"
        ) from None


def _dtypes_given(label: str, dtypes: Any, count: int) -> tuple[np.dtype, ...] | None:
    if dtypes is None:
        return None
    several = tuple(dtypes) if isinstance(dtypes, (tuple, list)) else (dtypes,) * count
    if len(several) != count:
        raise TypeError(
            f"{label}: dtypes= names {len(several)}; there are {count} inputs and outputs"
        )
    try:
        return tuple(np.dtype(d) for d in several)
    except TypeError:
        raise TypeError(f"{label}: dtypes={dtypes!r} names no dtype that NumPy knows") from None


def _plain(prototype: Prototype) -> list[CType]:
    """The numbers among the arguments of a function of numbers."""
    return [a for a in prototype.arguments if not a.pointer and not a.skipped]


_ITEM = re.compile(r"^(?P<type>.*?)(?P<name>[A-Za-z_]\w*)\s*(?:\[\s*\])?$", re.S)


class _Arguments:
    """The arguments of a C or Fortran function, read from what was declared."""

    def __init__(
        self,
        label: str,
        signature: Signature,
        prototype: Prototype | None,
        args: str | None,
        dtypes: Any,
        convention: str,
        statics: tuple[str, ...],
        shared: tuple[str, ...],
        status: str | None,
    ):
        self.label = label
        self.signature = signature
        self.fortran = convention == "Fortran"
        self.dims = dim_numbers(signature)
        count, results = len(signature.inputs), len(signature.outputs)
        items = self._items(args, prototype, statics, status)
        names = [name for _, name in items]
        self.returned = self._returned(args, prototype)
        doubled = {n for n in names if names.count(n) > 1}
        if doubled:
            raise ValueError(f"{label}: args= names {min(doubled)} twice")
        for option, named in (("static", statics), ("inout", shared)):
            missing = [n for n in named if n not in names]
            if missing:
                raise ValueError(f"{label}: {option}= names {missing[0]}, which is not in args=")
        special = {"data", _SKIPPED, *statics} | (
            {status} if status not in (None, "return") else set()
        )
        if status not in (None, "return") and status not in names:
            raise ValueError(
                f"{label}: status={status!r} is not in args=; 'return' means the result"
            )
        buffers = [n for n in names if n not in special and n not in self.dims]
        outputs = [n for n in buffers if re.fullmatch(r"out\d*", n)]
        if not outputs and len(buffers) == count + results - len(shared):
            outputs = buffers[count:]
        inputs = [n for n in buffers if n not in outputs]
        outputs = [*shared, *outputs]
        self.returns = RETURNS_STATUS if status == "return" else NOTHING
        if len(outputs) == results - 1 and results == 1 and self.returns == NOTHING:
            self.returns = RESULT
        elif len(outputs) != results:
            raise ValueError(
                f"{label}: args= has {len(outputs)} outputs ({', '.join(outputs) or 'none'}); the"
                f" signature {signature} has {results}. Call them out, out1, ..., or put them last"
            )
        if len(inputs) != count:
            known = ", ".join([*self.dims, *statics]) or "none"
            raise ValueError(
                f"{label}: args= has {len(inputs)} inputs ({', '.join(inputs) or 'none'}); the"
                f" signature {signature} has {count}. (Core dimensions and static parameters:"
                f" {known}; static= names more of the latter)"
            )
        if self.returns == RESULT and signature.outputs[0]:
            raise ValueError(
                f"{label}: args= has no output, and a result of core dimensions cannot be returned"
            )
        self.input_names = tuple(inputs)
        self.order = {n: i for i, n in enumerate([*inputs, *outputs])}  # inout: the output
        self.source = tuple(inputs.index(n) if n in shared else -1 for n in outputs)
        self.source += (-1,) * (results - len(outputs))
        given = _dtypes_given(label, dtypes, count + results)
        kinds = {name: kind for kind, name in items}
        self.dtypes = self._dtypes(given, kinds, [*inputs, *outputs], count + results)
        self._check_shared(shared, [*inputs, *outputs])
        self.status = self._status(status, kinds)
        self.slots = tuple(
            self._slot(name, kinds[name], special, statics, status) for name in names
        )
        self._check_room()
        if prototype is not None:
            self._check(prototype, names)

    def _items(
        self, args: str | None, prototype: Prototype | None, statics: tuple[str, ...], status: Any
    ) -> list[tuple[CType | None, str]]:
        signature = self.signature
        inputs = [f"x{i + 1}" for i in range(len(signature.inputs))]
        outs = (
            ["out"]
            if len(signature.outputs) == 1
            else [f"out{i}" for i in range(len(signature.outputs))]
        )
        if args is not None:
            listed = args.partition("->")[0]
            items: list[tuple[CType | None, str]]
            items = [self._item(part) for part in listed.split(",") if part.strip()]
            names = [name for _, name in items]
            if prototype is not None and len(names) == len(prototype.arguments):
                items = [
                    (kind or known, name)
                    for (kind, name), known in zip(items, prototype.arguments, strict=True)
                ]
            return items
        if prototype is None:
            if signature.elementwise:
                raise TypeError(
                    f"{self.label}: neither args= nor the pointer says what its arguments are;"
                    " write args='double x, double y', say, or set argtypes and restype"
                )
            return [(None, n) for n in [*inputs, *outs, *self.dims, *statics]]
        known = list(prototype.arguments)
        if signature.elementwise and not any(a.pointer and a.dtype is not None for a in known):
            names = [*inputs, *statics]
            rest = known[len(names) :]
            if rest and rest[0].pointer:
                names.append("data")
                rest = rest[1:]
            names += [_SKIPPED] * sum(r.skipped for r in rest)
            if len(names) != len(known):
                self._wrong_count(prototype, len(names))
            return [*zip(known, names, strict=True)]
        names = [*inputs, *outs, *self.dims, *statics]
        if len(names) == len(known) - 1 and known[-1] == CType(None, True):
            names.append("data")
        if len(names) != len(known):
            self._wrong_count(prototype, len(names))
        return [*zip(known, names, strict=True)]

    def _returned(self, args: str | None, prototype: Prototype | None) -> CType | None:
        """The type of what the function returns, where that is said."""
        text = (args or "").partition("->")[2].strip()
        if not text:
            return prototype.result if prototype is not None else None
        found = c_type(text)
        if found is None or found.pointer:
            raise TypeError(
                f"{self.label}: args= returns {text!r}, which is not supported: a number such as"
                " double"
            )
        return found

    def _wrong_count(self, prototype: Prototype, count: int) -> None:
        raise TypeError(
            f"{self.label}: the C function takes {len(prototype.arguments)} arguments,"
            f" {prototype}; the signature {self.signature} describes {count}. Say with args= what"
            " they are"
        )

    def _item(self, part: str) -> tuple[CType | None, str]:
        match = _ITEM.match(part.strip())
        if match is None:
            raise ValueError(f"{self.label}: args= has {part.strip()!r}, which is no name")
        text = match["type"].strip() + ("*" if "[" in part else "")
        if not text:
            return None, match["name"]
        kind = c_type(text)
        if kind is None:
            raise TypeError(
                f"{self.label}: args= has the C type {text!r}, which is not supported: numbers"
                " such as double, float, int, int64_t, double complex, and pointers to them"
            )
        return kind, match["name"]

    def _dtypes(
        self,
        given: tuple[np.dtype, ...] | None,
        kinds: Mapping[str, CType | None],
        names: Sequence[str],
        count: int,
    ) -> tuple[np.dtype, ...]:
        """The dtypes of inputs and outputs, from ``dtypes=`` and C types, which must agree."""
        found: list[np.dtype | None] = []
        for i in range(count):
            kind = kinds.get(names[i]) if i < len(names) else self.returned
            said = kind.dtype if kind is not None else None
            if given is not None:
                if said is not None and said != given[i]:
                    name = names[i] if i < len(names) else "its result"
                    raise TypeError(
                        f"{self.label}: dtypes= says {given[i].name} for {name}, but its C type is"
                        f" {kind}"
                    )
                said = given[i]
            found.append(said)
        known = [f for f in found if f is not None]
        inexact = [f for f in known if f.kind in "fc"]
        default = (inexact or known or [np.dtype(float)])[0]
        return tuple(default if f is None else f for f in found)

    def _slot(
        self,
        name: str,
        kind: CType | None,
        special: set[str],
        statics: tuple[str, ...],
        status: str | None,
    ) -> Slot:
        integer = np.dtype(np.int32) if self.fortran else np.dtype(np.int64)
        if name == _SKIPPED:
            return Slot(VALUE, 0, np.dtype(np.int32))
        if name == "data" and "data" not in self.order:
            return Slot(DATA, 0, np.dtype(np.int64))
        if status == name:
            return Slot(STATUS, 0, self.status)
        pointer = self.fortran or (kind is not None and kind.pointer)
        if name in statics:
            dtype = np.dtype(float) if kind is None or kind.dtype is None else kind.dtype
            return Slot(VALUE_POINTER if pointer else VALUE, 0, dtype, name)
        if name in self.dims:
            dtype = integer if kind is None or kind.dtype is None else kind.dtype
            if dtype.kind not in "iu":
                raise TypeError(
                    f"{self.label}: {name} is a core dimension, but its C type is {kind}"
                )
            return Slot(DIM_POINTER if pointer else DIM, self.dims[name], dtype)
        index = self.order[name]
        cores = [*self.signature.inputs, *self.signature.outputs]
        by_value = kind is not None and not kind.pointer and not self.fortran
        if by_value and (cores[index] or index >= len(self.signature.inputs)):
            raise TypeError(
                f"{self.label}: {name} is an array, but its C type is {kind}: a pointer is missing"
            )
        return Slot(ELEMENT if by_value else BUFFER, index, self.dtypes[index])

    def _check_shared(self, shared: tuple[str, ...], names: Sequence[str]) -> None:
        """An input that is overwritten with a result is as large as that."""
        count = len(self.signature.inputs)
        for result, name in enumerate(shared):
            index = names.index(name)
            cores = self.signature.inputs[index], self.signature.outputs[result]
            dtypes = self.dtypes[index], self.dtypes[count + result]
            if cores[0] != cores[1] or dtypes[0] != dtypes[1]:
                pairs = zip(dtypes, cores, strict=True)
                shown = [f"{dtype.name}[{','.join(map(str, core))}]" for dtype, core in pairs]
                raise ValueError(
                    f"{self.label}: inout= says that {name} is overwritten with result {result},"
                    f" but the one is {shown[0]} and the other {shown[1]}"
                )

    def _status(self, status: str | None, kinds: Mapping[str, CType | None]) -> np.dtype:
        """The type of the integer by which it reports failure."""
        if status is None:
            return np.dtype(np.int32)
        kind = self.returned if status == "return" else kinds[status]
        if kind is None:
            return np.dtype(np.int32)
        returned = status == "return"
        fits = (kind.pointer or self.fortran) != returned
        if kind.dtype is None or kind.dtype.kind not in "iu" or not fits:
            wanted = "an integer" if returned else "an integer by reference, as int *"
            raise TypeError(f"{self.label}: status={status!r} is {kind}; it must be {wanted}")
        return kind.dtype

    def _check_room(self) -> None:
        reals = 0
        for slot in self.slots:
            if slot.kind in (ELEMENT, VALUE) and slot.dtype.kind in "fc":
                reals += 1 + (slot.dtype.kind == "c")
        if reals > _loops.MOST_REALS or len(self.slots) > _loops.MOST_INTEGERS:
            raise TypeError(
                f"{self.label}: at most {_loops.MOST_REALS} floating-point numbers can be passed by"
                f" value, and {_loops.MOST_INTEGERS} arguments in all; pass pointers instead"
            )

    def _check(self, prototype: Prototype, names: Sequence[str]) -> None:
        """Compare with what the pointer itself says."""
        if len(prototype.arguments) != len(self.slots):
            self._wrong_count(prototype, len(self.slots))
        for name, slot, known in zip(names, self.slots, prototype.arguments, strict=True):
            pointer = slot.kind not in (ELEMENT, DIM, VALUE)
            if pointer != known.pointer or (
                known.dtype is not None
                and slot.kind not in (DATA, STATUS)
                and _differs(known.dtype, slot.dtype)
            ):
                mine = CType(slot.dtype, pointer)
                raise TypeError(
                    f"{self.label}: {name} is {mine} by args= and dtypes=, but {known} in the C"
                    f" function's own signature, {prototype}"
                )
        if self.returns == RESULT and prototype.result.dtype is not None:
            if prototype.result.pointer or _differs(prototype.result.dtype, self.dtypes[-1]):
                raise TypeError(
                    f"{self.label}: its result is {self.dtypes[-1].name} by dtypes=, but"
                    f" {prototype.result} in the C function's own signature, {prototype}"
                )
        elif self.returns == RESULT:
            raise TypeError(
                f"{self.label}: args= has no output, but the C function returns nothing:"
                f" {prototype}"
            )


def _differs(a: np.dtype, b: np.dtype) -> bool:
    return a != b and not (a.kind in "iu" and b.kind in "iu" and a.itemsize == b.itemsize)


def check_operand(label: str, name: str, given: Any, known: np.dtype) -> None:
    """Refuse an operand whose dtype a kernel's cannot hold.

    Raises:
      TypeError: naming it, and the remedy.
    """
    if given == known:
        return
    wider = jnp.issubdtype(given, np.inexact) or jnp.issubdtype(known, np.inexact)
    fits = np.can_cast(given, known, "safe") if given.kind != "V" else known.kind in "fc"
    if not fits and wider and given.kind in "iub" and known.kind in "fc":
        fits = True  # as NumPy's ufuncs take integers
    if not fits:
        raise TypeError(
            f"{label}: {name} is {given.name}, but the kernel takes {known.name}, which cannot"
            f" hold that exactly. Convert it with .astype(jnp.{known.name})"
        )
