"""`Options`: how a binding is checked, as its user says or said before."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any
from weakref import WeakKeyDictionary

from hypothesis.strategies import SearchStrategy

from jaxbind._errors import short_repr
from jaxbind.testing._subject import Static, Subject
from jaxbind.testing.laws import LAWS


@dataclass(frozen=True)
class Options:
    """How a binding is checked; see `check`."""

    inputs: SearchStrategy | None = None
    static: Static | Sequence[Static] | None = None
    elements: Any = None
    dtypes: Any = None
    laws: Iterable[str] | None = None
    skip: Iterable[str] = ()
    max_examples: int | None = None
    seed: int | None = None
    rtol: float | None = None
    atol: float | None = None

    def __post_init__(self):
        if self.laws is not None:
            object.__setattr__(self, "laws", _names("laws", self.laws))
        object.__setattr__(self, "skip", _names("skip", self.skip))
        _need_integer("max_examples", self.max_examples, 1)
        _need_integer("seed", self.seed, 0)
        _need_number("rtol", self.rtol)
        _need_number("atol", self.atol)
        if self.static is not None and not isinstance(self.static, Mapping):
            object.__setattr__(self, "static", statics_of(self.static))

    @property
    def statics(self) -> list[Static]:
        return statics_of(self.static)


def statics_of(static: Any) -> list[Static]:
    """The mappings of static keywords that are tried.

    Raises:
      TypeError, ValueError: for what is none, or a list of none.
    """
    if static is None:
        return [{}]
    wanted = "a mapping of static keywords or a list of such mappings"
    if isinstance(static, Mapping):
        return [static]
    if not isinstance(static, Iterable):
        raise _wrong("static", static, wanted, TypeError)
    found = list(static)
    if not found:
        raise ValueError(f"jaxbind.testing: static= is empty; give {wanted}, or leave it out")
    if not all(isinstance(one, Mapping) for one in found):
        raise _wrong("static", static, wanted, TypeError)
    return found


def _names(option: str, given: Iterable[str]) -> tuple[str, ...]:
    """Names of laws, which are read more than once."""
    if isinstance(given, str):
        raise TypeError(f"jaxbind.testing: give several laws as a list: {option}=[{given!r}]")
    if not isinstance(given, Iterable):
        raise _wrong(option, given, "a list of the names of laws", TypeError)
    names = tuple(given)
    for name in names:
        if name not in LAWS:
            raise ValueError(f"jaxbind.testing: no law {name!r}; there are {', '.join(LAWS)}")
    return names


def _need_integer(name: str, value: Any, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise _wrong(name, value, "an integer", TypeError)
    if value < least:
        raise _wrong(name, value, f"at least {least}")


def _need_number(name: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Real) or isinstance(value, bool):
        raise _wrong(name, value, "a number", TypeError)
    if not float(value) >= 0:
        raise _wrong(name, value, "a number that is not negative")


def _wrong(name: str, value: Any, wanted: str, kind: type[Exception] = ValueError) -> Exception:
    return kind(f"jaxbind.testing: {name}={short_repr(value)}; it must be {wanted}")


_declared: WeakKeyDictionary[Any, dict[str, Any]] = WeakKeyDictionary()


def using(f: Any, **keywords: Any) -> Any:
    """Remember how ``f`` is to be checked: keywords of `check`, beside the binding itself.

    `check`, `report`, `parametrize` and the command line then need no more. Returns ``f``.
    """
    Subject.of(f)
    options = options_for(f, keywords)
    _declared[f] = {name: getattr(options, name) for name in keywords}  # iterators are read once
    return f


def options_for(f: Any, keywords: Mapping[str, Any]) -> Options:
    """The options for a binding: what is given now, before what was declared.

    Raises:
      TypeError, ValueError: for an unknown keyword, or what it cannot be.
    """
    try:
        known = _declared.get(f, {})
    except TypeError:  # not hashable, or without weak references: nothing was told about it
        known = {}
    names = Options.__dataclass_fields__
    for name in keywords:
        if name not in names:
            raise TypeError(
                f"jaxbind.testing: no keyword {name!r}; the keywords are {', '.join(names)}"
            )
    return Options(**{**known, **keywords})
