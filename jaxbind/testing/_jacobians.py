"""Small Jacobians of a case: the wanted one, and the one that a rule gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxbind.testing._case import Case
from jaxbind.testing._compare import difference, is_complex, is_inexact
from jaxbind.testing._packing import conjugation, packed, unpacked

#: how many elements a Jacobian may have
LARGEST = 400
#: how many points are looked at
POINTS = 4


@dataclass
class Point:
    """The Jacobians at one point.

    Attributes:
      wanted, given: blocks of columns, one per differentiated leaf, ``(m, n_i)``.
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

    def rows(self, result: int) -> slice:
        """Those of one result."""
        ends = np.cumsum([0, *(r.size for r in self.case.results)])
        return slice(int(ends[result]), int(ends[result + 1]))

    def names(self) -> list[str]:
        paths = [path for path, _ in jax.tree_util.tree_flatten_with_path(self.case.args)[0]]
        return [
            self.case.subject.parameter(position) + jax.tree_util.keystr(path[1:])
            for position, path, keep in zip(self.case.owners, paths, self.wrt, strict=True)
            if keep
        ]


def inner_case(case: Case, detail: dict[str, Any]) -> Case:
    """The case that the matrices belong to: of a derivative, for `higher`."""
    make = detail.get("inner")
    return case if make is None else make(case)


def points_of(cases: Sequence[Case], detail: dict[str, Any]) -> Iterator[Point]:
    """Points at which the fault shows, the most telling first, then points beside them."""

    def telling(case: Case) -> tuple:
        floats = [np.abs(x).reshape(-1) for x in case.leaves if is_inexact(x)]
        values = np.concatenate(floats) if floats else np.zeros(0)
        return len(set(np.round(values[values > 0], 6).tolist())), -values.size

    finest = min((case.eps for case in cases), default=0.0)
    chosen = sorted((c for c in cases if c.eps == finest), key=telling, reverse=True)
    seen: list[list[np.ndarray]] = []
    beside = [_moved(case, by) for case in chosen[:2] for by in (0, 1)]
    found = [case for case in cases[:1] if case.eps == finest]  # the one that is told
    for case in [*found, *chosen[: 3 * POINTS], *beside]:
        if any(difference(case.leaves, old, 0.0) is None for old in seen):
            continue
        try:
            point = _point(case, detail)
        except Exception:
            continue
        if point is not None:
            seen.append(case.leaves)
            yield point
        if len(seen) == POINTS:
            return


def _moved(case: Case, seed: int, factor: float = 1.0, zero: float = 0.0) -> Case:
    """The operands times about that factor; ``zero`` in place of what is zero."""
    rng = np.random.default_rng(seed)

    def moved(x: np.ndarray) -> np.ndarray:
        spread = rng.uniform(0.85, 1.15, x.shape)
        return np.asarray(np.where(x == 0, zero, x * factor) * spread, x.dtype)

    leaves = [moved(x) if is_inexact(x) else x for x in case.leaves]
    return Case(case.subject, case.rebuilt(leaves), case.static, seed=seed)


def is_zero_elsewhere(point: Point) -> bool:
    """Whether the rule gives zero at other operands as well, where it does not raise."""
    for seed, factor in enumerate((-1.0, 0.1, 0.5, 3.0, -20.0)):
        case = _moved(point.case, seed, factor, zero=factor)
        try:
            given = (_by_columns if point.matrix == "jvp" else _by_rows)(case, point.wrt)
        except Exception:
            continue
        if any(np.any(block) for block in given):
            return False
    return True


def _point(case: Case, detail: dict[str, Any]) -> Point | None:
    """The Jacobians at a point where they differ and can be told."""
    point = _both(case, detail)
    right = point is None or close(whole(point.given), whole(point.wanted), 1e-11)
    return None if right else point


def is_right(case: Case, detail: dict[str, Any]) -> bool:
    """Whether the rule gives the wanted Jacobian, as far as differences tell, and not zero."""
    point = _both(case, detail)
    if point is None:
        return False
    return bool(np.any(whole(point.given))) and close(whole(point.given), whole(point.wanted), 1e-6)


def _both(case: Case, detail: dict[str, Any]) -> Point | None:
    matrix = detail["matrix"]
    wrt = case.subject.available(matrix, case.args, case.static)
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    columns = sum(x.size for x in chosen)
    rows = sum(r.size for r in case.results)
    if not columns or not rows or columns * rows > LARGEST:
        return None
    if not all(np.all(np.isfinite(r)) for r in case.results):
        return None
    if any(map(is_complex, chosen)) and not all(map(is_complex, case.results)):
        return None  # linear over the real numbers only
    if matrix != "jvp" and any(map(is_complex, chosen)) and not complex_linear(case, wrt):
        return None  # rows and columns are not those of one complex matrix
    if matrix == "jvp" or case.subject.missing("jvp", case.args, case.static, wrt) is not None:
        wanted = by_differences(case, wrt)
    else:
        wanted = _by_columns(case, wrt)
    given = _by_columns(case, wrt) if matrix == "jvp" else _by_rows(case, wrt)
    if wanted is None or not all(np.all(np.abs(b) < 1e100) for b in [*wanted, *given]):
        return None  # not finite, or its squares are not
    return Point(case, wrt, matrix, wanted, given)


def complex_linear(case: Case, wrt: tuple[bool, ...]) -> bool:
    """Whether ``J (i v) = i J v`` in the complex operands."""
    v = [x if is_complex(x) else np.zeros_like(x) for x in case.directions(wrt)]
    turned = [1j * x if is_complex(x) else x for x in v]
    if case.subject.missing("jvp", case.args, case.static, wrt) is None:
        along, around = (packed(case.pushed(wrt, t)) for t in (v, turned))
    else:
        along, around = (case.numerical(wrt, t).value for t in (v, turned))
    return close(around.view(complex), 1j * along.view(complex), 1e-6)


def _basis(chosen: Sequence[np.ndarray]) -> Iterator[tuple[int, list[np.ndarray]]]:
    for i, x in enumerate(chosen):
        for j in range(x.size):
            unit = [np.zeros(y.shape, y.dtype) for y in chosen]  # C-contiguous, whatever y is
            unit[i].reshape(-1)[j] = 1
            yield i, unit


def flat(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(a).reshape(-1) for a in arrays])


def _by_columns(case: Case, wrt: tuple[bool, ...]) -> list[np.ndarray]:
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    blocks: list[list[np.ndarray]] = [[] for _ in chosen]
    for i, unit in _basis(chosen):
        blocks[i].append(flat(case.pushed(wrt, unit)))
    return [np.stack(b, -1) if b else np.zeros((len(flat(case.results)), 0)) for b in blocks]


def _by_rows(case: Case, wrt: tuple[bool, ...]) -> list[np.ndarray]:
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    rows: list[list[np.ndarray]] = [[] for _ in chosen]
    for _, unit in _basis(case.results):
        pulled = case.pulled(wrt, unit)
        if any(map(is_complex, unit)) and not all(map(is_complex, chosen)):
            # of real operands JAX's transpose keeps the real part: Re(row), then Re(i row)
            turned = case.pulled(wrt, [1j * u if is_complex(u) else u for u in unit])
            pulled = [
                p if is_complex(p) else p - 1j * t for p, t in zip(pulled, turned, strict=True)
            ]
        for block, p in zip(rows, pulled, strict=True):
            block.append(np.asarray(p).reshape(-1))
    return [np.stack(b) for b in rows]


def by_differences(
    case: Case, wrt: tuple[bool, ...], leaves: Sequence[np.ndarray] | None = None
) -> list[np.ndarray] | None:
    """The Jacobian's blocks by differences; ``None`` where they cannot be trusted."""
    if leaves is not None:
        rest = iter(leaves)
        full = [next(rest) if keep else x for x, keep in zip(case.leaves, wrt, strict=True)]
        case = Case(case.subject, case.rebuilt(full), case.static)
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    blocks: list[list[np.ndarray]] = [[] for _ in chosen]
    for i, unit in _basis(chosen):
        own = float(np.max(np.abs(chosen[i] * unit[i])))
        for size in filter(None, (max(1.0, float(np.max(np.abs(chosen[i])))), own)):
            estimate = case.numerical(wrt, [u * size for u in unit])
            smooth = estimate.jump <= 1e-4 * (1 + np.abs(estimate.value))
            if np.all(estimate.known & smooth):
                break
        else:
            return None
        column = unpacked(
            estimate.value / size,
            [r.astype(complex if is_complex(r) else float) for r in case.results],
        )
        blocks[i].append(flat(column))
    return [np.stack(b, -1) if b else np.zeros((len(flat(case.results)), 0)) for b in blocks]


def whole(blocks: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate(blocks, -1)


def close(a: Any, b: Any, rtol: float = 1e-5, slack: float = 0.0) -> bool:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape:
        return False
    scale = max(np.max(np.abs(a), initial=0.0), np.max(np.abs(b), initial=0.0))
    return bool(np.all(np.abs(a - b) <= rtol * scale + slack))


def is_zero(a: np.ndarray, of: np.ndarray) -> bool:
    return bool(
        np.max(np.abs(a), initial=0.0) <= 1e-8 * max(1e-300, float(np.max(np.abs(of), initial=0.0)))
    )


# Conjugation: matrices of real and imaginary parts, also where J is linear over the reals only ----


def conjugated(cases: Sequence[Case], detail: dict[str, Any]) -> bool:
    judged = False
    for case in cases[: 2 * POINTS]:
        try:
            found = _real_matrices(case, detail["matrix"])
        except Exception:
            continue
        if found is None:
            continue
        given, wanted, operand_signs, result_signs = found
        if close(given, wanted, 1e-9):
            continue
        if close(given, wanted):  # what is wrong is small, and no sign
            return False
        turned = [given * operand_signs, given * result_signs[:, None]]
        if not any(close(t, wanted) for t in [*turned, turned[0] * result_signs[:, None]]):
            return False
        judged = True
    return judged


def _real_matrices(case: Case, matrix: str) -> Any:
    """Given and wanted Jacobian over the reals, and the signs that conjugation gives its axes."""
    wrt = case.subject.available(matrix, case.args, case.static)
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    size = len(packed(chosen)) * len(packed(case.results))
    if not any(map(is_complex, [*chosen, *case.results])) or not 0 < size <= LARGEST:
        return None
    if not all(np.all(np.isfinite(r)) for r in case.results):
        return None
    units = [unpacked(u, chosen) for u in np.eye(len(packed(chosen)))]
    if matrix == "jvp" or case.subject.missing("jvp", case.args, case.static, wrt) is not None:
        columns = []
        for unit in units:
            estimate = case.numerical(wrt, unit)
            if not np.all(estimate.known):
                return None
            columns.append(estimate.value)
        wanted = np.stack(columns, -1)
    else:
        wanted = np.stack([packed(case.pushed(wrt, unit)) for unit in units], -1)
    if matrix == "jvp":
        given = np.stack([packed(case.pushed(wrt, unit)) for unit in units], -1)
    else:
        given = real_rows(case, wrt)
    return given, wanted, conjugation(chosen), conjugation(case.results)


def real_rows(case: Case, wrt: tuple[bool, ...]) -> np.ndarray:
    """The Jacobian over the real numbers that Jᵀ w stands for, row by row.

    ``Re(w J v)`` with w = 1 is the real part of J v, with w = i minus its imaginary part; and so
    for the operand.
    """
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    signs = conjugation(case.results)
    rows = [case.pulled(wrt, unpacked(u, case.results)) for u in np.eye(len(signs))]
    return signs[:, None] * np.stack([packed(row) for row in rows]) * conjugation(chosen)
