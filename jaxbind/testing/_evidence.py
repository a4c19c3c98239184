"""What a numerical law rests on, for plots: differences against steps, and Jacobians."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import jax
import numpy as np

from jaxbind.testing._case import Case
from jaxbind.testing._check import Check
from jaxbind.testing._compare import is_complex, is_inexact
from jaxbind.testing._jacobians import real_rows
from jaxbind.testing._packing import packed, unpacked

#: elements of a Jacobian that is still worth a picture
LARGEST = 600


@dataclass
class Evidence:
    """What is drawn about one binding at one example.

    Attributes:
      example: the call, as text.
      steps: of the differences, relative to the operand.
      errors: how far the differences are from the estimate, for each step (the largest element).
      estimated: the estimated error of the estimate.
      gap: how far the rule is from it: that of forward mode, if there is one.
      jacobians: matrices by how they were made.
    """

    example: str
    steps: np.ndarray
    errors: np.ndarray
    estimated: float
    gap: float
    jacobians: dict[str, np.ndarray]


def evidence(check: Check, cases: list[Case]) -> Evidence | None:
    """From the first case, or else a drawn example, at which there is a derivative."""
    with jax.enable_x64(True), np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case in [*cases, *sorted(check.examples(), key=_plainness)]:
            try:
                found = _of(case)
            except Exception:  # a picture is no reason to fail
                continue
            if found is not None:
                return found
    return None


def _plainness(case: Case) -> tuple[bool, bool]:
    """Real operands of moderate size come first: they make the clearer picture."""
    floats = [x for x in case.leaves if is_inexact(x)]
    sizes = [np.max(np.abs(x), initial=0.0) for x in floats]
    return any(map(is_complex, floats)), not all(0.01 < size < 100 for size in sizes)


def _of(case: Case) -> Evidence | None:
    case.need_finite()
    wrt = case.subject.differentiable(case.args)
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    size = len(packed(chosen))
    if not 0 < size * len(packed(case.results)) <= LARGEST:
        return None
    forward = case.subject.missing("jvp", case.args, case.static, wrt) is None
    reverse = case.subject.missing("vjp", case.args, case.static, wrt) is None
    units = [unpacked(u, chosen) for u in np.eye(size)]
    jacobians = {}
    if forward:
        jacobians["from J v"] = np.stack([packed(case.pushed(wrt, u)) for u in units], -1)
    if reverse:
        jacobians["from Jᵀ w"] = real_rows(case, wrt)
    jacobians["by differences"] = np.stack([case.numerical(wrt, u).value for u in units], -1)
    v = case.directions(wrt)
    estimate = case.numerical(wrt, v)
    if not np.any(estimate.known):
        return None
    errors = np.nanmax(np.abs(estimate.ladder - estimate.value)[:, estimate.known], axis=1)
    gap = np.nan
    if forward or reverse:
        ruled = packed(case.pushed(wrt, v)) if forward else jacobians["from Jᵀ w"] @ packed(v)
        gap = float(np.max(np.abs(ruled - estimate.value)[estimate.known]))
    return Evidence(
        case.text(),
        estimate.steps,
        errors,
        float(np.max(estimate.error[estimate.known])),
        gap,
        jacobians,
    )
