"""What a kernel's ``args=`` says: which C argument is what, and of which type."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from jaxbind import _loops
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
    Slot,
    dim_numbers,
)
from jaxbind._pointers import CType, Prototype, c_type
from jaxbind._signature import Signature

#: the last argument of Cython's cpdef functions
_SKIPPED = "__pyx_skip_dispatch"

_ITEM = re.compile(r"^(?P<type>.*?)(?P<name>[A-Za-z_]\w*)\s*(?:\[\s*\d*\s*\])?$", re.S)

#: an argument: its C type, where that is said, and its name
Item = tuple[CType | None, str]


@dataclass(frozen=True, kw_only=True)
class Declared:
    """What was declared of a C or Fortran function.

    Attributes:
      label: how errors call it.
      signature: the core dimensions.
      prototype: what the pointer itself says, if it does.
      args: the text of ``args=``.
      dtypes: as given.
      fortran: whether it takes everything by reference.
      statics: the names of static parameters.
      inout: the names of inputs that are overwritten with results.
      status: ``"return"``, or the name of an argument.
    """

    label: str
    signature: Signature
    prototype: Prototype | None
    args: str | None
    dtypes: Any
    fortran: bool
    statics: tuple[str, ...]
    inout: tuple[str, ...]
    status: str | None

    @property
    def dims(self) -> dict[str, int]:
        return dim_numbers(self.signature)


@dataclass(frozen=True)
class Arguments:
    """How the function is called.

    Attributes:
      inputs: their names.
      dtypes: of inputs and outputs.
      slots: the arguments in C's order.
      returns: what its return value is.
      source: for each result, the input that its memory holds at first, or -1.
      status: the dtype of the number by which it reports failure.
    """

    inputs: tuple[str, ...]
    dtypes: tuple[np.dtype, ...]
    slots: tuple[Slot, ...]
    returns: int
    source: tuple[int, ...]
    status: np.dtype


def read(d: Declared) -> Arguments:
    """The arguments of a C or Fortran function, from what was declared.

    Raises:
      TypeError: for C types that are not supported, or differ from what the pointer itself says.
      ValueError: where names do not fit the signature.
    """
    items = _items(d)
    names, kinds = [name for _, name in items], {name: kind for kind, name in items}
    returned = _returned(d)
    _check_names(d, names)
    inputs, outputs = _buffers(d, names, returned)
    returns = _what_it_returns(d, inputs, outputs, returned)
    results = len(d.signature.outputs)
    if returns == RESULT and returned is not None and returned.dtype is None:
        raise TypeError(f"{d.label}: args= has no output, and says that it returns nothing")
    if returns == NOTHING and "->" in (d.args or "") and returned and returned.dtype is not None:
        raise TypeError(
            f"{d.label}: args= says that it returns {returned}, which is none of the"
            f" {len(outputs)} results of the signature {d.signature}. Say status='return' if it"
            " reports failure, or leave it out"
        )
    source = [inputs.index(n) if n in d.inout else -1 for n in outputs]
    source += [-1] * (results - len(outputs))
    known = [*(kinds[n] for n in (*inputs, *outputs)), *[returned] * (results - len(outputs))]
    dtypes = _dtypes(d, [*inputs, *outputs], known)
    _check_inout(d, inputs, dtypes)
    status = _status(d, returned if d.status == "return" else kinds.get(d.status or ""))
    order = {n: i for i, n in enumerate([*inputs, *outputs])}  # inout: the output
    slots = tuple(_slot(d, name, kinds[name], order, dtypes, status) for name in names)
    if d.prototype is not None:
        _check_prototype(d, d.prototype, names, slots)
    if d.prototype is not None and returns == RESULT:
        _check_result(d, d.prototype, dtypes[-1])
    if d.fortran:  # which gets the lengths of texts behind all else
        size = np.dtype(np.uintp)
        slots += tuple(s._replace(kind=VALUE, dtype=size, length=True) for s in slots if s.char)
    _check_room(d, slots)
    return Arguments(tuple(inputs), dtypes, slots, returns, tuple(source), status)


def dtypes_given(label: str, dtypes: Any, count: int) -> tuple[np.dtype, ...] | None:
    """What ``dtypes=`` says of each input and output.

    Raises:
      TypeError: for another number of them, or what is no dtype.
    """
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


# The items --------------------------------------------------------------------------------------


def _items(d: Declared) -> list[Item]:
    """The arguments in C's order, from ``args=``, or from what the pointer and signature say."""
    if d.args is not None:
        listed = d.args.partition("->")[0]
        items = [_item(d.label, part) for part in listed.split(",") if listed.strip()]
        if d.prototype is None or len(items) != len(d.prototype.arguments):
            return items
        pairs = zip(items, d.prototype.arguments, strict=True)
        return [(kind or known, name) for (kind, name), known in pairs]
    if d.prototype is None:
        if d.signature.elementwise:
            raise TypeError(
                f"{d.label}: neither args= nor the pointer says what its arguments are;"
                " write args='double x, double y', say, or set argtypes and restype"
            )
        return [(None, n) for n in _usual_names(d)]
    known = list(d.prototype.arguments)
    if d.signature.elementwise and not any(a.pointer and a.dtype is not None for a in known):
        names = [*_usual_inputs(d), *d.statics]
        rest = known[len(names) :]
        if rest and rest[0].pointer:
            names.append("data")
            rest = rest[1:]
        names += [_SKIPPED] * sum(r.skipped for r in rest)
    else:
        names = _usual_names(d)
        if len(names) == len(known) - 1 and known[-1] == CType(None, True):
            names.append("data")
    if len(names) != len(known):
        _refuse_count(d, d.prototype, len(names))
    return [*zip(known, names, strict=True)]


def _item(label: str, part: str) -> Item:
    match = _ITEM.match(part.strip())
    if match is None:
        what = repr(part.strip()) if part.strip() else "nothing between two commas"
        raise ValueError(f"{label}: args= has {what}, which is no name")
    text = match["type"].strip() + ("*" if "[" in part else "")
    if not text:
        return None, match["name"]
    kind = c_type(text)
    if kind is None:
        raise TypeError(
            f"{label}: args= has the C type {text!r}, which is not supported: numbers"
            " such as double, float, int, int64_t, double complex, and pointers to them"
        )
    return kind, match["name"]


def _usual_inputs(d: Declared) -> list[str]:
    return [f"x{i + 1}" for i in range(len(d.signature.inputs))]


def _usual_names(d: Declared) -> list[str]:
    results = len(d.signature.outputs)
    outs = ["out"] if results == 1 else [f"out{i}" for i in range(results)]
    return [*_usual_inputs(d), *outs, *d.dims, *d.statics]


def _returned(d: Declared) -> CType | None:
    """The type of what the function returns, where that is said."""
    text = (d.args or "").partition("->")[2].strip()
    if not text:
        return d.prototype.result if d.prototype is not None else None
    found = c_type(text)
    if found is None or found.pointer:
        raise TypeError(
            f"{d.label}: args= returns {text!r}, which is not supported: a number such as double"
        )
    return found


def _refuse_count(d: Declared, prototype: Prototype, count: int) -> NoReturn:
    raise TypeError(
        f"{d.label}: the C function takes {len(prototype.arguments)} arguments,"
        f" {prototype}; the signature {d.signature} describes {count}. Say with args= what"
        " they are"
    )


# Inputs and outputs -----------------------------------------------------------------------------


def _check_names(d: Declared, names: Sequence[str]) -> None:
    doubled = {n for n in names if names.count(n) > 1}
    if doubled:
        raise ValueError(f"{d.label}: args= names {min(doubled)} twice")
    for option, named in (("static", d.statics), ("inout", d.inout)):
        missing = [n for n in named if n not in names]
        if missing:
            raise ValueError(f"{d.label}: {option}= names {missing[0]}, which is not in args=")
    if d.status not in (None, "return", *names):
        raise ValueError(
            f"{d.label}: status={d.status!r} is not in args=; 'return' means the result"
        )


def _buffers(
    d: Declared, names: Sequence[str], returned: CType | None
) -> tuple[list[str], list[str]]:
    """Which names are inputs, and which are outputs."""
    special = {"data", _SKIPPED, *d.statics, *d.dims}
    if d.status not in (None, "return"):
        special.add(d.status)
    buffers = [n for n in names if n not in special]
    outputs = [n for n in buffers if re.fullmatch(r"out\d*", n)]
    count = len(d.signature.inputs)
    written = len(d.signature.outputs) - len(d.inout)
    if not outputs and len(buffers) - count in (written, written - _is_result(d, returned)):
        outputs = buffers[count:]
    inputs = [n for n in buffers if n not in outputs]
    for name in d.inout:
        if name not in inputs:
            raise ValueError(
                f"{d.label}: inout= names {name}, which is no input; it names inputs that are"
                f" overwritten with results ({', '.join(inputs) or 'there are none'}), and outputs"
                " are known by their place or by the names out, out0, out1"
            )
    return inputs, [*d.inout, *outputs]


def _is_result(d: Declared, returned: CType | None) -> bool:
    """Whether it is said to return a number, which is no status."""
    return returned is not None and returned.dtype is not None and d.status != "return"


def _what_it_returns(
    d: Declared, inputs: Sequence[str], outputs: Sequence[str], returned: CType | None
) -> int:
    """What its return value is; refuses numbers of inputs and outputs that do not fit."""
    returns = RETURNS_STATUS if d.status == "return" else NOTHING
    count, results = len(d.signature.inputs), len(d.signature.outputs)
    known = results == 1 or _is_result(d, returned)
    if len(outputs) == results - 1 and returns == NOTHING and known:
        returns = RESULT
    elif len(outputs) != results:
        raise ValueError(
            f"{d.label}: args= has {len(outputs)} outputs ({', '.join(outputs) or 'none'}); the"
            f" signature {d.signature} has {results}. Call them out, out1, ..., or put them last;"
            " one that the function returns is the last of the signature"
        )
    if len(inputs) != count:
        known = ", ".join([*d.dims, *d.statics]) or "none"
        raise ValueError(
            f"{d.label}: args= has {len(inputs)} inputs ({', '.join(inputs) or 'none'}); the"
            f" signature {d.signature} has {count}. (Core dimensions and static parameters:"
            f" {known}; static= names more of the latter)"
        )
    if returns == RESULT and d.signature.outputs[-1]:
        which = "no output" if results == 1 else f"{results - 1} of the {results} outputs"
        raise ValueError(
            f"{d.label}: args= has {which}, and a result of core dimensions cannot be returned: one"
            f" that is returned is the last of the signature {d.signature}, and has none"
        )
    return returns


def _dtypes(
    d: Declared, names: Sequence[str], kinds: Sequence[CType | None]
) -> tuple[np.dtype, ...]:
    """The dtypes of inputs and outputs, from ``dtypes=`` and C types, which must agree."""
    given = dtypes_given(d.label, d.dtypes, len(kinds))
    found: list[np.dtype | None] = []
    for i, kind in enumerate(kinds):
        said = kind.dtype if kind is not None else None
        if given is not None:
            if said is not None and said != given[i]:
                name = names[i] if i < len(names) else "its result"
                raise TypeError(
                    f"{d.label}: dtypes= says {given[i].name} for {name}, but its C type is {kind}"
                )
            said = given[i]
        found.append(said)
    known = [f for f in found if f is not None]
    inexact = [f for f in known if f.kind in "fc"]
    default = (inexact or known or [np.dtype(float)])[0]
    return tuple(default if f is None else f for f in found)


def _check_inout(d: Declared, inputs: Sequence[str], dtypes: Sequence[np.dtype]) -> None:
    """An input that is overwritten with a result is as large as that."""
    for result, name in enumerate(d.inout):
        index = inputs.index(name)
        cores = d.signature.inputs[index], d.signature.outputs[result]
        both = dtypes[index], dtypes[len(inputs) + result]
        if cores[0] != cores[1] or both[0] != both[1]:
            pairs = zip(both, cores, strict=True)
            shown = [f"{dtype.name}[{','.join(map(str, core))}]" for dtype, core in pairs]
            raise ValueError(
                f"{d.label}: inout= says that {name} is overwritten with result {result},"
                f" but the one is {shown[0]} and the other {shown[1]}"
            )


# How each is passed -----------------------------------------------------------------------------


def _status(d: Declared, kind: CType | None) -> np.dtype:
    """The type of the integer by which it reports failure."""
    if d.status is None or kind is None:
        return np.dtype(np.int32)
    returned = d.status == "return"
    fits = (kind.pointer or d.fortran) != returned
    if kind.dtype is None or kind.dtype.kind not in "iu" or not fits:
        wanted = "an integer" if returned else "an integer by reference, as int *"
        raise TypeError(f"{d.label}: status={d.status!r} is {kind}; it must be {wanted}")
    return kind.dtype


def _slot(
    d: Declared,
    name: str,
    kind: CType | None,
    order: Mapping[str, int],
    dtypes: Sequence[np.dtype],
    status: np.dtype,
) -> Slot:
    if name == _SKIPPED:
        return Slot(VALUE, 0, np.dtype(np.int32))
    if name == "data" and "data" not in order:
        return Slot(DATA, 0, np.dtype(np.int64))
    if d.status == name:
        return Slot(STATUS, 0, status)
    pointer = d.fortran or (kind is not None and kind.pointer)
    said = None if kind is None else kind.dtype
    if name in d.statics:
        dtype = np.dtype(float) if said is None else said
        letter = kind is not None and kind.char
        return Slot(VALUE_POINTER if pointer else VALUE, 0, dtype, name, letter)
    if name in d.dims:
        integer = np.dtype(np.int32 if d.fortran else np.int64)
        dtype = integer if said is None else said
        if dtype.kind not in "iu":
            raise TypeError(f"{d.label}: {name} is a core dimension, but its C type is {kind}")
        return Slot(DIM_POINTER if pointer else DIM, d.dims[name], dtype)
    index = order[name]
    cores = [*d.signature.inputs, *d.signature.outputs]
    number = index < len(d.signature.inputs) and not cores[index]
    if number and kind is None and d.args is not None and not d.fortran:
        raise TypeError(
            f"{d.label}: {name} is a number, and nothing says whether C takes it by value or by"
            f" reference: write 'double {name}' or 'double *{name}' in args=, or set argtypes"
        )
    by_value = kind is not None and not pointer
    if by_value and (cores[index] or index >= len(d.signature.inputs)):
        raise TypeError(
            f"{d.label}: {name} is an array, but its C type is {kind}: a pointer is missing"
        )
    return Slot(ELEMENT if by_value else BUFFER, index, dtypes[index])


def _check_room(d: Declared, slots: Sequence[Slot]) -> None:
    reals = 0
    for slot in slots:
        if slot.kind in (ELEMENT, VALUE) and slot.dtype.kind in "fc":
            reals += 1 + (slot.dtype.kind == "c")
    if reals > _loops.MOST_REALS or len(slots) > _loops.MOST_INTEGERS:
        raise TypeError(
            f"{d.label}: at most {_loops.MOST_REALS} floating-point numbers can be passed by"
            f" value, and {_loops.MOST_INTEGERS} arguments in all; pass pointers instead"
        )


# What the pointer itself says -------------------------------------------------------------------


def _check_prototype(
    d: Declared, prototype: Prototype, names: Sequence[str], slots: Sequence[Slot]
) -> None:
    if len(prototype.arguments) != len(slots):
        _refuse_count(d, prototype, len(slots))
    for name, slot, known in zip(names, slots, prototype.arguments, strict=True):
        pointer = slot.kind not in (ELEMENT, DIM, VALUE)
        if known.other and slot.kind != DATA:
            raise TypeError(
                f"{d.label}: {name} is {known} in the C function's own signature, {prototype},"
                " which is no pointer to numbers: call it data in args=, and give it as data="
            )
        if pointer != known.pointer or (
            known.dtype is not None
            and slot.kind not in (DATA, STATUS)
            and _differs(known.dtype, slot.dtype)
        ):
            mine = CType(slot.dtype, pointer)
            raise TypeError(
                f"{d.label}: {name} is {mine} by args= and dtypes=, but {known} in the C"
                f" function's own signature, {prototype}"
            )


def _check_result(d: Declared, prototype: Prototype, dtype: np.dtype) -> None:
    result = prototype.result
    if result.dtype is None:
        raise TypeError(
            f"{d.label}: args= has no output, but the C function returns nothing: {prototype}"
        )
    if result.pointer or _differs(result.dtype, dtype):
        raise TypeError(
            f"{d.label}: its result is {dtype.name} by dtypes=, but"
            f" {result} in the C function's own signature, {prototype}"
        )


def _differs(a: np.dtype, b: np.dtype) -> bool:
    return a != b and not (a.kind in "iu" and b.kind in "iu" and a.itemsize == b.itemsize)
