"""Recognising a mistake by what the given Jacobian G is of the wanted one W.

Each function says what is wrong with a rule, if that explains it at every point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations
from typing import Any

import numpy as np

from jaxbind.testing._compare import number
from jaxbind.testing._jacobians import (
    Point,
    by_differences,
    close,
    flat,
    is_zero,
    is_zero_elsewhere,
    whole,
)
from jaxbind.testing._parts import Part, is_right_elsewhere, parts_of
from jaxbind.testing._violation import Skip

Recogniser = Callable[[Sequence[Point], str], str | None]


def conjugate_text(matrix: str, rule: str) -> str:
    if matrix == "jvp":
        return f"{rule} gives the complex conjugate of the derivative: remove a conj (or add one)."
    return (
        f"{rule} returns the adjoint (conjugate transpose) Jᴴ; JAX wants the transpose Jᵀ.\n"
        "Write conj(adjoint(conj(cotangent))), or simply transpose without conjugating."
    )


def single_precision_text(what: str) -> str:
    return (
        f"{what} computes in single precision (float32) although its operands have 64 bits: look"
        " for astype, dtype=, np.float32 or a compiled routine for float. If it only knows that,"
        " say compute_dtype='float32'."
    )


def single_precision(points: Sequence[Point], rule: str) -> str | None:
    if any(p.case.eps > 1e-10 for p in points):
        return None
    ratios = [_ratio(whole(p.given), whole(p.wanted), 1e-13) for p in points]
    if all(r is not None and abs(r - 1) > 1e-12 and _same(r, ratios[0]) for r in ratios):
        return None  # a constant that is not exact
    gaps = [
        np.max(np.abs(whole(p.given) - whole(p.wanted)))
        / np.max(np.abs(whole(p.wanted)), initial=1e-300)
        for p in points
    ]
    if all(1e-10 < gap < 3e-6 for gap in gaps) and min(gaps) < 2e-7:
        return single_precision_text(rule)
    return None


def factor(points: Sequence[Point], rule: str) -> str | None:
    for part in parts_of(points[0]):
        if not all(is_right_elsewhere(p, part) for p in points):
            continue
        ratios = [_ratio(part.of(p, p.given), part.of(p, p.wanted)) for p in points]
        if any(r is None or abs(r - 1) < 1e-9 for r in ratios):
            continue
        named = _named_factor([r for r in ratios if r is not None], points)
        if named:
            where = part.named(points[0])
            close_to_1 = all(r is not None and abs(r - 1) < 1e-7 for r in ratios)
            why = " (a constant in float32, or of too few digits)" if close_to_1 else ""
            return f"{rule} gives {named} times what it should{where and ', for '}{where}{why}."
    return None


def _same(a: complex, b: complex | None) -> bool:
    return b is not None and abs(a - b) < 1e-12 * abs(a)


def _ratio(given: np.ndarray, wanted: np.ndarray, rtol: float = 1e-6) -> complex | None:
    """c with ``given = c * wanted``."""
    size = np.vdot(wanted, wanted)
    if abs(size) == 0:
        return None
    c = complex(np.vdot(wanted, given) / size)
    return c if close(given, c * wanted, rtol) and abs(c) > 1e-9 else None


def _named_factor(ratios: Sequence[complex], points: Sequence[Point]) -> str | None:
    first = ratios[0]
    if all(abs(r - first) <= 1e-5 * abs(first) for r in ratios):
        names = {
            2 * np.pi: "2π",
            1 / (2 * np.pi): "1/(2π)",
            -2 * np.pi: "-2π",
            np.pi: "π",
            np.sqrt(2 * np.pi): "sqrt(2π)",
            np.sqrt(2): "sqrt(2)",
            1 / np.sqrt(2): "1/sqrt(2)",
        }
        sized = _of_size(ratios, points)
        if sized and len({_sizes(p) for p in points}) > 1:
            return sized
        if abs(first.imag) > 1e-6 * abs(first):
            turned = abs(first.real) < 1e-6 * abs(first)  # another number is no simple mistake
            return number(complex(0, first.imag)) if turned else None
        for value, name in names.items():
            if abs(first.real - value) < 1e-5 * abs(value):
                return name
        exact = Fraction(first.real).limit_denominator(64)
        if abs(first - 1) < 1e-4:
            return f"{first.real:.10g}"
        if abs(float(exact) - first.real) < 1e-6 * abs(first):
            return sized if sized and exact.denominator > 4 else str(exact)
        return sized or f"{first.real:.6g}"
    return _of_size(ratios, points)


def _sizes(point: Point) -> tuple[int, ...]:
    return tuple(n for x in [*point.leaves, *point.case.results] for n in x.shape)


def _of_size(ratios: Sequence[complex], points: Sequence[Point]) -> str | None:
    """A power of a size, at all points."""
    for sign in (1, -1):
        for power, name in ((1, "N"), (-1, "1/N"), (0.5, "sqrt(N)"), (-0.5, "1/sqrt(N)")):
            if all(
                any(n > 1 and abs(r - sign * float(n) ** power) < 1e-5 * abs(r) for n in _counts(p))
                for r, p in zip(ratios, points, strict=True)
            ):
                return f"{'-' if sign < 0 else ''}{name} (N the size of a dimension)"
    return None


def _counts(point: Point) -> set[int]:
    arrays = [*point.leaves, *point.case.results]
    return {n for x in arrays for n in (*x.shape, x.size)}


def swapped(points: Sequence[Point], rule: str) -> str | None:
    pulled = points[0].matrix == "vjp"
    for i, j in combinations(range(len(points[0].given)), 2):
        if all(_exchanged_parts(p, Part(operand=i), Part(operand=j)) for p in points):
            names = points[0].names()
            what = "cotangents" if pulled else "derivatives"
            return f"{rule} gives the {what} of {names[i]} and {names[j]} in the wrong order."
    for i, j in combinations(range(len(points[0].case.results)), 2):
        if all(_exchanged_parts(p, Part(result=i), Part(result=j)) for p in points):
            what = "takes the cotangents" if pulled else "gives the tangents"
            return f"{rule} {what} of result {i} and result {j} in the wrong order."
    return None


def _exchanged_parts(point: Point, one: Part, other: Part) -> bool:
    slack = 1e-12 * float(np.max(np.abs(whole(point.wanted)), initial=0.0))
    return all(
        close(a.of(point, point.given), b.of(point, point.wanted), slack=slack)
        for a, b in ((one, other), (other, one))
    )


def inverted(points: Sequence[Point], rule: str) -> str | None:
    if not all(map(_is_inverse, points)):
        return None
    what, where = (
        ("its transpose", "rotations, orthonormal transforms")
        if points[0].matrix == "vjp"
        else ("the Jacobian itself", "reflections")
    )
    return (
        f"{rule} applies the inverse of the Jacobian in place of {what}: they are the same for"
        f" some matrices ({where}) only."
    )


def _is_inverse(point: Point) -> bool:
    given, wanted = whole(point.given), whole(point.wanted)
    if given.shape[0] != given.shape[1]:
        return False
    turned = given if point.matrix == "jvp" else given.T
    return close(turned @ wanted, np.eye(len(given)))


def transposed(points: Sequence[Point], rule: str) -> str | None:
    for turn, what in (
        (_whole_turned, "the Jacobian"),
        (_operands_turned, "its matrix argument"),
        (_results_turned, "its matrix result"),
    ):
        pairs = [list(zip(turn(p), p.given, p.wanted, strict=True)) for p in points]
        # at each point some block is right when it is turned, and not as it is
        if all(any(close(t, w) and not close(g, w) for t, g, w in pair) for pair in pairs):
            return f"{rule} has {what} transposed: it needs a .T (or has one too many)."
    return None


def _whole_turned(point: Point) -> list[np.ndarray]:
    given = whole(point.given)
    blocks = [b.T if b.shape[0] == b.shape[1] and b.size > 1 else b for b in point.given]
    if len(blocks) > 1 and given.shape[0] == given.shape[1]:
        ends = np.cumsum([b.shape[1] for b in blocks])[:-1]
        if close(given.T, whole(point.wanted)):
            return np.split(given.T, ends, axis=1)
    return blocks


def _operands_turned(point: Point) -> list[np.ndarray]:
    found = []
    for block, x in zip(point.given, point.leaves, strict=True):
        square = x.ndim >= 2 and x.shape[-1] == x.shape[-2]
        wide = block.reshape(block.shape[0], *x.shape)
        found.append(np.swapaxes(wide, -1, -2).reshape(block.shape) if square else block)
    return found


def _results_turned(point: Point) -> list[np.ndarray]:
    blocks = point.given
    results = point.case.results
    if len(results) != 1 or results[0].ndim < 2 or len(set(results[0].shape[-2:])) != 1:
        return list(blocks)
    shape = results[0].shape
    return [
        np.swapaxes(b.reshape(*shape, b.shape[1]), len(shape) - 2, len(shape) - 1).reshape(b.shape)
        for b in blocks
    ]


def output_returned(points: Sequence[Point], rule: str) -> str | None:
    """``f(x) * v`` elementwise, or f(x) whatever v is."""

    def is_output(p: Point) -> bool:
        value = p.value
        for g in p.given:
            if g.shape[0] == g.shape[1] and close(g, np.diag(value)):
                return True
            if g.shape[1] and all(close(g[:, j], value) for j in range(g.shape[1])):
                return True
            if g.shape[1] == len(value) and all(close(row, value) for row in g):
                return True
        return False

    told = [p for p in points if np.max(np.abs(p.value), initial=0) > 0]
    if told and all(map(is_output, told)):
        return f"{rule} gives the function's own value in place of its derivative."
    return None


def missing_term(points: Sequence[Point], rule: str) -> str | None:
    names = points[0].names()
    if not any(np.any(whole(p.given)) for p in points):
        if all(map(is_zero_elsewhere, points)):
            return f"{rule} gives zero, whatever it is given."
        return (
            f"{rule} gives zero at some operands where the derivative is not: look at its"
            " branches (np.where, masks, limits)."
        )
    for i, name in enumerate(names):
        if all(
            is_zero(p.given[i], p.wanted[i]) and not is_zero(p.wanted[i], p.given[i])
            for p in points
        ):
            return f"{rule} lacks the term of {name}: what it gives for it is zero."
    lacking = _lacking(points)
    if lacking is not None:
        named = lacking.named(points[0])
        return f"{rule} lacks the term of {named}: what it gives for it is zero."
    for i, name in enumerate(names):
        if all(_lacks_a_factor(p, i) for p in points):
            return (
                f"{rule} lacks a term of the product rule in {name}: one factor is differentiated,"
                " the other is not."
            )
    ratios = [_along_operand(p) for p in points]
    first = ratios[0]
    if first is not None and 0.05 < first < 0.95:
        if all(r is not None and abs(r - first) < 1e-5 for r in ratios):
            return (
                f"{rule} lacks a term of the product rule: along the operand itself it gives"
                f" {Fraction(first).limit_denominator(12)} of the derivative."
            )
    if all(_lacks_rank_one(p) for p in points):
        return (
            f"{rule} lacks a term: the derivative of what all elements share (a sum, mean or norm"
            " by which they are divided, or that is subtracted)."
        )
    if all(_partly_right(p) for p in points):
        return f"{rule} lacks a term: some elements of the Jacobian are right, and the others zero."
    return None


def _lacking(points: Sequence[Point]) -> Part | None:
    """What is missing of one of several results."""
    for part in parts_of(points[0]):
        if part.result is not None and all(_lacks(p, part) for p in points):
            return part
    return None


def _lacks(point: Point, part: Part) -> bool:
    given, wanted = part.of(point, point.given), part.of(point, point.wanted)
    gone = is_zero(given, wanted) and not is_zero(wanted, whole(point.wanted))
    return gone and is_right_elsewhere(point, part)


def _lacks_a_factor(p: Point, i: int) -> bool:
    """With ``f = x g(x)`` elementwise, ``f' = g + x g'``: only one of the two is there."""
    x, g, w = p.leaves[i].reshape(-1), p.given[i], p.wanted[i]
    if g.shape[0] != g.shape[1] or len(x) != g.shape[0] or np.any(x == 0):
        return False
    if not all(close(p.given[j], p.wanted[j]) for j in range(len(p.given)) if j != i):
        return False
    quotient = np.diag(p.value / x)
    return close(g, quotient) or close(w - g, quotient)


def _along_operand(p: Point) -> float | None:
    """``(G x) / (W x)``: of a product of k factors in x with a term missing, a fraction."""
    x = flat(p.leaves)
    given, wanted = whole(p.given) @ x, whole(p.wanted) @ x
    ratio = _ratio(given[:, None], wanted[:, None])
    if ratio is None or abs(ratio.imag) > 1e-9:
        return None
    return ratio.real


def _lacks_rank_one(p: Point) -> bool:
    gap = whole(p.wanted) - whole(p.given)
    given = whole(p.given)
    if min(gap.shape) < 2 or gap.shape[0] != gap.shape[1]:
        return False
    off = given - np.diag(np.diag(given))
    singular = np.linalg.svd(gap, compute_uv=False)
    return bool(
        is_zero(off, given) and not is_zero(given, gap) and singular[1] <= 1e-5 * singular[0]
    )


def _partly_right(p: Point) -> bool:
    given, wanted = whole(p.given), whole(p.wanted)
    scale = np.max(np.abs(wanted))
    right = np.abs(given - wanted) <= 1e-6 * scale
    gone = (np.abs(given) <= 1e-9 * scale) & ~right
    solid = right & (np.abs(wanted) > 1e-6 * scale)
    return bool(np.all(right | gone) and np.any(gone) and np.any(solid))


def wrong_point(points: Sequence[Point], rule: str) -> str | None:
    if not any(np.any(whole(p.given)) for p in points):
        return None  # zero is no derivative elsewhere, but missing
    if _lacking(points) is not None:
        return None
    for name, move in _MOVES.items():
        known = [found for p in points for found in [_jacobian_is(p, move)] if found is not None]
        if known and all(known):
            return f"{rule} takes the derivative at the wrong point: at {name} in place of x."
    return None


def _jacobian_is(p: Point, move: Callable) -> bool | None:
    """Whether it is that of other operands; ``None`` where that one cannot be told."""
    moved = move(p)
    if moved is None:
        return False
    moved = [np.asarray(m, x.dtype).reshape(x.shape) for m, x in zip(moved, p.leaves, strict=True)]
    if all(map(np.array_equal, moved, p.leaves)):
        return False
    try:
        there = by_differences(p.case, p.wrt, moved)
    except Skip:  # the function raises there
        return False
    if there is None:
        return None
    noise = 1e-10 * np.max(np.abs(whole(p.wanted)), initial=0.0)  # where it is zero by chance
    return close(whole(there), whole(p.given), slack=float(noise))


def _with_value(p: Point) -> Any:
    value = p.case.results
    same = len(value) == 1 and all(value[0].shape == x.shape for x in p.leaves)
    return [value[0] for _ in p.leaves] if same else None


def _exchanged(p: Point) -> Any:
    same = len(p.leaves) == 2 and p.leaves[0].shape == p.leaves[1].shape
    return p.leaves[::-1] if same else None


_MOVES: dict[str, Callable[[Point], Any]] = {
    "f(x)": _with_value,
    "-x": lambda p: [-x for x in p.leaves],
    "2 x": lambda p: [2 * x for x in p.leaves],
    "x / 2": lambda p: [x / 2 for x in p.leaves],
    "x + 1": lambda p: [x + 1 for x in p.leaves],
    "x - 1": lambda p: [x - 1 for x in p.leaves],
    "x**2": lambda p: [x**2 for x in p.leaves],
    "1 / x": lambda p: [1 / x for x in p.leaves],
    "|x|": lambda p: [np.abs(x) for x in p.leaves],
    "0": lambda p: [0 * x for x in p.leaves],
    "1": lambda p: [0 * x + 1 for x in p.leaves],
    "the arguments exchanged": _exchanged,
    "the elements shifted by one": lambda p: [np.roll(x, 1) for x in p.leaves],
    "the elements shifted back by one": lambda p: [np.roll(x, -1) for x in p.leaves],
    "the elements in reverse": lambda p: [x[::-1] if x.ndim else x for x in p.leaves],
    "conj(x)": lambda p: [np.conj(x) for x in p.leaves],
}

MISTAKES: tuple[Recogniser, ...] = (
    single_precision,
    swapped,
    output_returned,
    factor,
    inverted,
    transposed,
    wrong_point,
    missing_term,
)
