"""Static parameters: exact equality, and a canonical text for compiled programs.

JAX keys its caches with ``==``, for which ``1``, ``1.0`` and ``True`` are one value; the
function must get each as it was given, so here they differ.
"""

from __future__ import annotations

import ast
import dataclasses
import decimal
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

_LITERALS = (int, float, complex, bool, str, bytes, type(None))


class Static:
    """The static parameters of one call: hashable, compared by exact value and type."""

    __slots__ = ("__weakref__", "_hash", "_key", "_text", "values")

    def __init__(self, values: Mapping[str, Any]):
        self.values = dict(values)
        self._key = tuple(sorted((name, exact(value)) for name, value in self.values.items()))
        self._hash = hash(self._key)
        self._text: str | None = None

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Static) and self._key == other._key)

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return ", ".join(f"{name}={value!r}" for name, value in self.values.items())

    def literal(self) -> str | None:
        """The canonical text from which `parse` makes an equal object, if there is one."""
        if self._text is None:
            self._text = self._literal()
        return self._text or None

    def _literal(self) -> str:
        try:
            items = [(name, _encoded(self.values[name])) for name in sorted(self.values)]
            text = repr(tuple(items))
            return text if Static.parse(text) == self else ""
        except Exception:  # it is no literal; or what a user's __repr__ or __eq__ raises
            return ""

    @classmethod
    def parse(cls, text: str) -> Static:
        return cls.decoded(ast.literal_eval(text))

    @classmethod
    def decoded(cls, items: Iterable[tuple[str, Any]]) -> Static:
        """From what stands in the canonical text."""
        return cls({name: _decoded(value) for name, value in items})


def _encoded(value: Any) -> Any:
    """A value as literals. Dicts, which are no static parameters, hold what Python has none for."""
    if type(value) is tuple:
        return tuple(map(_encoded, value))
    if type(value) is float and not math.isfinite(value):
        return {"float": value.hex()}
    if type(value) is complex:
        return {"complex": (value.real.hex(), value.imag.hex())}
    if isinstance(value, np.generic):
        dtype = value.dtype
        return {dtype.name if dtype.kind == "V" else dtype.str: value.tobytes()}
    return value


def _decoded(value: Any) -> Any:
    if type(value) is tuple:
        return tuple(map(_decoded, value))
    if type(value) is not dict:
        return value
    ((kind, data),) = value.items()
    if kind == "float":
        return float.fromhex(data)
    if kind == "complex":
        return complex(*map(float.fromhex, data))
    return np.frombuffer(data, kind)[0]


NO_STATIC = Static({})


def exact(value: Any) -> Any:
    """A key that is equal only for values that no function could tell apart.

    Raises:
      TypeError: if ``value`` is unhashable.
    """
    kind: Any = type(value)
    if kind is float:
        return ("float", value.hex())
    if kind is complex:
        return ("complex", value.real.hex(), value.imag.hex())
    if issubclass(kind, tuple) and _compares_as(kind, tuple):
        return (_Typed(kind), tuple(exact(item) for item in value))
    if kind is frozenset:
        return ("frozenset", frozenset(exact(item) for item in value))
    if kind in (range, slice):
        return (kind.__name__, exact((value.start, value.stop, value.step)))
    hash(value)
    if kind in _LITERALS:
        return (kind.__name__, value)
    if issubclass(kind, np.generic) and not issubclass(kind, np.object_):
        return (kind.__name__, value.dtype.str, value.tobytes())
    if kind is decimal.Decimal:
        return ("Decimal", value.as_tuple())
    if _compares_fields(kind):
        compared = [f.name for f in dataclasses.fields(value) if f.compare]
        key = tuple(exact(getattr(value, name)) for name in compared if _is_hashed(kind, name))
        return (_Typed(value), key)
    return (kind.__qualname__, _Typed(value))


def _compares_as(kind: type, base: type) -> bool:
    """Whether a subclass has its base's equality."""
    return kind.__eq__ is base.__eq__ and kind.__hash__ is base.__hash__


def _compares_fields(kind: type) -> bool:
    """Whether equality is that which `dataclasses` writes: field by field, with ``==``."""
    code = getattr(kind.__eq__, "__code__", None)
    return dataclasses.is_dataclass(kind) and code is not None and code.co_filename == "<string>"


def _is_hashed(kind: type, name: str) -> bool:
    field: dataclasses.Field = kind.__dataclass_fields__[name]  # pyright: ignore
    return field.compare if field.hash is None else field.hash


def is_hashable(value: Any) -> bool:
    """Whether it can be a static parameter."""
    try:
        exact(value)
    except TypeError:
        return False
    return True


class _Typed:
    """Equal only to an equal value of the very same type."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Typed)
            and type(self.value) is type(other.value)
            and bool(self.value == other.value)
        )

    def __hash__(self) -> int:
        return hash((type(self.value), self.value))
