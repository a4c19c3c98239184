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
from typing import Any

_MOST = 300


def mentions_jax(function: Any) -> bool:
    """Whether JAX, an array or a function of JAX, or a binding is reached by name."""
    seen: set[int] = set()
    todo = [function]
    while todo and len(seen) < _MOST:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if _is_of_jax(value):
            return True
        todo += _reached(value)
    return False


def _is_of_jax(value: Any) -> bool:
    if isinstance(value, types.ModuleType):
        module = value.__name__
    elif isinstance(value, types.FunctionType):
        module = value.__module__
    else:
        module = type(value).__module__
        if module == "jaxbind._binding":
            return True
    return str(module).partition(".")[0] in ("jax", "jaxlib")


def _reached(value: Any) -> list[Any]:
    """What a value's code names."""
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, types.FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_full(cell)]
        names = _names(value.__code__)
        reached = [value.__globals__[name] for name in names if name in value.__globals__]
        modules = [module for module in reached if isinstance(module, types.ModuleType)]
        inner = [vars(module).get(name) for module in modules for name in names]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [*cells, *reached, *defaults, *(f for f in inner if _is_python(f))]
    if isinstance(value, (tuple, list)):
        return list(value[:20])
    if isinstance(value, dict):
        return list(value.values())[:20]
    if isinstance(value, type) or type(value).__module__ in ("builtins", "numpy"):
        return []
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    attributes = getattr(value, "__dict__", None)
    held = list(attributes.values())[:50] if isinstance(attributes, dict) else []
    return [vars(type(value)).get("__call__"), *held]


def _is_python(value: Any) -> bool:
    return isinstance(value, types.FunctionType)


def _is_full(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _names(code: types.CodeType) -> list[str]:
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _names(constant)
    return names
