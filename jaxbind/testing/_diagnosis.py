"""What is wrong with a rule: small Jacobians, the wanted and the given one, compared.

With W the Jacobian and G what the rule makes of it, both as matrices (one block of columns per
argument) at a few points, each function below recognises one mistake by what G is of W. A
diagnosis must hold at every point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from jaxbind._roles import GENERAL, LINEAR
from jaxbind._rules import Jacobians, Partials
from jaxbind.testing import _mapping
from jaxbind.testing._case import Case, unpacked
from jaxbind.testing._compare import difference, is_complex, is_inexact, number
from jaxbind.testing._violation import Diagnosis, LawViolation

#: how many elements a Jacobian may have
LARGEST = 400
#: how many points are looked at
POINTS = 4


def find(law: str, violation: LawViolation, cases: Sequence[Case]) -> Diagnosis | None:
    """The most likely mistake, or ``None``. Never raises."""
    try:
        return _find(law, violation, cases)
    except Exception:  # it must not hide the violation that it explains
        return None


def _find(law: str, violation: LawViolation, cases: Sequence[Case]) -> Diagnosis | None:
    detail: dict[str, Any] = violation.detail  # pyright: ignore[reportAttributeAccessIssue]
    if detail.get("stale"):
        return Diagnosis(
            "stale",
            "Part of the result is never written and shows what was in the memory before: fill all of"
            " `out` (or of what np.empty gave), whatever the operands are.",
        )
    if detail.get("repeated"):
        return _previous_result(cases[0])
    if detail.get("single"):
        return _single_precision("The function")
    if detail.get("loop"):
        return _loop_axis(detail, cases)
    if law == "jvp_linear" and _constant(cases):
        return Diagnosis(
            "output_returned",
            "def_jvp returns the function's own value, whatever the tangent is; it must return the"
            " derivative times the tangent.",
        )
    if "matrix" not in detail or law == "jvp_linear":
        return None
    inner = [c for c in (_inner(case, detail) for case in cases) if c is not None]
    points = list(_points(inner, detail))
    if not points:
        return None
    rule = _rule_name(cases[0], detail)
    for recognise in MISTAKES:
        text = recognise(points, rule)
        if text is not None:
            return Diagnosis(recognise.__name__.strip("_"), text)
    return None


def _single_precision(what: str) -> Diagnosis:
    return Diagnosis(
        "single_precision",
        f"{what} computes in single precision (float32) although its operands have 64 bits: look for"
        " astype, dtype=, np.float32 or a compiled routine for float. If it only knows that, say"
        " compute_dtype='float32'.",
    )


# Faults of state and of loops ---------------------------------------------------------------------


def _previous_result(case: Case) -> Diagnosis | None:
    value = case.subject.value
    for other in [*_mapping.variants(case, 3)[1:], _mapping.scaled(case, 0.5)]:
        before = value(other, case.static)
        got = value(case.args, case.static)
        again = value(case.args, case.static)
        if difference(got, before, 1e-12) is None and difference(again, before, 1e-12):
            return Diagnosis(
                "stale",
                "The function returns the result of the call before: a buffer is filled after it was"
                " returned, or kept from one call to the next.",
            )
    return None


def _loop_axis(detail: dict[str, Any], cases: Sequence[Case]) -> Diagnosis | None:
    """Whether a row of the result depends on the operands of another row."""
    for case in cases:
        for target in ("f", "jvp", "vjp"):
            operation = _mapping._operation(case, target)
            if operation is None or detail.get("target", target) != target:
                continue
            mapped = case.subject.compiled(
                ("rows", operation.key), lambda operation=operation: jax.vmap(operation.function)
            )
            row = operation.rows[0]
            others = [
                [np.asarray(x * by, x.dtype) if is_inexact(x) else x for x in row] for by in (0.5, 1.75)
            ]
            try:
                first, second = (
                    [np.asarray(r)[0] for r in mapped([np.stack(p) for p in zip(row, o, strict=True)])]
                    for o in others
                )
            except Exception:
                continue
            if difference(first, second, 1e-9):
                name = {"f": "The function", "jvp": "The rule for J v", "vjp": "The rule for Jᵀ w"}
                return Diagnosis(
                    "loop_axis",
                    f"{name[target]} mixes the loop dimensions: what it gives for one element of a"
                    " batch depends on the others. It is declared vectorized=True, so give its sums,"
                    " means, norms and sorts the core axes (axis=-1, keepdims=True), or bind it"
                    " without vectorized=True.",
                )
    return None


def _constant(cases: Sequence[Case]) -> bool:
    """Whether the pushforward is the function's value, for any tangent."""
    for case in cases[:3]:
        wrt = case.subject.available("jvp", case.args, case.static)
        found = case.pushed(wrt, case.directions(wrt))
        if difference(found, case.results, 1e-9):
            return False
    return True


# Jacobians ----------------------------------------------------------------------------------------


@dataclass
class Point:
    """The Jacobians at one point.

    Attributes:
      wanted, given: blocks of columns, one per differentiated leaf, ``(m, n_i)``.
      at: the Jacobian's blocks at other operands (by differences).
    """

    case: Case
    wrt: tuple[bool, ...]
    matrix: str
    wanted: list[np.ndarray]
    given: list[np.ndarray]

    @property
    def leaves(self) -> list[np.ndarray]:
        return [x for x, keep in zip(self.case.leaves, self.wrt, strict=True) if keep]

    @property
    def value(self) -> np.ndarray:
        return np.concatenate([r.reshape(-1) for r in self.case.results])

    def names(self) -> list[str]:
        chosen = [p for p, keep in zip(self.case.owners, self.wrt, strict=True) if keep]
        return [self.case.subject.parameter(p) for p in chosen]


def _inner(case: Case, detail: dict[str, Any]) -> Case | None:
    """The case that the matrices belong to: of a derivative, for `higher`."""
    make = detail.get("inner")
    return case if make is None else make(case)


def _points(cases: Sequence[Case], detail: dict[str, Any]) -> Iterator[Point]:
    """Points at which the fault shows, the most telling first, then points beside them."""

    def telling(case: Case) -> tuple:
        values = np.concatenate([np.abs(x).reshape(-1) for x in case.leaves if is_inexact(x)] or [[]])
        return len(set(np.round(values[values > 0], 6).tolist())), -values.size

    chosen = sorted(cases, key=telling, reverse=True)
    found = 0
    beside = [_moved(case, by) for case in chosen[:2] for by in (0, 1)]
    for case in [*chosen[: 2 * POINTS], *beside]:
        try:
            point = _point(case, detail)
        except Exception:
            continue
        if point is not None:
            found += 1
            yield point
        if found == POINTS:
            return


def _moved(case: Case, seed: int) -> Case:
    rng = np.random.default_rng(seed)
    leaves = [
        np.asarray(x * (1 + 0.3 * (rng.random(x.shape) - 0.5)), x.dtype) if is_inexact(x) else x
        for x in case.leaves
    ]
    args = jax.tree.unflatten(jax.tree.structure(case.args), leaves)
    return Case(case.subject, args, case.static, seed=seed)


def _point(case: Case, detail: dict[str, Any]) -> Point | None:
    matrix = detail["matrix"]
    mode = "jvp" if matrix == "jvp" else "vjp"
    wrt = case.subject.available(mode, case.args, case.static)
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    columns = sum(x.size for x in chosen)
    rows = sum(r.size for r in case.results)
    if not columns or not rows or columns * rows > LARGEST:
        return None
    if not all(np.all(np.isfinite(r)) for r in case.results):
        return None
    if any(map(is_complex, chosen)) and not all(map(is_complex, case.results)):
        return None  # linear over the real numbers only
    if matrix == "jvp" or case.subject.missing("jvp", case.args, case.static, wrt) is not None:
        wanted = _by_differences(case, wrt)
    else:
        wanted = _by_columns(case, wrt)
    given = _by_columns(case, wrt) if matrix == "jvp" else _by_rows(case, wrt)
    if wanted is None or not all(np.all(np.isfinite(b)) for b in [*wanted, *given]):
        return None
    point = Point(case, wrt, matrix, wanted, given)
    return None if _close(_all(given), _all(wanted), 1e-11) else point


def _basis(chosen: Sequence[np.ndarray]) -> Iterator[tuple[int, list[np.ndarray]]]:
    for i, x in enumerate(chosen):
        for j in range(x.size):
            unit = [np.zeros_like(y) for y in chosen]
            unit[i].reshape(-1)[j] = 1
            yield i, unit


def _flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(a).reshape(-1) for a in arrays])


def _by_columns(case: Case, wrt: tuple[bool, ...]) -> list[np.ndarray]:
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    blocks: list[list[np.ndarray]] = [[] for _ in chosen]
    for i, unit in _basis(chosen):
        blocks[i].append(_flat(case.pushed(wrt, unit)))
    return [np.stack(b, -1) if b else np.zeros((len(_flat(case.results)), 0)) for b in blocks]


def _by_rows(case: Case, wrt: tuple[bool, ...]) -> list[np.ndarray]:
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    rows: list[list[np.ndarray]] = [[] for _ in chosen]
    for _, unit in _basis(case.results):
        pulled = case.pulled(wrt, unit)
        if any(map(is_complex, unit)) and not all(map(is_complex, chosen)):
            # of real operands JAX's transpose keeps the real part: Re(row), then Re(i row)
            turned = case.pulled(wrt, [1j * u if is_complex(u) else u for u in unit])
            pulled = [p if is_complex(p) else p - 1j * t for p, t in zip(pulled, turned, strict=True)]
        for block, p in zip(rows, pulled, strict=True):
            block.append(np.asarray(p).reshape(-1))
    return [np.stack(b) for b in rows]


def _by_differences(
    case: Case, wrt: tuple[bool, ...], leaves: Sequence[np.ndarray] | None = None
) -> list[np.ndarray] | None:
    """The Jacobian's blocks by differences; ``None`` where they cannot be trusted."""
    if leaves is not None:
        rest = iter(leaves)
        full = [next(rest) if keep else x for x, keep in zip(case.leaves, wrt, strict=True)]
        args = jax.tree.unflatten(jax.tree.structure(case.args), full)
        case = Case(case.subject, args, case.static)
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    blocks: list[list[np.ndarray]] = [[] for _ in chosen]
    for i, unit in _basis(chosen):
        size = max(1.0, float(np.max(np.abs(chosen[i]))))
        estimate = case.numerical(wrt, [u * size for u in unit])
        if not np.all(estimate.known) or np.any(estimate.jump > 1e-4 * (1 + np.abs(estimate.value))):
            return None
        column = unpacked(estimate.value / size, [r.astype(complex if is_complex(r) else float) for r in case.results])
        blocks[i].append(_flat(column))
    return [np.stack(b, -1) if b else np.zeros((len(_flat(case.results)), 0)) for b in blocks]


def _all(blocks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(blocks, -1)


def _close(a: Any, b: Any, rtol: float = 1e-5) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    scale = max(np.max(np.abs(a), initial=0.0), np.max(np.abs(b), initial=0.0))
    return bool(np.all(np.abs(a - b) <= rtol * scale))


def _zero(a: np.ndarray, of: np.ndarray) -> bool:
    return bool(np.max(np.abs(a), initial=0.0) <= 1e-8 * max(1e-300, float(np.max(np.abs(of), initial=0.0))))


def _rule_name(case: Case, detail: dict[str, Any]) -> str:
    """How the user declared the rule."""
    if "inner" in detail:
        return f"The rule of {case.subject.label}.{detail['order']} for its {detail['matrix']}"
    binding = case.subject.binding
    assert binding is not None
    wrt = detail.get("wrt") or ()
    kinds = {case.subject.kind(p) for p, keep in zip(case.owners, wrt, strict=True) if keep}
    if detail["matrix"] == "jvp":
        traced = getattr(binding.definition.rules.get("jvp"), "traced", None)
        if isinstance(traced, Partials):
            return "def_partials"
        return "def_jacobian" if isinstance(traced, Jacobians) else "def_jvp"
    if kinds == {LINEAR}:
        return "def_transpose"
    if GENERAL not in kinds and len(kinds) == 1:
        return f"def_transpose({case.subject.parameter(kinds.pop())!r})"
    return "def_vjp" if GENERAL in kinds else "def_transpose"


# Mistakes -----------------------------------------------------------------------------------------

Recogniser = Callable[[Sequence[Point], str], str | None]


def single_precision(points: Sequence[Point], rule: str) -> str | None:
    if any(p.case.eps > 1e-10 for p in points):
        return None
    gaps = [
        np.max(np.abs(_all(p.given) - _all(p.wanted))) / np.max(np.abs(_all(p.wanted)), initial=1e-300)
        for p in points
    ]
    if all(1e-10 < gap < 3e-6 for gap in gaps) and min(gaps) < 2e-7:
        return _single_precision(rule).text
    return None


def conjugate(points: Sequence[Point], rule: str) -> str | None:
    if not any(np.any(np.imag(_all(p.wanted))) for p in points):
        return None
    if not all(_close(_all(p.given), np.conj(_all(p.wanted))) for p in points):
        return None
    if points[0].matrix == "jvp":
        return f"{rule} gives the complex conjugate of the derivative: remove a conj (or add one)."
    return (
        f"{rule} returns the adjoint (conjugate transpose) Jᴴ; JAX wants the transpose Jᵀ.\n"
        "Write conj(adjoint(conj(cotangent))), or simply transpose without conjugating."
    )


def factor(points: Sequence[Point], rule: str) -> str | None:
    for blocks, where in _choices(points):
        ratios = [_ratio(_all(g), _all(w)) for g, w in blocks]
        if any(r is None or abs(r - 1) < 1e-9 for r in ratios):
            continue
        named = _named_factor([r for r in ratios if r is not None], points)
        if named:
            return f"{rule} gives {named} times what it should{where}."
    return None


def _choices(points: Sequence[Point]) -> Iterator[tuple[list[tuple[list, list]], str]]:
    """All blocks together; then each alone, where the others are right."""
    yield [(p.given, p.wanted) for p in points], ""
    count = len(points[0].given)
    for i in range(count if count > 1 else 0):
        others = [j for j in range(count) if j != i]
        if all(_close(p.given[j], p.wanted[j], 1e-6) for p in points for j in others):
            yield [([p.given[i]], [p.wanted[i]]) for p in points], f", for {points[0].names()[i]}"


def _ratio(given: np.ndarray, wanted: np.ndarray) -> complex | None:
    """c with ``given = c * wanted``."""
    size = np.vdot(wanted, wanted)
    if abs(size) == 0:
        return None
    c = complex(np.vdot(wanted, given) / size)
    return c if _close(given, c * wanted, 1e-6) and abs(c) > 1e-9 else None


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
            return number(first)
        for value, name in names.items():
            if abs(first.real - value) < 1e-5 * abs(value):
                return name
        exact = Fraction(first.real).limit_denominator(64)
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
    count = len(points[0].given)
    for i in range(count):
        for j in range(i):
            if all(
                p.given[i].shape == p.given[j].shape
                and _close(p.given[i], p.wanted[j])
                and _close(p.given[j], p.wanted[i])
                for p in points
            ):
                names = points[0].names()
                what = "cotangents" if points[0].matrix == "vjp" else "derivatives"
                return f"{rule} gives the {what} of {names[j]} and {names[i]} in the wrong order."
    return None


def transposed(points: Sequence[Point], rule: str) -> str | None:
    if all(p.given[0].shape == (1, 1) for p in points):
        return None
    for turn, what in (
        (lambda p, g: [b.T if b.shape[0] == b.shape[1] else None for b in g], "the Jacobian"),
        (_operands_turned, "its matrix argument"),
        (_results_turned, "its matrix result"),
    ):
        if all(_turned_matches(p, turn(p, p.given)) for p in points) and not all(
            _turned_matches(p, p.given) for p in points
        ):
            return f"{rule} has {what} transposed: it needs a .T (or has one too many)."
    return None


def _turned_matches(point: Point, turned: Sequence[Any]) -> bool:
    return all(
        t is not None and (_close(t, w) or _close(g, w))
        for t, g, w in zip(turned, point.given, point.wanted, strict=True)
    ) and any(
        t is not None and _close(t, w) for t, w in zip(turned, point.wanted, strict=True)
    )


def _operands_turned(point: Point, blocks: Sequence[np.ndarray]) -> list[Any]:
    found = []
    for block, x in zip(blocks, point.leaves, strict=True):
        square = x.ndim >= 2 and x.shape[-1] == x.shape[-2]
        wide = block.reshape(block.shape[0], *x.shape)
        found.append(np.swapaxes(wide, -1, -2).reshape(block.shape) if square else block)
    return found


def _results_turned(point: Point, blocks: Sequence[np.ndarray]) -> list[Any]:
    results = point.case.results
    if len(results) != 1 or results[0].ndim < 2 or len(set(results[0].shape[-2:])) != 1:
        return [None for _ in blocks]
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
            if g.shape[0] == g.shape[1] and _close(g, np.diag(value)):
                return True
            if g.shape[1] and all(_close(g[:, j], value) for j in range(g.shape[1])):
                return True
            if g.shape[1] == len(value) and all(_close(row, value) for row in g):
                return True
        return False

    if any(np.max(np.abs(p.value), initial=0) == 0 for p in points):
        return None
    if all(map(is_output, points)):
        return f"{rule} gives the function's own value in place of its derivative."
    return None


def missing_term(points: Sequence[Point], rule: str) -> str | None:
    names = points[0].names()
    for i, name in enumerate(names):
        if all(_zero(p.given[i], p.wanted[i]) and not _zero(p.wanted[i], p.given[i]) for p in points):
            return f"{rule} lacks the term of {name}: what it gives for it is zero."
    for i, name in enumerate(names):
        if all(_lacks_a_factor(p, i) for p in points):
            return f"{rule} lacks a term of the product rule in {name}: one factor is differentiated, the other is not."
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
            f"{rule} lacks a term: the derivative of what all elements share (a sum, mean or norm by"
            " which they are divided, or that is subtracted)."
        )
    if all(_partly_right(p) for p in points):
        return f"{rule} lacks a term: some elements of the Jacobian are right, and the others zero."
    return None


def _lacks_a_factor(p: Point, i: int) -> bool:
    """With ``f = x g(x)`` elementwise, ``f' = g + x g'``: only one of the two is there."""
    x, g, w = p.leaves[i].reshape(-1), p.given[i], p.wanted[i]
    if g.shape[0] != g.shape[1] or len(x) != g.shape[0] or np.any(x == 0):
        return False
    if not all(_close(p.given[j], p.wanted[j]) for j in range(len(p.given)) if j != i):
        return False
    quotient = np.diag(p.value / x)
    return _close(g, quotient) or _close(w - g, quotient)


def _along_operand(p: Point) -> float | None:
    """``(G x) / (W x)``: of a product of k factors in x with a term missing, a fraction."""
    x = _flat(p.leaves)
    given, wanted = _all(p.given) @ x, _all(p.wanted) @ x
    ratio = _ratio(given[:, None], wanted[:, None])
    if ratio is None or abs(ratio.imag) > 1e-9:
        return None
    return ratio.real


def _lacks_rank_one(p: Point) -> bool:
    gap = _all(p.wanted) - _all(p.given)
    given = _all(p.given)
    if min(gap.shape) < 2 or gap.shape[0] != gap.shape[1]:
        return gap.shape[0] != 1 or len(p.given) == 1
    off = given - np.diag(np.diag(given))
    singular = np.linalg.svd(gap, compute_uv=False)
    return bool(_zero(off, given) and not _zero(given, gap) and singular[1] <= 1e-5 * singular[0])


def _partly_right(p: Point) -> bool:
    given, wanted = _all(p.given), _all(p.wanted)
    scale = np.max(np.abs(wanted))
    right = np.abs(given - wanted) <= 1e-6 * scale
    gone = (np.abs(given) <= 1e-9 * scale) & ~right
    solid = right & (np.abs(wanted) > 1e-6 * scale)
    return bool(np.all(right | gone) and np.any(gone) and np.any(solid))


def wrong_point(points: Sequence[Point], rule: str) -> str | None:
    for name, move in _MOVES.items():
        if all(_jacobian_is(p, move) for p in points):
            return f"{rule} takes the derivative at the wrong point: at {name} in place of x."
    return None


def _jacobian_is(p: Point, move: Callable) -> bool:
    moved = move(p)
    if moved is None:
        return False
    moved = [np.asarray(m, x.dtype).reshape(x.shape) for m, x in zip(moved, p.leaves, strict=True)]
    if all(map(np.array_equal, moved, p.leaves)):
        return False
    there = _by_differences(p.case, p.wrt, moved)
    return there is not None and _close(_all(there), _all(p.given))


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
    conjugate,
    swapped,
    factor,
    transposed,
    output_returned,
    wrong_point,
    missing_term,
)

