"""Whether a Python function could call JAX, as far as its code tells.

A function that calls JAX while it runs can block the runtime for ever, and is refused by a guard
that costs as much as a short call. It is left out for functions whose code, with that of the
functions that it calls by name, does not mention JAX; a function that hides it (in a module of
its own that is reached by an attribute of an object, say) is guarded in its first calls, in every
1024th, and in all after one of these that was slow.
"""

from __future__ import annotations

import functools
import inspect
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

from jaxbind import _jax

_MOST = 300


def mentions_jax(function: Any) -> bool:
    """Whether JAX, an array or a function of JAX, or a binding is reached by name."""
    return any(map(_is_of_jax, _walked(function)))


def _walked(function: Any) -> Iterator[Any]:
    """The function and what it reaches by name, up to what is JAX's."""
    seen: set[int] = set()
    todo = [function]
    while todo and len(seen) < _MOST:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        yield value
        if not _is_of_jax(value):
            todo += _reached(value)


#: how long a function waits for an array that it reads, in seconds
PATIENCE = 10.0


class ReadArrays:
    """JAX arrays that a function's code names, which it may read although it was not given them.

    To read one that is not there yet waits for it. If that is the result of the very program in
    which the function is called (a loop that binds its state to one name, or to an attribute of
    the object that the function belongs to), it waits for ever.
    """

    def __init__(self, function: Any):
        functions = [f for f in _walked(function) if _is(f, types.FunctionType)]
        roots = [root for each in functions for root in _named(each)]
        owner = function.__self__ if _is(function, types.MethodType) else function
        roots.append(("self", lambda: owner))
        names = {name for each in functions for name in _names(each.__code__)}
        self.places = [place for name, get in roots for place in _arrays(name, get, names)]
        self.kinds = {type(get()) for _, get in self.places}  # quicker to ask than `_is_array`

    def wait(self) -> None:
        """Return when all are there.

        Raises:
          CalledJax: naming one that does not come.
        """
        end = time.monotonic() + PATIENCE
        for name, get in self.places:
            array = get()
            while type(array) in self.kinds and not array.is_deleted() and not array.is_ready():
                if time.monotonic() > end:
                    raise _jax.CalledJax(
                        f"a foreign function reads the JAX array {name!r}, which is not there yet"
                        " and may wait for this very call. Pass it as an operand, or make it a"
                        " NumPy array first"
                    )
                time.sleep(0.001)
                array = get()


def _named(function: types.FunctionType) -> list[tuple[str, Callable[[], Any]]]:
    """What a function's code names, as it is at the time of asking."""
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    found: list[tuple[str, Callable[[], Any]]]
    found = [(name, partial(_content, cell)) for name, cell in cells]
    return found + [(name, partial(function.__globals__.get, name)) for name in _names(code)]


def _arrays(
    name: str, get: Callable[[], Any], names: set[str], depth: int = 3
) -> Iterator[tuple[str, Callable[[], Any]]]:
    """The array that this is, or those in it: entries, and attributes of the names given."""
    value = get()
    if _is_array(value):
        yield name, get
    elif depth and not _is_of_jax(value):
        for shown, key in _keys(value, names):
            yield from _arrays(name + shown, partial(_entry, get, key), names, depth - 1)


def _keys(value: Any, names: set[str]) -> list[tuple[str, Any]]:
    if _is(value, dict):
        keys = list(dict.keys(value))[:20]
        return [(f"[{key!r}]", key) for key in keys if type(key) in (str, int)]
    if _is(value, (tuple, list)):
        return [(f"[{i}]", i) for i in range(20)]
    attributes = _attributes(value)
    return [(f".{name}", name) for name in sorted(names) if name in attributes]


def _entry(get: Callable[[], Any], key: Any) -> Any:
    """An entry or an attribute of something, None if it is not there.

    Nothing of the user's is called: a `defaultdict` would make an entry.
    """
    value = get()
    if _is(value, dict):
        return dict.get(value, key)
    if _is(value, (tuple, list)):
        try:
            return _base(value).__getitem__(value, key)
        except (IndexError, TypeError):
            return None
    return _attributes(value).get(key)


def _base(value: tuple | list) -> Any:
    return tuple if _is(value, tuple) else list


def _is(value: Any, kinds: Any) -> bool:
    """As `isinstance`, which would ask a proxy for what it stands for."""
    return issubclass(type(value), kinds)


def _is_array(value: Any) -> bool:
    return _is(value, jax.Array) and not _jax.is_tracer(value)


def _is_of_jax(value: Any) -> bool:
    if _is(value, types.ModuleType):
        module = value.__name__
    elif _is(value, types.FunctionType):
        module = value.__module__
    else:
        module = type(value).__module__
        if module == "jaxbind._binding":
            return True
    return str(module).partition(".")[0] in ("jax", "jaxlib")


def _reached(value: Any) -> list[Any]:
    """What a value's code names."""
    if _is(value, types.MethodType):
        return [value.__func__, value.__self__]
    if _is(value, types.FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        names = _names(value.__code__)
        reached = [value.__globals__[name] for name in names if name in value.__globals__]
        modules = [module for module in reached if _is(module, types.ModuleType)]
        inner = [vars(module).get(name) for module in modules for name in names]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [*cells, *reached, *defaults, *(f for f in inner if _is_python(f))]
    if _is(value, (tuple, list)):
        return _base(value).__getitem__(value, slice(20))
    if _is(value, dict):
        return list(dict.values(value))[:20]
    if _is(value, type) or type(value).__module__ in ("builtins", "numpy"):
        return []
    if _is(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    call = inspect.getattr_static(type(value), "__call__", None)
    return [call, *list(_attributes(value).values())[:50]]


def _attributes(value: Any) -> dict[str, Any]:
    if _is(value, type) or type(value).__module__ in ("builtins", "numpy"):
        return {}
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except Exception:  # it has none, or a class of its own ideas about them
        return {}
    return attributes if _is(attributes, dict) else {}


def _is_python(value: Any) -> bool:
    return _is(value, types.FunctionType)


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable without a value
        return None


def _names(code: types.CodeType) -> list[str]:
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names += _names(constant)
    return names
