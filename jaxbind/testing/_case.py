"""`Case`: one example on which laws are tried."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from jaxbind.testing._compare import (
    ROUNDING,
    array_text,
    copied,
    epsilon,
    is_complex,
    is_inexact,
    magnitude,
    numpy_tree,
    tiny_of,
)
from jaxbind.testing._numerical import Derivative, directional
from jaxbind.testing._packing import packed, packed_together, unpacked
from jaxbind.testing._subject import (
    BrokenContract,
    KeptView,
    Static,
    Subject,
    UserError,
    errors_told_apart,
    key_of,
    owners,
    skipping_where_it_raises,
)
from jaxbind.testing._violation import Skip


class Case:
    """A binding, concrete arguments, and what the laws compute from them.

    Attributes:
      args: NumPy arrays in the structure of the arguments.
      static: the static keywords.
      more: further arguments of the same shapes and dtypes.
      statics: all static keywords that are tested.
      elsewhere: arguments of other shapes, or ``None``.
      free: whether the function takes any numbers, as far as is known.
      narrow: whether it is meant for 32-bit JAX, too.
      kinds: of floating-point numbers that it is meant for, as in ``np.dtype.kind``.
      rng: draws directions.
      rtol, atol: tolerances that replace those that follow from dtype and error estimate.
    """

    def __init__(
        self,
        subject: Subject,
        args: tuple,
        static: Static | None = None,
        *,
        more: Sequence[tuple] = (),
        statics: Sequence[Static] = (),
        elsewhere: tuple | None = None,
        free: bool = False,
        narrow: bool = True,
        kinds: str = "fc",
        seed: int = 0,
        rtol: float | None = None,
        atol: float | None = None,
    ):
        self.subject = subject
        self.args = jax.tree.map(copied, tuple(args))  # JAX may borrow the memory
        self.static: Mapping[str, Any] = dict(static or {})
        self.more = [jax.tree.map(np.asarray, tuple(m)) for m in more]
        self.statics = list(statics) or [self.static]
        self.elsewhere = elsewhere
        self.ground = 0.0  # of the function of which this is the derivative, the value's size
        self.inherited = 0.0  # and its precision
        self.free = free
        self.narrow = narrow
        self.kinds = kinds
        self.rng = np.random.default_rng(seed)
        self.seed = seed
        self.rtol = rtol
        self.atol = atol

    def of(self, subject: Subject, args: tuple) -> Case:
        """The same directions and tolerances for another function."""
        inner = Case(subject, args, seed=self.seed + 1, rtol=self.rtol, atol=self.atol)
        inner.inherited = self.eps
        inner.ground = max(self.ground, magnitude(self.value)) * max(1.0, magnitude(args[1]))
        return inner

    def text(self) -> str:
        shown = [_shown(arg) for arg in self.args]
        shown += [f"{name}={value!r}" for name, value in self.static.items()]
        return f"{self.subject.label}({', '.join(shown)})"

    @cached_property
    def key(self) -> Hashable:
        """Of the static keywords, to keep by what was compiled for them."""
        return key_of(self.static)

    # Other arguments -----------------------------------------------------------------------------

    @cached_property
    def tree(self) -> Any:
        """The structure of the arguments."""
        return jax.tree.structure(self.args)

    def rebuilt(self, leaves: Sequence[Any]) -> tuple:
        """Arguments from their leaves."""
        return jax.tree.unflatten(self.tree, leaves)

    def variants(self, count: int) -> list[tuple]:
        """Arguments of the same shapes: those that were drawn, then scaled copies of the first."""
        shapes = [(x.shape, x.dtype) for x in self.leaves]
        found = [self.args]
        for other in self.more:
            leaves, tree = jax.tree.flatten(other)
            if tree == self.tree and [(x.shape, x.dtype) for x in leaves] == shapes:
                found.append(other)
        found += [self.scaled(1 - (k + 1) / 16) for k in range(count - len(found))]
        return found[:count]

    def scaled(self, factor: float) -> tuple:
        """The arguments, the floating-point ones multiplied by a number."""
        scaled = [np.asarray(x * factor, x.dtype) if is_inexact(x) else x for x in self.leaves]
        return self.rebuilt(scaled)

    @cached_property
    def floating(self) -> tuple[bool, ...]:
        """Of each leaf, whether it is of floating point and not ``nondiff``."""
        return self.subject.differentiable(self.args)

    # Values --------------------------------------------------------------------------------------

    @cached_property
    def leaves(self) -> list[np.ndarray]:
        return jax.tree.leaves(self.args)

    def must_fit(self) -> None:
        """Raise what the function says of arguments that do not fit its declaration."""
        kinds = tuple((x.shape, x.dtype) for x in self.leaves)
        function = partial(self.subject.function, **self.static)
        key = ("fits", self.tree, kinds, self.key)
        self.subject.kept(key, lambda: jax.eval_shape(function, *self.args))

    @cached_property
    def value(self) -> Any:
        """The function's result; where it raises, a law has nothing to say."""
        try:
            with skipping_where_it_raises():
                return self.subject.value(self.args, self.static)
        except BrokenContract as error:
            law = "released" if isinstance(error, KeptView) else "abstract"
            raise Skip(f"the function breaks `{law}`") from None

    def value_at(self, leaves: Sequence[Any]) -> Any:
        """The function's result for other leaves of its arguments."""
        with errors_told_apart():
            return self.subject.value(self.rebuilt(leaves), self.static)

    @cached_property
    def results(self) -> list[np.ndarray]:
        """The leaves of the result that have a derivative."""
        return [r for r in jax.tree.leaves(self.value) if is_inexact(r)]

    @cached_property
    def eps(self) -> float:
        """The coarsest precision of operands and results."""
        found = max(epsilon([*self.leaves, *self.results]), self.inherited)
        computed = self.subject.options.compute_dtype
        return max(found, 0.0 if computed is None else epsilon([np.zeros(0, computed)]))

    def tolerance(self, default: float = ROUNDING) -> float:
        return self.rtol if self.rtol is not None else default * self.eps

    @property
    def underflow(self) -> float:
        """What arithmetic with numbers of any size may lose."""
        return 1e-290 if self.eps < 1e-10 else 1e-30

    @property
    def slack(self) -> float:
        return self.atol or 0.0

    @cached_property
    def owners(self) -> list[int]:
        return owners(self.args)

    def named(self, wrt: Sequence[bool]) -> str:
        """The arguments that are differentiated, as text."""
        chosen = dict.fromkeys(p for p, w in zip(self.owners, wrt, strict=True) if w)
        return ", ".join(self.subject.parameter(p) for p in chosen)

    # Directions ----------------------------------------------------------------------------------

    def directions(self, wrt: Sequence[bool], scaled: str = "unit") -> list[np.ndarray]:
        """A tangent for each chosen leaf, in fractions that binary numbers hold exactly.

        ``scaled``: ``"unit"`` as long as the operand's elements, at least 1; ``"relative"``
        like each element itself.
        """
        found = []
        for x, w in zip(self.leaves, wrt, strict=True):
            if not w:
                continue
            size = np.abs(x)
            if scaled == "unit":
                size = np.maximum(np.max(size, initial=1.0), 1.0)
            else:
                size = np.where(size > 0, size, np.max(size, initial=0.0) or 1.0)
                # XLA takes subnormal numbers for zero
                size = np.maximum(size, 4096 * tiny_of(x.dtype))
            found.append(np.asarray(size * self.fractions(x), x.dtype))
            if is_symmetric(x):  # by design, and so is what it may become
                found[-1] = np.asarray((found[-1] + np.swapaxes(found[-1], -1, -2).conj()) / 2)
        return found

    def cotangents(self) -> list[np.ndarray]:
        return [self.fractions(r).astype(r.dtype) for r in self.results]

    def fractions(self, like: np.ndarray) -> np.ndarray:
        """Random numbers of 1/2 to 1 in magnitude, with few digits."""

        def draw() -> np.ndarray:
            size = self.rng.integers(16, 33, like.shape) / 32
            return np.asarray(size * self.rng.choice([-1.0, 1.0], like.shape))

        return draw() + 1j * draw() if is_complex(like) else draw()

    # Derivatives ---------------------------------------------------------------------------------

    def pushed(self, wrt: tuple[bool, ...], tangents: Sequence[Any], leaves: Any = None) -> list:
        """J v by the declared rules."""
        leaves = self.leaves if leaves is None else leaves
        with errors_told_apart():
            run = self.subject.linearised(self.args, self.static, wrt)
            return [np.asarray(t) for t in run(list(leaves), list(tangents))]

    def pulled(
        self,
        wrt: tuple[bool, ...],
        cotangents: Sequence[Any],
        leaves: Any = None,
        results: tuple[bool, ...] | None = None,
    ) -> list:
        """Jᵀ w by the declared rules."""
        leaves = self.leaves if leaves is None else leaves
        with errors_told_apart():
            run = self.subject.transposed(self.args, self.static, wrt, results)
            return [np.asarray(t) for t in run(list(leaves), list(cotangents))]

    def numerical(
        self, wrt: Sequence[bool], tangents: Sequence[np.ndarray], noise: Any = 0.0
    ) -> Derivative:
        """J v by differences of values; complex numbers are pairs of real ones.

        ``noise``: of the values, where more is known than they show beside the operands.
        """
        chosen = [x for x, w in zip(self.leaves, wrt, strict=True) if w]

        def function(vector: np.ndarray) -> np.ndarray:
            parts = iter(unpacked(vector, chosen))
            full = [next(parts) if w else x for x, w in zip(self.leaves, wrt, strict=True)]
            try:
                value = self.value_at(full)
            except UserError:
                return np.full(packed(self.results).shape, np.nan)
            return packed([r for r in jax.tree.leaves(value) if is_inexact(r)])

        start = 0.25 * (0.7 + 0.3 * self.rng.random())
        found = directional(function, packed(chosen), packed(tangents), self.eps, start, noise)
        # one part of a complex number may look flat only because the steps are too long for both,
        # and may be zero, which is no measure of how well it is known
        scale = np.fmax(found.scale, np.abs(found.value))
        return replace(
            found,
            error=packed_together(found.error, self.results),
            scale=packed_together(scale, self.results),
        )

    def need_finite(self) -> None:
        """Skip what has no derivative to speak of."""
        wanted = self.subject.differentiable(self.args)
        if not any(x.size for x, keep in zip(self.leaves, wanted, strict=True) if keep):
            raise Skip("the operands are empty")
        for r in self.results:
            if not np.all(np.isfinite(r)):
                raise Skip("the function's value is not finite")
        if not self.results or not any(r.size for r in self.results):
            raise Skip("no result has a derivative, or all are empty")

    def floor(self, tangents: Sequence[np.ndarray]) -> np.ndarray:
        """Rounding in the size of results and tangents, by element of the packed results.

        A rule that takes a difference from the value (``1 - tanh(x)**2``) has it. What underflow
        takes is added.
        """
        longest = max(1.0, magnitude(list(tangents)))
        sizes = [np.full(packed([r]).shape, magnitude([r]) + self.ground) for r in self.results]
        return ROUNDING * self.eps * longest * np.concatenate(sizes) + self.underflow


def is_symmetric(x: np.ndarray) -> bool:
    """Whether it is a symmetric, or Hermitian, matrix (or several)."""
    square = x.ndim >= 2 and x.shape[-1] == x.shape[-2] > 1
    return square and np.array_equal(x, np.swapaxes(x, -1, -2).conj())


def raises(evaluate: Callable[[], Any]) -> bool:
    """Whether it raises (but for a kept view: that is a fault of its own)."""
    try:
        evaluate()
    except KeptView:
        return False
    except Exception:
        return True
    return False


def _shown(arg: Any) -> str:
    if isinstance(arg, np.ndarray):
        return array_text(arg)
    if isinstance(arg, dict):
        return "{" + ", ".join(f"{k!r}: {_shown(v)}" for k, v in arg.items()) + "}"
    if isinstance(arg, (tuple, list)) and not hasattr(arg, "_fields"):
        inner = ", ".join(map(_shown, arg))
        return f"[{inner}]" if isinstance(arg, list) else f"({inner}{',' * (len(arg) == 1)})"
    return repr(numpy_tree(arg))
