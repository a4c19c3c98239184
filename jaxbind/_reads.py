"""`ReadArrays`: arrays of JAX that a function reads although it was not given them."""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax

from jaxbind import _jax
from jaxbind._mentions import attributes, call_of, content, is_kind, is_of_jax, names_in, walked

#: how long a function waits for an array that it reads, in seconds
PATIENCE = 10.0

#: seconds in which another thread takes Python's global lock, if it waits for it
TURN = 1e-3
TURNS = 5


class ReadArrays:
    """JAX arrays that a function's code names, which it may read although it was not given them.

    To read one that is not there yet waits for it. If that is the result of the very program in
    which the function is called (a loop that binds its state to one name, to an attribute of the
    object that the function belongs to, or to an entry of a dict), it waits for ever.
    """

    def __init__(self, function: Any):
        self.places: list[tuple[str, Callable[[], Any]]] = []
        self.kinds: set[type] = set()  # quicker to ask than `_is_array`
        self.last: list[int] | None = None  # what was there at the last call, not kept alive
        self.changing = False
        for each in walked(function):
            if is_kind(each, types.FunctionType):
                for name, get in _named(each):
                    self.places += self._arrays(name, get, _words(each.__code__))
        owner, code = function, call_of(function)
        if is_kind(function, types.MethodType):
            owner, code = function.__self__, function.__func__
        if is_kind(code, types.FunctionType):
            self.places += self._arrays("self", lambda: owner, _words(code.__code__))

    def _arrays(
        self, name: str, get: Callable[[], Any], words: set[str], depth: int = 3
    ) -> Iterator[tuple[str, Callable[[], Any]]]:
        """The array that this is, or those in it that the words of a function's code name."""
        value = get()
        if _is_array(value):
            self.kinds.add(type(value))
            yield name, get
        elif depth and not is_of_jax(value):
            is_dict, entries = is_kind(value, dict), _entries(value)
            for word in sorted(words):
                if dict.__contains__(entries, word):
                    shown = f"{name}[{word!r}]" if is_dict else f"{name}.{word}"
                    yield from self._arrays(shown, partial(_entry, get, word), words, depth - 1)

    def wait(self) -> None:
        """Return when all are there.

        Where they change from call to call, a thread that is about to change one is let go on
        first: it waits for Python's global lock, which it may get before the function reads.

        Raises:
          CalledJax: naming one that does not come.
        """
        if not self.places:
            return
        end, before = time.monotonic() + PATIENCE, None
        careful = self.last is None
        for _ in range(TURNS):  # somebody may change them without end
            now = [id(self._there(name, get, end)) for name, get in self.places]
            self.changing |= self.last is not None and now != self.last
            self.last = now
            if now == before or not (careful or self.changing):
                return
            before = now
            time.sleep(TURN)

    def _there(self, name: str, get: Callable[[], Any], end: float) -> Any:
        """What is at a place, which is waited for if it is an array."""
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
        return array


def _named(function: types.FunctionType) -> list[tuple[str, Callable[[], Any]]]:
    """What a function's code names, as it is at the time of asking."""
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    found: list[tuple[str, Callable[[], Any]]]
    found = [(name, partial(content, cell)) for name, cell in cells]
    return found + [(name, partial(function.__globals__.get, name)) for name in names_in(code)]


def _entry(get: Callable[[], Any], word: str) -> Any:
    """An entry or an attribute of something, None if it is not there."""
    return dict.get(_entries(get()), word)


def _entries(value: Any) -> dict[str, Any]:
    """A dict itself, or an object's attributes. Nothing of the user's is called."""
    return value if is_kind(value, dict) else attributes(value)


def _is_array(value: Any) -> bool:
    return (
        is_kind(value, jax.Array) and hasattr(type(value), "is_ready") and not _jax.is_tracer(value)
    )


def _words(code: types.CodeType) -> set[str]:
    """Names, and strings that may be keys, in a function's code."""
    words = set(names_in(code))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            words |= _words(constant)
        elif isinstance(constant, str):
            words.add(constant)
    return words
