"""Pointers to compiled functions, from whatever library holds them, with what is known of them."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np


@dataclass(frozen=True)
class CType:
    """The type of an argument or a result in C.

    Attributes:
      dtype: of a number, or of what a pointer points to; ``None`` for ``void``.
      pointer: whether it is a pointer.
      skipped: whether it is Cython's flag ``__pyx_skip_dispatch``, which is 0.
      char: whether the number stands for a letter, and a pointer to it for a text.
      other: of a pointer to something else, a struct, say, what C calls it.
    """

    dtype: np.dtype | None
    pointer: bool = False
    skipped: bool = False
    char: bool = False
    other: str = ""

    def __str__(self) -> str:
        if self.other:
            return self.other
        return ("void" if self.dtype is None else self.dtype.name) + " *" * self.pointer


@dataclass(frozen=True)
class Prototype:
    """Result and arguments of a C function."""

    result: CType
    arguments: tuple[CType, ...]

    def __str__(self) -> str:
        return f"{self.result} ({', '.join(map(str, self.arguments))})"


@dataclass(frozen=True, eq=False)
class Pointer:
    """A function's address, what keeps it valid, and its prototype and data where known.

    Attributes:
      may_raise: whether it may leave a Python exception behind: Cython's functions may, and their
        capsules do not tell.
    """

    address: int
    owner: Any
    prototype: Prototype | None = None
    data: int = 0
    may_raise: bool = False


_NAMES: dict[str, Any] = {
    "bool": np.bool_,
    "_Bool": np.bool_,
    "char": np.byte,
    "signed char": np.byte,
    "unsigned char": np.ubyte,
    "short": np.short,
    "unsigned short": np.ushort,
    "int": np.intc,
    "unsigned int": np.uintc,
    "unsigned": np.uintc,
    "long": np.long,
    "unsigned long": np.ulong,
    "long long": np.longlong,
    "unsigned long long": np.ulonglong,
    "PY_LONG_LONG": np.longlong,  # in Cython's capsules
    "unsigned PY_LONG_LONG": np.ulonglong,
    "size_t": np.uintp,
    "ssize_t": np.intp,
    "Py_ssize_t": np.intp,
    "npy_intp": np.intp,
    "intp_t": np.intp,
    "ptrdiff_t": np.intp,
    "intptr_t": np.intp,
    "float": np.float32,
    "double": np.float64,
    "float complex": np.complex64,
    "double complex": np.complex128,
    "complex float": np.complex64,
    "complex double": np.complex128,
    "float _Complex": np.complex64,
    "double _Complex": np.complex128,
    "__pyx_t_double_complex": np.complex128,
    "__pyx_t_float_complex": np.complex64,
    "_cffi_double_complex_t": np.complex128,
    "_cffi_float_complex_t": np.complex64,
    **{
        f"{sign}int{bits}{t}": f"{sign}int{bits}"
        for sign in ("", "u")
        for bits in (8, 16, 32, 64)
        for t in ("", "_t")
    },
    **{n: n for n in ("float32", "float64", "complex64", "complex128")},
    # Fortran
    "integer": np.int32,
    "logical": np.int32,
    "real": np.float32,
    "double precision": np.float64,
    "character": np.byte,
}


def c_type(text: str) -> CType | None:
    """The type that a C declaration names; ``None`` if it is not supported."""
    words = re.sub(r"\b(const|restrict|volatile|__restrict|register)\b", " ", text)
    stars = words.count("*")
    name = " ".join(words.replace("*", " ").split())
    name = re.sub(r"^(.*)\bint$", _without_int, name)
    if stars > 1:
        return None
    if name == "void":
        return CType(None, bool(stars))
    dtype = _NAMES.get(name)
    lapack = re.fullmatch(r"__pyx_t_\w+cython_(?:lapack|blas)_([sdcz])", name)
    if lapack:  # SciPy's names in the capsules of these modules
        dtype = {"s": np.float32, "d": np.float64, "c": np.complex64, "z": np.complex128}[lapack[1]]
    if dtype is None:
        return None
    return CType(np.dtype(dtype), bool(stars), char=name.endswith(("char", "character")))


def _without_int(match: re.Match) -> str:
    """``long int`` is ``long``; ``int`` and ``unsigned int`` stay."""
    rest = match[1].strip()
    return (
        rest
        if rest in ("long", "long long", "short", "unsigned long", "unsigned short")
        else (f"{rest} int".strip())
    )


def prototype_of(text: str) -> Prototype | None:
    """Read ``"double (double, int)"``, as Cython and SciPy write signatures of capsules."""
    match = re.fullmatch(r"\s*([^()]*?)\s*\((.*)\)\s*(?:except.*|noexcept.*|nogil.*)*", text, re.S)
    if match is None:
        return None
    result = c_type(match[1])
    arguments = []
    for part in match[2].split(",") if match[2].strip() not in ("", "void") else []:
        found = c_type(part) or c_type(re.sub(r"\b\w+\s*$", "", part))
        if found is None and "*" in part:
            found = CType(None, True, other=part.strip())
        if found is None:
            return None
        if "__pyx_skip_dispatch" in part:
            found = CType(found.dtype, skipped=True)
        arguments.append(found)
    return None if result is None else Prototype(result, tuple(arguments))


def pointer_of(function: Any, what: str = "Kernel", *, inner_loop: bool = False) -> Pointer:
    """The address behind a foreign function object (of an inner loop: without a prototype).

    Raises:
      TypeError: if it is none of those that are known.
      ValueError: for a null pointer.
    """
    kind = _kind_of(function)
    found = kind and kind.read(function, inner_loop)
    if found is None and what == "Handler":
        raise TypeError(
            f"Handler({_shown(function)}): a {type(function).__name__} is no pointer to a handler."
            " Give a ctypes symbol, a capsule, or an address"
        )
    if found is None:
        raise TypeError(
            f"Kernel({_shown(function)}): a {type(function).__name__} holds no C function that"
            " is known here. Give a ctypes or cffi function (ffi.addressof(lib, 'name') of a module"
            " in API mode), a Numba cfunc, a capsule from a Cython module's __pyx_capi__, a"
            " scipy.LowLevelCallable, an f2py routine, a PyCapsule, or an address"
        )
    if found.address == 0:
        raise ValueError(f"{what}({_shown(function)}): the pointer is null")
    if not 0 < found.address < 2 ** (8 * ctypes.sizeof(ctypes.c_void_p)):
        raise ValueError(f"{what}({_shown(function)}): it is out of the range of addresses")
    return found


def is_c_function(function: Any) -> bool:
    """Whether it is one for C, whatever it does when Python calls it."""
    kind = _kind_of(function)
    return kind is not None and kind.for_c


def _shown(function: Any) -> str:
    text = repr(function)
    return text if len(text) <= 60 else text[:57] + "..."


def _of_ctypes_function(function: Any, inner_loop: bool) -> Pointer:
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    loop = inner_loop and len(function.argtypes or ()) == 4 and function.restype is None
    return Pointer(address, function, None if loop else _of_ctypes(function))


def _of_ctypes(function: Any) -> Prototype | None:
    if function.argtypes is None:
        return None
    given = [_ctypes_type(t) for t in function.argtypes]
    result = CType(None) if function.restype is None else _ctypes_type(function.restype)
    if function.restype is ctypes.c_char_p:
        result = None
    if result is None or None in given:
        every = [*zip(function.argtypes, given, strict=True), (function.restype, result)]
        unsupported = next(kind.__name__ for kind, known in every if known is None)
        raise TypeError(
            f"Kernel({_shown(function)}): {unsupported} is not supported; arguments are"
            " numbers, or pointers to them"
        )
    return Prototype(result, tuple(g for g in given if g is not None))


def _ctypes_type(kind: Any) -> CType | None:
    if kind is ctypes.c_void_p:
        return CType(None, True)
    if kind in (ctypes.c_char, ctypes.c_char_p):
        return CType(np.dtype(np.byte), kind is ctypes.c_char_p, char=True)
    if isinstance(kind, type) and issubclass(kind, ctypes._Pointer):  # pyright: ignore
        inner = _ctypes_type(kind._type_)  # pyright: ignore[reportGeneralTypeIssues]
        if inner is None or inner.pointer:
            return CType(None, True, other=kind.__name__)
        return replace(inner, pointer=True)
    if hasattr(kind, "_dtype_") and hasattr(kind, "_ndim_"):  # numpy.ctypeslib.ndpointer
        return CType(kind._dtype_, True)
    code = getattr(kind, "_type_", None)
    if isinstance(code, str) and len(code) == 1:
        try:
            return CType(np.dtype(code)) if code not in "zZPOg" else None
        except TypeError:
            return None
    return None


def _of_capsule(capsule: Any, owner: Any, with_data: bool = False) -> Pointer:
    api = ctypes.pythonapi
    get_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", api))
    get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", api)
    )
    context = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(("PyCapsule_GetContext", api))
    name = get_name(capsule)
    data = (context(capsule) or 0) if with_data else 0
    text = (name or b"").decode("utf-8", "replace")
    known = "(" in text and not _is_inner_loop(text)
    prototype = prototype_of(text) if known else None
    if known and prototype is None:
        raise TypeError(
            f"Kernel: the C signature {text!r} has types that are not supported; arguments are"
            " numbers, or pointers to them"
        )
    return Pointer(get(capsule, name) or 0, owner, prototype, data, may_raise="(" in text)


def _is_inner_loop(text: str) -> bool:
    return bool(re.match(r"\s*void\s*\(\s*char\s*\*\s*\*", text))


def _of_numba(signature: Any) -> Prototype | None:
    types = [signature.return_type, *signature.args]
    found = []
    for kind in types:
        text = str(kind)
        inner = re.fullmatch(r"CPointer\((.*)\)|(\w+)\*", text)
        name = (inner[1] or inner[2]) if inner else text
        if name in ("none", "void"):
            found.append(CType(None, bool(inner)))
        elif name in ("voidptr",):
            found.append(CType(None, True))
        elif text.startswith("CPointer(CPointer") or re.fullmatch(r"u?int8\*\*", text):
            return None  # the inner loop of a gufunc
        elif name == "complex64" and not inner:
            raise TypeError(
                "Kernel: a Numba cfunc passes complex64 by value in another way than C does; use"
                " complex128, or types.CPointer(complex64)"
            )
        elif name in _NAMES or name == "boolean":
            found.append(CType(np.dtype(_NAMES.get(name, np.bool_)), bool(inner)))
        else:
            raise TypeError(
                f"Kernel: a Numba cfunc with the type {text} is not supported; arguments are"
                " numbers, or types.CPointer of them"
            )
    return Prototype(found[0], tuple(found[1:]))


def _of_cffi(function: Any, inner_loop: bool) -> Pointer | None:
    import cffi

    ffi = cffi.FFI()
    kind = ffi.typeof(function)
    address = int(ffi.cast("uintptr_t", function))
    if kind.kind == "pointer" and kind.item.kind == "void":
        return Pointer(address, function)
    if kind.kind != "function":
        raise TypeError(f"Kernel({_shown(function)}): it is no pointer to a function")
    if kind.ellipsis:
        raise TypeError(
            f"Kernel({_shown(function)}): it takes any number of arguments, {kind.cname}, which"
            " are passed in a way of their own; wrap it in a C function of a fixed number"
        )
    if inner_loop and len(kind.args) == 4 and kind.result.kind == "void":
        return Pointer(address, function)
    given = []
    for each in (kind.result, *kind.args):
        found = c_type(each.cname)
        if found is None and each.kind in ("pointer", "array", "function"):
            found = CType(None, True, other=each.cname)
        if found is None:
            raise TypeError(
                f"Kernel({_shown(function)}): {each.cname} is not supported; arguments are"
                " numbers, or pointers to them"
            )
        given.append(found)
    return Pointer(address, function, Prototype(given[0], tuple(given[1:])))


def address_of(label: str, data: Any) -> int:
    """The address that ``data=`` stands for.

    Raises:
      TypeError: if it has none.
    """
    if isinstance(data, (int, np.integer)):
        return int(data)
    of_ctypes: Any = ctypes
    if isinstance(data, (ctypes.c_void_p, of_ctypes._Pointer)) or _named("CArgObject")(data):
        return ctypes.cast(data, ctypes.c_void_p).value or 0
    if isinstance(data, (of_ctypes._SimpleCData, ctypes.Structure, ctypes.Union, ctypes.Array)):
        return ctypes.addressof(data)
    if type(data).__module__ == "_cffi_backend":
        import cffi

        ffi = cffi.FFI()
        if ffi.typeof(data).kind in ("struct", "union"):
            data = ffi.addressof(data)
        if ffi.typeof(data).kind in ("pointer", "array", "function"):
            return int(ffi.cast("uintptr_t", data))
    if isinstance(data, np.ndarray):
        return data.ctypes.data
    raise TypeError(
        f"{label}: data={_shown(data)} is a {type(data).__name__}, which is no memory that C can be"
        " given: a ctypes object or pointer to one, a cffi pointer, a NumPy array, or an address"
    )


class _Kind(NamedTuple):
    """A kind of objects that hold a C function.

    Attributes:
      holds: whether an object is of this kind.
      read: makes a `Pointer` of it, without a prototype if it is of an inner loop.
      for_c: whether it is of no use to Python, or calls C in a way of its own there.
    """

    holds: Callable[[Any], bool]
    read: Callable[[Any, bool], Pointer | None]
    for_c: bool = True


def _has(function: Any, *attributes: str) -> bool:
    """Whether it has them; a user's class may raise anything when it is asked."""
    try:
        return all(hasattr(function, name) for name in attributes)
    except Exception:
        return False


def _named(name: str) -> Callable[[Any], bool]:
    return lambda f: type(f).__name__ == name


_KINDS = (
    _Kind(
        lambda f: isinstance(f, (int, np.integer)) and not isinstance(f, bool),
        lambda f, _: Pointer(int(f), None),
        for_c=False,
    ),
    _Kind(
        lambda f: isinstance(f, ctypes.c_void_p),
        lambda f, _: Pointer(f.value or 0, f),
        for_c=False,
    ),
    _Kind(
        lambda f: isinstance(f, ctypes._CFuncPtr),  # pyright: ignore[reportAttributeAccessIssue]
        _of_ctypes_function,
    ),
    _Kind(_named("PyCapsule"), lambda f, _: _of_capsule(f, f)),
    _Kind(
        lambda f: isinstance(f, tuple) and _named("LowLevelCallable")(f),
        lambda f, _: _of_capsule(tuple.__getitem__(f, 0), f, with_data=True),
    ),
    _Kind(  # f2py
        lambda f: _has(f, "_cpointer"),
        lambda f, _: replace(_of_capsule(f._cpointer, f), may_raise=False),
        for_c=False,
    ),
    _Kind(  # Numba
        lambda f: _has(f, "address", "_sig"),
        lambda f, _: Pointer(f.address, f, _of_numba(f._sig)),
    ),
    _Kind(lambda f: type(f).__module__ == "_cffi_backend", _of_cffi),
)


def _kind_of(function: Any) -> _Kind | None:
    return next((kind for kind in _KINDS if kind.holds(function)), None)
