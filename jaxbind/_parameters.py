"""What the parameters of a foreign function are: operands, static parameters, ``out``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jaxbind import _jax
from jaxbind._errors import short_repr
from jaxbind._static import NO_STATIC, Static, is_hashable
from jaxbind._ufuncs import input_names, partial_of_ufunc, ufunc_of

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_EMPTY = inspect.Parameter.empty


@dataclass(frozen=True, slots=True)
class Parameters:
    """The parameters of a function, sorted by what they mean to a binding.

    Attributes:
      operands: names of the positional parameters.
      defaults: default values among them; one that is not given is left to the function.
      by_keyword: those that a caller may also name.
      variadic: whether there is ``*args`` (or the parameters cannot be inspected).
      static: names and defaults of the keyword-only parameters.
      any_static: whether there is ``**kwargs``.
      wants_out: whether a parameter is called ``out``.
      wants_wrt: whether a keyword-only parameter is called ``wrt``.
      out_place: how many positional parameters stand in front of ``out``, if it is one.
      out_named: whether it may be given by keyword.
      numpy_names: of a ufunc, what NumPy calls the operands (``x1``), which options may say, too.
      fill: so many operands there must be (by the signature): defaults fill them up.
    """

    operands: tuple[str, ...]
    defaults: Mapping[str, Any]
    by_keyword: frozenset[str]
    variadic: bool
    static: Mapping[str, Any]
    any_static: bool
    wants_out: bool
    wants_wrt: bool = False
    fill: int = 0
    out_place: int | None = None
    out_named: bool = True
    numpy_names: Mapping[Any, str] = field(default_factory=dict)

    @classmethod
    def of(cls, function: Callable, *, rule: bool = False) -> Parameters:
        """Inspect ``function``; in a rule (``rule=True``) ``wrt`` has a meaning of its own."""
        ufunc = ufunc_of(function)
        if ufunc is not None:
            names = input_names(ufunc)
            other = {f"x{i + 1}": name for i, name in enumerate(names)}
            return cls(names, {}, frozenset(), False, {}, False, False, numpy_names=other)
        inner = partial_of_ufunc(function)
        if inner is not None:  # whose keywords exclude each other, even with their defaults
            ufunc, given = inner
            return cls(input_names(ufunc)[given:], {}, frozenset(), False, {}, True, False)
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):  # builtins without a text signature
            return cls((), {}, frozenset(), True, {}, True, False)
        operands, defaults, by_keyword, static = [], {}, [], {}
        variadic = any_static = wants_out = wants_wrt = False
        out_place, out_named = None, True
        for p in parameters:
            if p.name == "loop" and getattr(function, "takes_loop", False):
                continue  # set by us for each call site (see `_legacy`)
            elif p.name == "out" and p.kind is not p.VAR_POSITIONAL and p.kind is not p.VAR_KEYWORD:
                wants_out = True
                if p.kind is not p.KEYWORD_ONLY:
                    out_place = len(operands)
                    out_named = p.kind is not p.POSITIONAL_ONLY
            elif (
                rule
                and p.name == "wrt"
                and (p.kind is p.KEYWORD_ONLY or (operands and p.kind is p.POSITIONAL_OR_KEYWORD))
            ):
                wants_wrt = True
            elif p.kind in _POSITIONAL:
                operands.append(p.name)
                if p.kind is p.POSITIONAL_OR_KEYWORD:
                    by_keyword.append(p.name)
                if p.default is not _EMPTY:
                    defaults[p.name] = p.default
            elif p.kind is p.VAR_POSITIONAL:
                variadic = True
            elif p.kind is p.KEYWORD_ONLY:
                static[p.name] = p.default
            else:
                any_static = True
        return cls(
            tuple(operands),
            defaults,
            frozenset(by_keyword),
            variadic,
            static,
            any_static,
            wants_out,
            wants_wrt,
            out_place=out_place,
            out_named=out_named,
        )

    def behind(self, count: int) -> Parameters:
        """The parameters of a rule that is called with ``count`` positional arguments.

        What stands behind them can be given by keyword, and so is a static parameter as good as
        one that can be given by keyword only.
        """
        late = [name for name in self.operands[count:] if name in self.by_keyword]
        if not late:
            return self
        static = {name: self.defaults.get(name, _EMPTY) for name in late}
        return replace(self, operands=self.operands[:count], static={**static, **self.static})

    def by_keyword_out(self, function: Callable) -> Callable:
        """The function with ``out`` as a keyword, wherever it stands among its parameters."""
        place = self.out_place
        last = place is not None and place >= len(self.operands) and not self.variadic
        if place is None or (self.out_named and last):
            return function

        def placed(*operands: Any, out: Any, **static: Any) -> Any:
            if self.out_named and len(operands) <= place:
                return function(*operands, out=out, **static)
            return function(*operands[:place], out, *operands[place:], **static)

        return placed

    def name(self, position: int) -> str | None:
        return self.operands[position] if position < len(self.operands) else None

    def bind(self, label: str, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, Static]:
        """Split a call into its positional operands and its static parameters.

        Raises:
          TypeError: for a wrong number of operands, or an unknown, missing or unhashable
            keyword; the text names it.
        """
        if not kwargs and len(args) == len(self.operands) and not self.static:
            return args, NO_STATIC
        static: dict[str, Any] = {}
        by_name: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name in self.by_keyword:
                by_name[name] = value
            elif name in self.static or self.any_static:
                static[name] = value
            else:
                known = [*self.static, *sorted(self.by_keyword)]
                raise TypeError(
                    f"{label}: unexpected keyword argument {name}={short_repr(value)};"
                    f" it takes {', '.join(known) or 'no keywords'}"
                )
        operands = self._operands(label, args, by_name)
        for name, default in self.static.items():
            if name not in static:
                if default is _EMPTY:
                    made = f", which {label}.def_plan(make) would make" if name == "plan" else ""
                    raise TypeError(f"{label}: missing the static keyword argument {name}={made}")
                if is_hashable(default):
                    static[name] = default  # otherwise left to the function
        return operands, hashable(label, static)

    def _operands(self, label: str, args: tuple, by_name: dict[str, Any]) -> tuple:
        values = list(args)
        for name in self.operands[len(args) :]:
            if name in by_name:
                values.append(by_name.pop(name))
            elif name in self.defaults and (by_name or len(values) < self.fill):
                values.append(self.defaults[name])
            elif by_name:
                raise TypeError(f"{label}: missing argument {len(values)} ({name})")
            else:
                break
        if by_name:
            name = next(iter(by_name))
            raise TypeError(f"{label}: got two values for argument {name}, or one out of order")
        most = len(self.operands)
        least = most - len(self.defaults)
        if len(values) < least or (len(values) > most and not self.variadic):
            wanted = f"at least {least}" if self.variadic else f"{most}"
            if not self.variadic and least < most:
                wanted = f"{least} to {most}"
            names = f" ({', '.join(self.operands)})" if self.operands else ""
            raise TypeError(
                f"{label}: got {len(args)} positional argument{'s' * (len(args) != 1)};"
                f" it takes {wanted}{names}. Static parameters are keyword-only"
            )
        return tuple(values)

    def accepted(self, static: Mapping[str, Any]) -> dict[str, Any]:
        """The static parameters that this function takes: a rule may leave some out."""
        if self.any_static:
            return dict(static)
        return {name: value for name, value in static.items() if name in self.static}


def hashable(label: str, values: Mapping[str, Any]) -> Static:
    """Static parameters as a hashable record.

    Raises:
      TypeError: naming the parameter that is unhashable, or an array or tracer.
    """
    try:
        return Static(values)
    except TypeError:
        for name, value in values.items():
            try:
                Static({name: value})
            except TypeError:
                kind = type(value).__name__
                remedy = (
                    "Pass a tuple instead of a list or an array, or make it a positional operand"
                )
                if _jax.is_tracer(value):
                    remedy = (
                        "It is traced by the jax.jit around the call: name it in"
                        f" jax.jit(..., static_argnames={name!r}), or make it a positional operand"
                    )
                raise TypeError(
                    f"{label}: static parameter {name}={short_repr(value)} is unhashable ({kind});"
                    f" static parameters are part of the compiled program. {remedy}"
                ) from None
        raise


def position(label: str, option: str, parameters: Parameters, argument: str | int) -> int:
    """The position of an argument named in an option.

    Raises:
      TypeError: naming the arguments that there are.
    """
    names = parameters.operands
    named = parameters.numpy_names.get(argument, argument)
    if isinstance(named, str) and named in names:
        return names.index(named)
    if isinstance(argument, int) and not isinstance(argument, bool):
        if 0 <= argument < len(names) or (argument >= 0 and parameters.variadic):
            return argument
    raise TypeError(
        f"{label}: {option} names {argument!r}, which is no argument; it has"
        f" {', '.join(names) or 'no named arguments; give positions'}"
    )


def positions(label: str, option: str, parameters: Parameters, given: Any) -> frozenset[int]:
    """Positions of the arguments that an option names (one name, or several)."""
    if not isinstance(given, (str, int, tuple, list, set, frozenset)):
        raise TypeError(f"{label}: {option}{given!r} must be the name of an argument, or several")
    several = (given,) if isinstance(given, (str, int)) else tuple(given)
    return frozenset(position(label, option, parameters, a) for a in several)
