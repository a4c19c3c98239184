"""Whether a Python function could call JAX, as far as its code tells.

A function that calls JAX while it runs can block the runtime for ever, and is refused by a guard
that costs as much as a short call. It is left out for functions whose code, with that of the
functions that it calls by name, does not mention JAX; a function that hides it (in a module of
its own that is reached by an attribute of an object, say) is guarded in its first calls, in every
1024th, and in all after one of these that was slow.

Arrays of JAX that the code names are waited for, within limits (`ReadArrays`).
"""

from __future__ import annotations

import functools
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
    which the function is called (a loop that binds its state to one name, to an attribute of the
    object that the function belongs to, or to an entry of a dict), it waits for ever.
    """

    def __init__(self, function: Any):
        self.places: list[tuple[str, Callable[[], Any]]] = []
        self.kinds: set[type] = set()  # quicker to ask than `_is_array`
        for each in _walked(function):
            if _is(each, types.FunctionType):
                for name, get in _named(each):
                    self.places += self._arrays(name, get, _words(each.__code__))
        owner, code = function, _call_of(function)
        if _is(function, types.MethodType):
            owner, code = function.__self__, function.__func__
        if _is(code, types.FunctionType):
            self.places += self._arrays("self", lambda: owner, _words(code.__code__))

    def _arrays(
        self, name: str, get: Callable[[], Any], words: set[str], depth: int = 3
    ) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The array that this is, or those in it that the words of a function's code name."""
        value = get()
        if _is_array(value):
            self.kinds.add(type(value))
            yield name, get
        elif depth and not _is_of_jax(value):
            is_dict, entries = _is(value, dict), _entries(value)
            for word in sorted(words):
                if dict.__contains__(entries, word):
                    shown = f"{name}[{word!r}]" if is_dict else f"{name}.{word}"
                    yield from self._arrays(shown, partial(_entry, get, word), words, depth - 1)

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


def _entry(get: Callable[[], Any], word: str) -> Any:
    """An entry or an attribute of something, None if it is not there."""
    return dict.get(_entries(get()), word)


def _entries(value: Any) -> dict[str, Any]:
    """A dict itself, or an object's attributes. Nothing of the user's is called."""
    return value if _is(value, dict) else _attributes(value)


def _base(value: tuple | list) -> Any:
    return tuple if _is(value, tuple) else list


def _is(value: Any, kinds: Any) -> bool:
    """As `isinstance`, which would ask a proxy for what it stands for."""
    return issubclass(type(value), kinds)


def _is_array(value: Any) -> bool:
    return _is(value, jax.Array) and hasattr(type(value), "is_ready") and not _jax.is_tracer(value)


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
        return [*cells, *reached, *defaults, *(f for f in inner if _is(f, types.FunctionType))]
    if _is(value, (tuple, list)):
        return _base(value).__getitem__(value, slice(20))
    if _is(value, dict):
        return list(dict.values(value))[:20]
    if _is(value, type) or type(value).__module__ in ("builtins", "numpy"):
        return []
    if _is(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    return [_call_of(value), *list(dict.values(_attributes(value)))[:50]]


def _call_of(value: Any) -> Any:
    """The function that is called when an object is."""
    classes = type(value).__mro__
    return next((vars(c)["__call__"] for c in classes if "__call__" in vars(c)), None)


def _attributes(value: Any) -> dict[str, Any]:
    if _is(value, type) or type(value).__module__ in ("builtins", "numpy"):
        return {}
    for each in type(value).__mro__:
        found = vars(each).get("__dict__")
        if found is not None:  # a property of the user's is not asked
            return found.__get__(value) if _is(found, types.GetSetDescriptorType) else {}
    return {}


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


def _words(code: types.CodeType) -> set[str]:
    """Names, and strings that may be keys, in a function's code."""
    words = set(_names(code))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            words |= _words(constant)
        elif isinstance(constant, str):
            words.add(constant)
    return words
