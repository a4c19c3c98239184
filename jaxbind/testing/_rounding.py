"""What rounding does to a function's values, where it is not seen in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxbind.testing._case import Case
from jaxbind.testing._compare import ROUNDING, eps_of, is_complex, is_inexact, magnitude
from jaxbind.testing._numerical import RATIO
from jaxbind.testing._packing import packed
from jaxbind.testing._subject import BrokenContract, UserError
from jaxbind.testing._violation import Skip


def nudged(
    case: Case,
    wrt: Sequence[bool],
    count: int = 3,
    leaves: Sequence[np.ndarray] | None = None,
    ulps: int = 2,
) -> list[list[np.ndarray]]:
    """Operands moved by a few units in the last place: what rounding alone may do.

    Args:
      wrt: which of them.
      leaves: default: those of the arguments.
      ulps: how far, relative to the operand.
    """
    leaves = case.leaves if leaves is None else leaves

    def moved(x: np.ndarray) -> np.ndarray:
        signs = case.rng.choice([-1, 1], x.shape)
        return np.asarray(x * (1 + ulps * eps_of(x.dtype) * signs), x.dtype)

    return [[moved(x) if w else x for x, w in zip(leaves, wrt, strict=True)] for _ in range(count)]


def sensitivity(case: Case, evaluate: Callable[[list], np.ndarray], wrt: Sequence[bool]) -> Any:
    """How far rounding the operands moves the (flat) result of ``evaluate``."""
    middle = evaluate(case.leaves)
    moved = []
    for leaves in nudged(case, wrt):
        with np.errstate(all="ignore"), suppress(Skip, UserError, BrokenContract):
            moved.append(np.abs(evaluate(leaves) - middle))
    if not moved:  # it raises on both sides
        return np.zeros(middle.shape)
    return np.max(np.nan_to_num(moved, nan=np.inf), axis=0, initial=0.0)


def scatter(
    case: Case, evaluate: Callable[[list], np.ndarray], leaves: Sequence[np.ndarray], eps: float
) -> np.ndarray:
    """How far rounding on the way scatters what ``evaluate`` gives close to ``leaves``.

    Operands that are small beside constants of the function do not show it when they are moved
    by rounding errors of their own. How far results are from the line between their two
    neighbours leaves out what is smooth (Moré and Wild 2011); the three largest may be due to a
    jump.
    """
    try:
        steps, table = _beside(case, evaluate, leaves, _outward(case, leaves), eps)
    except (Skip, UserError, BrokenContract):  # at the end of its domain it raises
        return np.zeros(())
    with np.errstate(all="ignore"):
        share = ((steps[1:-1] - steps[:-2]) / (steps[2:] - steps[:-2]))[:, None]
        line = (1 - share) * table[:-2] + share * table[2:]
        found = np.sort(np.abs(table[1:-1] - line), axis=0)[-4]
    return np.nan_to_num(found, nan=0.0, posinf=0.0)


def hidden_rounding(case: Case, wrt: Sequence[bool]) -> np.ndarray:
    """What rounding on the way makes of the function's values, where these do not show it.

    Close to zero ``exp(x) - 1`` is as small as ``x``, but a multiple of the rounding error of
    1; differences over steps that are as small find it constant. A little farther off values
    scatter by more than their own rounding. That may be the shape of a function such as ``sqrt``,
    too; but rounding is as large over shorter ways, and it is as large as numbers of the function's
    size have it, or is still there farther from zero.
    """
    chosen = [x for x, w in zip(case.leaves, wrt, strict=True) if w]
    evaluate = partial(_differentiable_part, case, wrt)
    outward = _outward(case, chosen)

    def scattered(away: float, part: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        start = _moved(chosen, outward, away)
        steps, table = _beside(case, evaluate, start, outward, case.eps * part**2)
        basis = np.vander((steps - steps.mean()) / np.ptp(steps), 4)  # if smooth, it is cubic
        off = np.max(np.abs(table - basis @ (np.linalg.pinv(basis) @ table)), axis=0)
        return off, np.max(np.abs(table), axis=0)

    with np.errstate(all="ignore"):
        try:
            found, size = scattered(0.0)
            nearer, _ = scattered(0.0, 0.25)
        except (Skip, UserError, BrokenContract):
            return np.zeros(())
        farther, largest = np.zeros_like(found), size
        for away in (max(1e-3, 150 * np.sqrt(case.eps)), 1.0):
            with suppress(Skip, UserError, BrokenContract):  # at the end of its domain
                off, far = scattered(away)
                farther = np.fmax(farther, off if away < 1 else 0.0)
                largest = np.fmax(largest, np.where(np.isfinite(far), far, 0.0))
        rounding = (found <= 8 * case.eps * largest) | (found <= 8 * farther)
        rounding &= (found > 4 * case.eps * size) & (nearer > found / 6)
        return np.where(rounding, np.fmin(found, nearer), 0.0)


def _differentiable_part(case: Case, wrt: Sequence[bool], moved: Sequence[Any]) -> np.ndarray:
    """The results that have a derivative, packed, with other leaves for some of the arguments."""
    parts = iter(moved)
    leaves = [next(parts) if w else x for x, w in zip(case.leaves, wrt, strict=True)]
    return packed([r for r in jax.tree.leaves(case.value_at(leaves)) if is_inexact(r)])


def _outward(case: Case, leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Directions away from zero, so that signs stay, of the operands' scale or 1."""
    found = []
    for x in leaves:
        d = np.maximum(np.max(np.abs(x), initial=1.0), 1.0) * case.fractions(x)
        found.append(d if is_complex(x) else np.where(np.real(x) < 0, -1, 1) * np.abs(d))
    return found


def _beside(
    case: Case,
    evaluate: Callable[[list], np.ndarray],
    leaves: Sequence[np.ndarray],
    directions: Sequence[np.ndarray],
    eps: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Steps of some roots of epsilon, uneven since even ones may round alike, and values."""
    steps = np.sqrt(eps) * (np.arange(13) + 0.2 + 0.5 * case.rng.random(13))
    return steps, np.stack([evaluate(_moved(leaves, directions, step)) for step in steps])


#: of the far values of a function, how large the steps of a rounded one are at most; and how far
#: that is, absolutely and in units of the operands
_QUANTUM, _FAR, _TIMES = 3e-7, 1e6, 1e5
#: for how many elements they are looked for
_MOST_ELEMENTS = 32


def quantum(
    case: Case, wrt: Sequence[bool], v: Sequence[np.ndarray], elements: Sequence[int]
) -> np.ndarray:
    """The step in which rounding on the way lets some elements of the results change along ``v``.

    ``log(1 + exp(x))`` far below zero, or ``c**2 * (gamma - 1)`` of small velocities, have one
    value over a long way, and then the next one, as far off as the rounding of 1 makes them.
    It is looked for where that way ends, farther than differences go; there a function with a
    straight piece, such as a clipped one, goes on without a step. Zero where there is none.
    """
    chosen = [x for x, w in zip(case.leaves, wrt, strict=True) if w]
    middle = packed(case.results)
    found = np.zeros(middle.shape)

    def change(t: float) -> np.ndarray:
        try:
            return _differentiable_part(case, wrt, _moved(chosen, v, t)) - middle
        except (Skip, UserError, BrokenContract):  # at the end of its domain it raises
            return np.full(middle.shape, np.nan)

    far = max(_FAR, _TIMES * min(magnitude(chosen), 1e300))
    longest = min(far / max(magnitude(list(v)), 1e-290), 1e300)
    finest = max(64 * case.eps, 0.25 * RATIO**-14)
    count = int(np.log(longest / finest) / np.log(RATIO)) + 1
    for sign in (1, -1):
        steps = sign * np.geomspace(finest, longest, count)
        with np.errstate(all="ignore"):
            table = np.stack([change(t) for t in steps])
            for i in elements[:_MOST_ELEMENTS]:
                moves = np.flatnonzero(table[:, i] != 0)
                if moves.size == 0 or moves[0] < 3:
                    continue
                bracket = steps[moves[0] - 1 : moves[0] + 1]
                step, place = _first_step(lambda t, i=i: change(t)[i], *bracket)
                beside = [change(place * factor)[i] for factor in np.geomspace(1.01, RATIO, 8)]
                seen = np.abs(np.append(table[:, i], beside) + middle[i])
                if step <= _QUANTUM * np.max(seen[np.isfinite(seen)], initial=0.0):
                    found[i] = max(found[i], step)
    return found


def _first_step(
    change: Callable[[float], float], still: float, moving: float
) -> tuple[float, float]:
    """By how much a function steps where it first changes, and where; 0 if it slides there."""
    for _ in range(45):
        between = (still + moving) / 2
        if change(between) != 0:  # or it is not finite
            moving = between
        else:
            still = between
    step = abs(change(moving))
    stays = abs(change(moving * (1 + 1e-6))) <= 3 * step  # False for NaN
    return (step if stays else 0.0), moving


def blind(case: Case) -> bool:
    """Whether the function answers 64-bit operands in single precision.

    Moved by 1e-10 of itself an operand moves the result, unless the function does not see so
    small a change; it does see one of 1e-6. What cancels does not see it either, but does so
    where operands are larger or smaller: single precision is as coarse everywhere.
    """
    wrt = case.subject.differentiable(case.args)
    if not any(wrt) or case.eps > 1e-10 or not case.results:
        return False
    if not _is_blind_at(case, wrt, 1.0):
        return False
    for factor in (64.0, 4096.0, 1 / 64, 1 / 4096):
        with suppress(Skip, UserError, BrokenContract):  # out of its domain it raises
            if _is_blind_at(case, wrt, factor) is False:
                return False
    return True


def _is_blind_at(case: Case, wrt: Sequence[bool], factor: float) -> bool | None:
    """`blind` for one multiple of the operands; ``None`` where nothing can be told."""
    signs = [np.sign(np.real(case.fractions(x))) for x in case.leaves]

    def value(by: float) -> np.ndarray:
        leaves = [
            np.asarray(x * factor * (1 + by * s), x.dtype) if keep else x
            for x, s, keep in zip(case.leaves, signs, wrt, strict=True)
        ]
        return packed([r for r in jax.tree.leaves(case.value_at(leaves)) if is_inexact(r)])

    middle = value(0.0)
    size = np.abs(middle)
    with np.errstate(all="ignore"):
        by = (1e-10, -1e-10, 3e-10, -3e-10)
        fine = np.max([np.abs(value(b) - middle) for b in by], axis=0)
        less, more = (np.abs([value(b) - middle, value(-b) - middle]) for b in (1e-6, 3e-6))
        seen = (less > 1e-9 * size) & (more > 2 * less) & (more < 5 * less)  # in proportion
        # what one sees of 1e-10 must stand out of the rounding of what is added up on the way
        largest = max(np.max(size, initial=0.0), factor * magnitude(case.args))
        seen &= 1e-4 * less > ROUNDING * case.eps * largest
        seen = np.all(seen, axis=0)
        return bool(np.any((fine == 0) & seen)) if np.any(seen) else None


def _moved(
    leaves: Sequence[np.ndarray], directions: Sequence[np.ndarray], step: float
) -> list[np.ndarray]:
    return [
        np.asarray(x + step * d, x.dtype) if is_inexact(x) else x
        for x, d in zip(leaves, directions, strict=True)
    ]
