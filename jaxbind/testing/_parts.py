"""Which part of a Jacobian is wrong, where the rest of it is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxbind.testing._jacobians import Point, close, whole


@dataclass(frozen=True)
class Part:
    """Of a Jacobian, what belongs to one result, to one operand, or to both (``None``: to all)."""

    result: int | None = None
    operand: int | None = None

    def of(self, point: Point, blocks: Sequence[np.ndarray]) -> np.ndarray:
        rows = slice(None) if self.result is None else point.rows(self.result)
        return whole(blocks if self.operand is None else [blocks[self.operand]])[rows]

    def holds(self, other: Part) -> bool:
        return self.result in (None, other.result) and self.operand in (None, other.operand)

    def named(self, point: Point) -> str:
        result = "" if self.result is None else f"result {self.result}"
        operand = "" if self.operand is None else point.names()[self.operand]
        return " in ".join(filter(None, [result, operand]))


def parts_of(point: Point) -> list[Part]:
    """The larger first: all, operands, results, and one result in one operand."""
    operands = range(len(point.given) if len(point.given) > 1 else 0)
    results = range(len(point.case.results) if len(point.case.results) > 1 else 0)
    return [
        Part(),
        *(Part(None, i) for i in operands),
        *(Part(r, None) for r in results),
        *(Part(r, i) for r in results for i in operands),
    ]


def is_right_elsewhere(point: Point, part: Part) -> bool:
    """Whether the given Jacobian is the wanted one but for this part."""
    smallest = parts_of(point)[-1]
    slack = 1e-9 * float(np.max(np.abs(whole(point.wanted)), initial=0.0))
    return all(
        close(other.of(point, point.given), other.of(point, point.wanted), 1e-6, slack)
        for other in parts_of(point)
        if (other.result is None) == (smallest.result is None)
        and (other.operand is None) == (smallest.operand is None)
        and not part.holds(other)
    )
