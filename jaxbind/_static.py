"""Static parameters: exact equality, and a canonical text for compiled programs.

JAX keys its caches with ``==``, for which ``1``, ``1.0`` and ``True`` are one value; the
function must get each as it was given, so here they differ.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
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
            try:
                text = repr(tuple(sorted(self.values.items())))
                self._text = text if Static.parse(text) == self else ""
            except Exception:  # whatever a user's __repr__ or __eq__ raises: no literal
                self._text = ""
        return self._text or None

    @classmethod
    def parse(cls, text: str) -> Static:
        return cls(dict(ast.literal_eval(text)))


NO_STATIC = Static({})


def exact(value: Any) -> Any:
    """A key that is equal only for values that no function could tell apart.

    Raises:
      TypeError: if ``value`` is unhashable.
    """
    kind = type(value)
    if kind is float:
        return ("float", value.hex())
    if kind is complex:
        return ("complex", value.real.hex(), value.imag.hex())
    if isinstance(value, tuple):
        return (_Typed(kind), tuple(exact(item) for item in value))
    if kind is frozenset:
        return ("frozenset", frozenset(exact(item) for item in value))
    if kind in (range, slice):
        return (kind.__name__, exact((value.start, value.stop, value.step)))
    hash(value)
    if kind in _LITERALS:
        return (kind.__name__, value)
    if isinstance(value, np.generic) and not isinstance(value, np.object_):
        return (kind.__name__, value.dtype.str, value.tobytes())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        compared = [f.name for f in dataclasses.fields(value) if f.compare]
        return (_Typed(kind), tuple(exact(getattr(value, name)) for name in compared))
    return (kind.__qualname__, _Typed(value))


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
