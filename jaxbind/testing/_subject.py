"""`Subject`: a binding under test, what was declared about it, and its compiled transformations."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten, tree_structure, tree_unflatten

from jaxbind import _dtypes, _static
from jaxbind._binding import Binding
from jaxbind._errors import short_repr
from jaxbind._legacy import legacy_call
from jaxbind._missing import MissingRule
from jaxbind._options import Options
from jaxbind._roles import GENERAL, NONDIFF, Function
from jaxbind._shapes import FromSignature
from jaxbind.testing._compare import is_inexact
from jaxbind.testing._violation import Inapplicable, Skip

Static = Mapping[str, Any]


class Subject:
    """A function under test.

    Attributes:
      function: called with JAX or NumPy arrays and the static keywords.
      label: how messages call it.
      binding: the binding, or ``None`` for a function made of one (a derivative, say).
      kind: of each argument: no derivative, by rule, or a group in which it is linear.
      parameter: of each argument, its name.
    """

    def __init__(
        self,
        function: Callable,
        label: str,
        *,
        binding: Binding | None = None,
        kind: Callable[[int], Any] = lambda position: GENERAL,
        parameter: Callable[[int], str] = str,
    ):
        self.function = function
        self.label = label
        self.binding = binding
        self.kind = kind
        self.parameter = parameter
        self._kept: dict[Any, Any] = {}
        self._missing: dict[Any, str | None] = {}

    @classmethod
    def of(cls, function: Any) -> Subject:
        """Of a binding, or of a ``functools.partial`` of one (as `get_linear_call` gives).

        Raises:
          TypeError: if it is something else.
        """
        binding = binding_of(function)
        if binding is None:
            raise TypeError(
                f"jaxbind.testing: got a {type(function).__name__}, {short_repr(function)}; it"
                " tests bindings: jaxbind.bind(function, ...)"
            )
        fixed = len(function.args) if isinstance(function, partial) else 0
        definition = binding.definition
        by_kind = getattr(definition.role, "kind", lambda position: GENERAL)
        return cls(
            function,
            definition.label,
            binding=binding,
            kind=lambda position: by_kind(position + fixed),
            parameter=lambda position: definition.argument_name(position + fixed),
        )

    @property
    def signature(self) -> Any:
        """The gufunc signature, or ``None``."""
        if self.binding is None or self.binding is not self.function:
            return None
        role = self.binding.definition.role
        shapes = role.shapes if isinstance(role, Function) else None
        return shapes.signature if isinstance(shapes, FromSignature) else None

    # Compiled transformations -------------------------------------------------------------------

    def kept(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gave the first time."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def compiled(self, key: Any, make: Callable[[], Callable]) -> Callable:
        """One ``jax.jit`` per key, so that each shape is compiled once."""
        return self.kept(key, lambda: jax.jit(make()))

    def value(self, args: tuple, static: Static) -> Any:
        """The function's result, as NumPy arrays."""
        leaves, tree = tree_flatten(args)
        key = ("value", tree, key_of(static))

        def make() -> Callable:
            return lambda leaves: self.function(*tree_unflatten(tree, leaves), **static)

        return jax.tree.map(np.asarray, self.compiled(key, make)(leaves))

    def linearised(self, args: tuple, static: Static, wrt: tuple[bool, ...]) -> Callable:
        """``(leaves, tangents) -> tangents of the inexact results``, compiled.

        ``wrt`` says of each leaf of ``args`` whether it is differentiated.
        """
        tree = tree_structure(args)

        def make() -> Callable:
            def run(leaves: list, tangents: list) -> list:
                inner, chosen = self._of_chosen(tree, static, wrt, leaves)
                results, pushed = jax.jvp(inner, chosen, tuple(tangents))
                return [t for r, t in _pairs(results, pushed) if is_inexact(r)]

            return run

        return self.compiled(("jvp", tree, key_of(static), wrt), make)

    def transposed(
        self,
        args: tuple,
        static: Static,
        wrt: tuple[bool, ...],
        results: tuple[bool, ...] | None = None,
    ) -> Callable:
        """``(leaves, cotangents of the inexact results) -> cotangents``, compiled.

        ``results`` says which inexact results are used at all (default: every one).
        """
        tree = tree_structure(args)

        def make() -> Callable:
            def run(leaves: list, cotangents: list) -> list:
                inner, chosen = self._of_chosen(tree, static, wrt, leaves)

                def used(*xs: Any) -> list:
                    found = [r for r in jax.tree.leaves(inner(*xs)) if is_inexact(r)]
                    keep = results or (True,) * len(found)
                    return [r for r, k in zip(found, keep, strict=True) if k]

                return list(jax.vjp(used, *chosen)[1](list(cotangents)))

            return run

        return self.compiled(("vjp", tree, key_of(static), wrt, results), make)

    def _of_chosen(self, tree: Any, static: Static, wrt: Sequence[bool], leaves: list) -> tuple:
        def inner(*chosen: Any) -> Any:
            remaining = iter(chosen)
            full = [next(remaining) if w else x for w, x in zip(wrt, leaves, strict=True)]
            return self.function(*tree_unflatten(tree, full), **static)

        return inner, tuple(x for x, w in zip(leaves, wrt, strict=True) if w)

    # What was declared ----------------------------------------------------------------------------

    def differentiable(self, args: tuple) -> tuple[bool, ...]:
        """Of each leaf of ``args``, whether it may have a derivative."""
        return tuple(
            is_inexact(leaf) and self.kind(position) is not NONDIFF
            for position, arg in enumerate(args)
            for leaf in jax.tree.leaves(arg)
        )

    def missing(self, mode: str, args: tuple, static: Static, wrt: tuple[bool, ...]) -> str | None:
        """Why a derivative (``"jvp"`` or ``"vjp"``) cannot be had: a rule is missing."""
        structs = [jax.ShapeDtypeStruct(np.shape(x), x.dtype) for x in jax.tree.leaves(args)]
        # a rule may depend on dtypes, and may not be asked at all about empty arrays
        kinds = (tuple(s.dtype for s in structs), any(0 in s.shape for s in structs))
        tree = tree_structure(args)
        key = (mode, tree, kinds, key_of(static), wrt)
        if key not in self._missing:
            chosen = [s for s, w in zip(structs, wrt, strict=True) if w]
            try:
                if mode == "jvp":
                    self.linearised(args, static, wrt).lower(structs, chosen)
                else:
                    results = jax.eval_shape(
                        lambda xs: self.function(*tree_unflatten(tree, xs), **static), structs
                    )
                    inexact = [r for r in jax.tree.leaves(results) if is_inexact(r)]
                    self.transposed(args, static, wrt).lower(structs, inexact)
                self._missing[key] = None
            except MissingRule as error:
                self._missing[key] = str(error)
            except Exception as error:
                if not any(0 in s.shape for s in structs):
                    raise
                self._missing[key] = f"for empty operands the rule raises: {error}"
        return self._missing[key]

    def available(self, mode: str, args: tuple, static: Static) -> tuple[bool, ...]:
        """Of each leaf of ``args``, whether this derivative was declared."""
        wanted = self.differentiable(args)
        if not any(wanted) or self.missing(mode, args, static, wanted) is None:
            return wanted
        alone = [
            tuple(i == j for j in range(len(wanted))) for i, wants in enumerate(wanted) if wants
        ]
        found = [only for only in alone if self.missing(mode, args, static, only) is None]
        return tuple(any(only[i] for only in found) for i in range(len(wanted)))

    # The function itself --------------------------------------------------------------------------

    def direct(
        self, args: tuple, static: Static, memory: Callable[..., np.ndarray] = np.zeros
    ) -> Any:
        """Call the bound function on NumPy arrays, without JAX, in the way the handler does.

        ``memory(shape, dtype)`` is what it writes its results into.
        """
        assert self.binding is not None and self.binding is self.function
        definition = self.binding.definition
        parameters = definition.parameters
        operands, known = definition.calling.bind(definition.label, args, dict(static))
        structs = jax.eval_shape(lambda *xs: self.function(*xs, **static), *args)
        seen = [self._seen(position, arg) for position, arg in enumerate(operands)]
        keywords = parameters.accepted(known.values)
        function = parameters.by_keyword_out(definition.function)
        if not parameters.wants_out:
            return _conform(structs, function(*seen, **keywords))
        out = jax.tree.map(lambda s: self._array(memory(s.shape, self._computed(s))), structs)
        function(*seen, out=out, **keywords)
        return _conform(structs, out)

    def _seen(self, position: int, arg: Any) -> Any:
        nondiff = self.kind(position) is NONDIFF

        def one(x: Any) -> np.ndarray:
            return self._array(np.array(x, x.dtype if nondiff else self._computed(x)))

        return jax.tree.map(one, arg)

    @property
    def options(self) -> Options:
        """How the function is called: as its binding has it."""
        return Options() if self.binding is None else self.binding.definition.options

    def _computed(self, x: Any) -> np.dtype:
        return _dtypes.computing(np.dtype(x.dtype), self.options.compute_dtype)

    def _array(self, x: np.ndarray) -> np.ndarray:
        return np.asarray(x, order="F" if self.options.order == "F" else "C")


def binding_of(function: Any) -> Binding | None:
    """The binding that ``function`` is, or that it is a ``functools.partial`` of, if any."""
    if isinstance(function, partial):
        legacy = function.func is legacy_call
        function = function.keywords["_func"].binding if legacy else function.func
    return function if isinstance(function, Binding) else None


def _pairs(first: Any, second: Any) -> Iterator[tuple]:
    return zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)


def _conform(structs: Any, result: Any) -> Any:
    """What the function returned, in the declared structure and dtypes."""
    leaves, tree = tree_flatten(structs)
    if len(leaves) == 1 and not isinstance(result, (dict, tuple, list)):
        found = [result]
    else:
        found = jax.tree.leaves(result)
    with np.errstate(all="ignore"):
        arrays = [
            np.asarray(x).astype(s.dtype).reshape(s.shape)
            for x, s in zip(found, leaves, strict=True)
        ]
    return tree_unflatten(tree, arrays)


def key_of(static: Static) -> Hashable:
    """A key for static parameters, by exact value and type.

    What is unhashable no binding takes: it says so itself when it is called.
    """
    try:
        return _static.Static(static)
    except TypeError:
        return tuple((name, id(value)) for name, value in static.items())


def subsets(wanted: tuple[bool, ...], owners: Sequence[int]) -> list[tuple[bool, ...]]:
    """Every nonempty subset of the wanted arguments, all of them first.

    Args:
      owners: the argument to which each leaf belongs.
    """
    positions = sorted({p for p, w in zip(owners, wanted, strict=True) if w})
    chosen = [
        set(some)
        for count in range(len(positions), 0, -1)
        for some in itertools.combinations(positions, count)
    ]
    return [tuple(w and p in some for p, w in zip(owners, wanted, strict=True)) for some in chosen]


def owners(args: tuple) -> list[int]:
    return [position for position, arg in enumerate(args) for _ in jax.tree.leaves(arg)]


class UserError(Exception):
    """The bound function, or a rule, raised an exception; the text is XLA's."""


class BrokenContract(Exception):
    """A function or rule returned something else than was declared, or kept a view."""


class KeptView(BrokenContract):
    """It kept a view of an operand or result."""


def without_jax(text: str) -> str:
    """A message without what JAX says below it about its own frames."""
    return text.partition("\n--------------------")[0]


@contextlib.contextmanager
def errors_told_apart() -> Iterator[None]:
    """Sort what a call raises into what users raise and what we found wrong."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        # from other threads jaxlib raises the same as a ValueError
        code, _, text = str(error).partition(": ")
        if code not in ("INVALID_ARGUMENT", "INTERNAL", "CANCELLED"):
            raise
        kind = BrokenContract if code == "INVALID_ARGUMENT" else UserError
        if kind is BrokenContract and "kept a view" in text:
            kind = KeptView
        raise kind(without_jax(text)) from None


#: how the reasons begin for which a law says nothing about arguments that the function refuses
RAISES = "the function raises"


def raises_here(error: UserError) -> Skip:
    return Skip(f"{RAISES}: {str(error).splitlines()[0]}")


@contextlib.contextmanager
def skipping_where_it_raises() -> Iterator[None]:
    """As `errors_told_apart`; where the function raises, a law has nothing to say."""
    try:
        with errors_told_apart():
            yield
    except UserError as error:
        raise raises_here(error) from None


def as_jax(args: tuple) -> tuple:
    """Arguments as JAX arrays, dtypes kept as far as the x64 setting allows."""
    return jax.tree.map(jnp.asarray, args)


def need(condition: bool, reason: str) -> None:
    """Skip what follows, for a reason."""
    if not condition:
        raise Skip(reason)


def apply_only_if(condition: bool, reason: str) -> None:
    """Skip what follows for every example of this binding, for a reason."""
    if not condition:
        raise Inapplicable(reason)
