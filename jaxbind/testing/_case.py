"""`Case`: one example on which laws are tried."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import jax
import numpy as np

from jaxbind.testing._compare import (
    ROUNDING,
    array_text,
    eps_of,
    epsilon,
    is_complex,
    is_inexact,
    magnitude,
    numpy_tree,
    tiny_of,
)
from jaxbind.testing._numerical import Derivative, directional
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
        self.args = jax.tree.map(np.array, tuple(args))  # JAX may borrow the memory
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
        computed = getattr(getattr(self.subject.binding, "definition", None), "compute_dtype", None)
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

    def nudged(
        self, wrt: Sequence[bool], count: int = 3, leaves: Sequence[np.ndarray] | None = None
    ) -> list[list[np.ndarray]]:
        """Operands moved by a few units in the last place: what rounding alone may do.

        Args:
          wrt: which of them.
          leaves: default: those of the arguments.
        """
        leaves = self.leaves if leaves is None else leaves

        def moved(x: np.ndarray) -> np.ndarray:
            signs = self.rng.choice([-1, 1], x.shape)
            return np.asarray(x * (1 + 2 * eps_of(x.dtype) * signs), x.dtype)

        return [
            [moved(x) if w else x for x, w in zip(leaves, wrt, strict=True)] for _ in range(count)
        ]

    def sensitivity(self, evaluate: Callable[[list], np.ndarray], wrt: Sequence[bool]) -> Any:
        """How far rounding the operands moves the (flat) result of ``evaluate``."""
        middle = evaluate(self.leaves)
        with np.errstate(all="ignore"):
            moved = [np.abs(evaluate(leaves) - middle) for leaves in self.nudged(wrt)]
        return np.max(np.nan_to_num(moved, nan=np.inf), axis=0, initial=0.0)

    def scatter(
        self, evaluate: Callable[[list], np.ndarray], leaves: Sequence[np.ndarray], eps: float
    ) -> np.ndarray:
        """How far rounding on the way scatters what ``evaluate`` gives close to ``leaves``.

        Operands that are small beside constants of the function do not show it when they are moved
        by rounding errors of their own. How far results are from the line between their two
        neighbours leaves out what is smooth (Moré and Wild 2011); the three largest may be due to a
        jump.
        """
        try:
            steps, table = self._beside(evaluate, leaves, self._outward(leaves), eps)
        except (Skip, UserError, BrokenContract):  # at the end of its domain it raises
            return np.zeros(())
        with np.errstate(all="ignore"):
            share = ((steps[1:-1] - steps[:-2]) / (steps[2:] - steps[:-2]))[:, None]
            line = (1 - share) * table[:-2] + share * table[2:]
            found = np.sort(np.abs(table[1:-1] - line), axis=0)[-4]
        return np.nan_to_num(found, nan=0.0, posinf=0.0)

    def hidden_rounding(self, wrt: Sequence[bool]) -> np.ndarray:
        """What rounding on the way makes of the function's values, where these do not show it.

        Close to zero ``exp(x) - 1`` is as small as ``x``, but a multiple of the rounding error of
        1; differences over steps that are as small find it constant. Farther off it is seen: there
        values scatter by more than their own rounding, but by little beside what the function does
        over longer ways.
        """
        chosen = [x for x, w in zip(self.leaves, wrt, strict=True) if w]

        def evaluate(moved: list) -> np.ndarray:
            parts = iter(moved)
            value = self.value_at(
                [next(parts) if w else x for x, w in zip(self.leaves, wrt, strict=True)]
            )
            return packed([r for r in jax.tree.leaves(value) if is_inexact(r)])

        outward = self._outward(chosen)
        try:
            steps, table = self._beside(evaluate, chosen, outward, self.eps)
        except (Skip, UserError, BrokenContract):
            return np.zeros(())
        far = np.zeros(table.shape[1])
        for step in (1.0, 0.1, 0.01):  # it may raise at the end of its domain
            with suppress(Skip, UserError, BrokenContract):
                away = np.abs(evaluate(_moved(chosen, outward, step)) - table[0])
                far = np.fmax(far, np.where(np.isfinite(away), away, 0.0))
        basis = np.vander((steps - steps.mean()) / np.ptp(steps), 4)  # smooth functions are cubic
        with np.errstate(all="ignore"):
            found = np.max(np.abs(table - basis @ (np.linalg.pinv(basis) @ table)), axis=0)
            hidden = found > 4 * self.eps * np.max(np.abs(table), axis=0)
            return np.where(hidden & (found <= np.sqrt(self.eps) * far), found, 0.0)

    def _outward(self, leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Directions away from zero, so that signs stay, of the operands' scale or 1."""
        found = []
        for x in leaves:
            d = np.maximum(np.max(np.abs(x), initial=1.0), 1.0) * self.fractions(x)
            found.append(d if is_complex(x) else np.where(np.real(x) < 0, -1, 1) * np.abs(d))
        return found

    def _beside(
        self,
        evaluate: Callable[[list], np.ndarray],
        leaves: Sequence[np.ndarray],
        directions: Sequence[np.ndarray],
        eps: float,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Steps of some roots of epsilon, uneven since even ones may round alike, and values."""
        steps = np.sqrt(eps) * (np.arange(13) + 0.2 + 0.5 * self.rng.random(13))
        return steps, np.stack([evaluate(_moved(leaves, directions, step)) for step in steps])

    def blind(self) -> bool:
        """Whether the function answers 64-bit operands in single precision.

        Moved by 1e-10 of itself an operand moves the result, unless the function does not see so
        small a change; it does see one of 1e-6.
        """
        wrt = self.subject.differentiable(self.args)
        if not any(wrt) or self.eps > 1e-10 or not self.results:
            return False
        signs = [np.sign(np.real(self.fractions(x))) for x in self.leaves]

        def moved(by: float) -> np.ndarray:
            leaves = [
                np.asarray(x * (1 + by * s), x.dtype) if keep else x
                for x, s, keep in zip(self.leaves, signs, wrt, strict=True)
            ]
            found = packed([r for r in jax.tree.leaves(self.value_at(leaves)) if is_inexact(r)])
            return np.abs(found - packed(self.results))

        size = np.abs(packed(self.results))
        with np.errstate(all="ignore"):
            fine = np.max([moved(by) for by in (1e-10, -1e-10, 3e-10, -3e-10)], axis=0)
            less, more = (np.array([moved(by), moved(-by)]) for by in (1e-6, 3e-6))
            seen = (less > 1e-9 * size) & (more > 2 * less) & (more < 5 * less)  # in proportion
            # what one sees of 1e-10 must stand out of the rounding of what is added up on the way
            largest = max(magnitude(self.results), magnitude(self.args))
            seen &= 1e-4 * less > ROUNDING * self.eps * largest
            return bool(np.any((fine == 0) & np.all(seen, axis=0)))

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


def _moved(
    leaves: Sequence[np.ndarray], directions: Sequence[np.ndarray], step: float
) -> list[np.ndarray]:
    return [
        np.asarray(x + step * d, x.dtype) if is_inexact(x) else x
        for x, d in zip(leaves, directions, strict=True)
    ]


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


def packed(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """One real vector (of doubles) from arrays; complex numbers become pairs."""
    parts = [
        np.ascontiguousarray(a, complex).reshape(-1).view(float)
        if is_complex(a)
        else np.asarray(a, float).reshape(-1)
        for a in arrays
    ]
    return np.concatenate(parts) if parts else np.zeros(0)


def packed_together(values: np.ndarray, like: Sequence[np.ndarray]) -> np.ndarray:
    """The larger value of each complex number's two."""
    found, start = values.copy(), 0
    for a in like:
        count = a.size * (2 if is_complex(a) else 1)
        if is_complex(a):
            pairs = values[start : start + count].reshape(-1, 2)
            found[start : start + count] = np.repeat(np.max(pairs, axis=1), 2)
        start += count
    return found


def unpacked(vector: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    found, start = [], 0
    for a in like:
        count = a.size * (2 if is_complex(a) else 1)
        part = vector[start : start + count]
        start += count
        if is_complex(a):
            part = np.ascontiguousarray(part).view(complex)
        found.append(part.astype(a.dtype).reshape(a.shape))
    return found


def conjugation(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The signs that conjugation gives to packed arrays: -1 for imaginary parts."""
    return packed([np.full(a.shape, 1 - 1j) if is_complex(a) else np.ones(a.shape) for a in arrays])


def real_rows(case: Case, wrt: tuple[bool, ...]) -> np.ndarray:
    """The Jacobian over the real numbers that Jᵀ w stands for, row by row.

    ``Re(w J v)`` with w = 1 is the real part of J v, with w = i minus its imaginary part; and so
    for the operand.
    """
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    signs = conjugation(case.results)
    rows = [case.pulled(wrt, unpacked(u, case.results)) for u in np.eye(len(signs))]
    return signs[:, None] * np.stack([packed(row) for row in rows]) * conjugation(chosen)


def _shown(arg: Any) -> str:
    if isinstance(arg, np.ndarray):
        return array_text(arg)
    if isinstance(arg, dict):
        return "{" + ", ".join(f"{k!r}: {_shown(v)}" for k, v in arg.items()) + "}"
    if isinstance(arg, (tuple, list)) and not hasattr(arg, "_fields"):
        inner = ", ".join(map(_shown, arg))
        return f"[{inner}]" if isinstance(arg, list) else f"({inner}{',' * (len(arg) == 1)})"
    return repr(numpy_tree(arg))
