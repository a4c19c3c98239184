"""Whether a Python function could call JAX, as far as its code tells.

A function that calls JAX while it runs can block the runtime for ever, and is refused by a guard
that costs as much as a short call. It is left out for functions whose code, with that of the
functions that it calls by name, does not mention JAX; a function that hides it (in a module of
its own that is reached by an attribute of an object, say) is guarded in its first calls, in every
1024th, and in all after one of these that was slow.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator
from typing import Any

_MOST = 300


def mentions_jax(function: Any) -> bool:
    """Whether JAX, an array or a function of JAX, or a binding is reached by name."""
    return any(map(is_of_jax, walked(function)))


def walked(function: Any) -> Iterator[Any]:
    """The function and what it reaches by name, up to what is JAX's."""
    seen: set[int] = set()
    todo = [function]
    while todo and len(seen) < _MOST:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if not is_of_jax(value):
            todo += _reached(value)


def _base(value: tuple | list) -> Any:
    return tuple if is_kind(value, tuple) else list


def is_kind(value: Any, kinds: Any) -> bool:
    """As `isinstance`, which would ask a proxy for what it stands for."""
    return issubclass(type(value), kinds)


def is_of_jax(value: Any) -> bool:
    """Whether it is a module, a function or an object of JAX's, or a binding."""
    if is_kind(value, types.ModuleType):
        module = value.__name__
    elif is_kind(value, types.FunctionType):
        module = value.__module__
    else:
        module = type(value).__module__
        if module == "jaxbind._binding":
            return True
    return str(module).partition(".")[0] in ("jax", "jaxlib")


def _reached(value: Any) -> list[Any]:
    """What a value's code names."""
    if is_kind(value, types.MethodType):
        return [value.__func__, value.__self__]
    if is_kind(value, types.FunctionType):
        cells = [content(cell) for cell in value.__closure__ or ()]
        names = names_in(value.__code__)
        reached = [value.__globals__[name] for name in names if name in value.__globals__]
        modules = [module for module in reached if is_kind(module, types.ModuleType)]
        inner = [vars(module).get(name) for module in modules for name in names]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [*cells, *reached, *defaults, *(f for f in inner if is_kind(f, types.FunctionType))]
    if is_kind(value, (tuple, list)):
        return _base(value).__getitem__(value, slice(20))
    if is_kind(value, dict):
        return list(dict.values(value))[:20]
    if is_kind(value, type) or type(value).__module__ in ("builtins", "numpy"):
        return []
    if is_kind(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    return [call_of(value), *list(dict.values(attributes(value)))[:50]]


def call_of(value: Any) -> Any:
    """The function that is called when an object is."""
    classes = type(value).__mro__
    return next((vars(c)["__call__"] for c in classes if "__call__" in vars(c)), None)


def content(cell: types.CellType) -> Any:
    """What a variable of an enclosing function holds."""
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value
        return None


def names_in(code: types.CodeType) -> list[str]:
    """What code, and the code within, names: globals and attributes."""
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += names_in(constant)
    return names


def attributes(value: Any) -> dict[str, Any]:
    """The attributes of an object itself; nothing of its class is called."""
    if is_kind(value, type) or type(value).__module__ in ("builtins", "numpy"):
        return {}
    for each in type(value).__mro__:
        found = vars(each).get("__dict__")
        if found is not None:  # a property of the user's is not asked
            return found.__get__(value) if is_kind(found, types.GetSetDescriptorType) else {}
    return {}
