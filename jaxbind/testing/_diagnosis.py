"""What is wrong with a rule: small Jacobians, the wanted and the given one, compared.

The Jacobians are in `_jacobians`, what is made of them in `_mistakes`. A diagnosis must hold at
every point that is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxbind._roles import GENERAL, LINEAR
from jaxbind._rules import Jacobians, Partials
from jaxbind.testing._case import Case
from jaxbind.testing._compare import difference, is_inexact
from jaxbind.testing._jacobians import (
    POINTS,
    Point,
    conjugated,
    inner_case,
    is_right,
    points_of,
)
from jaxbind.testing._laws_loops import operation_of
from jaxbind.testing._mistakes import MISTAKES, conjugate_text, single_precision_text
from jaxbind.testing._rounding import blind
from jaxbind.testing._subject import key_of
from jaxbind.testing._violation import Diagnosis, LawViolation


def find(law: str, violation: LawViolation, cases: Sequence[Case]) -> Diagnosis | None:
    """The most likely mistake, or ``None``. Never raises."""
    try:
        return _find(law, violation, cases)
    except Exception:  # it must not hide the violation that it explains
        return None


def _find(law: str, violation: LawViolation, cases: Sequence[Case]) -> Diagnosis | None:
    detail: dict[str, Any] = violation.detail
    if detail.get("stale"):
        return Diagnosis(
            "stale",
            "Part of the result is never written, or only added to (`out += ...`), and shows what"
            " was in the memory before: fill all of `out` (or of what np.empty gave), whatever the"
            " operands are.",
        )
    if detail.get("repeated"):
        return _previous_result(cases[0])
    if detail.get("single"):
        return Diagnosis("single_precision", single_precision_text("The function"))
    if detail.get("loop"):
        return _loop_axis(cases)
    if law == "jvp_linear" and _constant(cases):
        return Diagnosis(
            "output_returned",
            "def_jvp returns the function's own value, whatever the tangent is; it must return the"
            " derivative times the tangent.",
        )
    if "matrix" not in detail or law == "jvp_linear":
        return None
    cases = [case for case in cases if _usable(case)]
    if any(blind(case) for case in cases[: 2 * POINTS]):
        return Diagnosis("single_precision", single_precision_text("The function"))
    inner = [inner_case(case, detail) for case in cases]
    rule = _rule_name(cases[0], detail)
    if conjugated(inner, detail):
        return Diagnosis("conjugate", conjugate_text(detail["matrix"], rule))
    if detail["matrix"] == "vjp" and all(map(_ignores_cotangent, inner[:3])):
        return Diagnosis(
            "cotangent_ignored",
            f"{rule} gives the same for any cotangent: it must return the cotangent times the"
            " derivative.",
        )
    points = list(points_of(inner, detail))
    if not points:
        return None
    ignored = _static_ignored(points[0], detail)
    if ignored:
        return Diagnosis("static_ignored", f"{rule} {ignored}")
    for recognise in MISTAKES:
        try:
            text = recognise(points, rule)
        except Exception:  # the others may still know
            continue
        if text is not None:
            return Diagnosis(recognise.__name__, text)
    return None


def _ignores_cotangent(case: Case) -> bool:
    """Whether Jᵀ w is the same for twice the cotangent, and not zero."""
    wrt = case.subject.available("vjp", case.args, case.static)
    w = case.cotangents()
    try:
        found, twice = (case.pulled(wrt, [np.asarray(k * x, x.dtype) for x in w]) for k in (1, 2))
    except Exception:  # the rule raises there
        return False
    return difference(found, twice, 1e-9) is None and any(np.any(x) for x in found)


def _static_ignored(point: Point, detail: dict[str, Any]) -> str | None:
    """Whether the rule is right for other static parameters, at the same operands."""
    case = point.case
    if not case.statics or "inner" in detail:
        return None
    for other in case.statics:
        if key_of(other) == case.key:
            continue
        try:
            there = Case(case.subject, case.args, other, seed=case.seed)
            right = _usable(there) and is_right(there, detail)
        except Exception:  # it does not take these operands
            continue
        if right:
            names = dict.fromkeys([*case.static, *other])
            changed = [n for n in names if key_of(_only(n, other)) != key_of(_only(n, case.static))]
            shown = [", ".join(f"{n}={s.get(n)!r}" for n in changed) for s in (other, case.static)]
            return (
                f"is right for {shown[0]}, and wrong for {shown[1]}: does it take"
                f" {' and '.join(changed)} into account?"
            )
    return None


def _only(name: str, static: Mapping[str, Any]) -> dict[str, Any]:
    return {name: static[name]} if name in static else {}


def _usable(case: Case) -> bool:
    try:
        return all(bool(np.all(np.isfinite(r))) for r in case.results)
    except Exception:
        return False


# Faults of state and of loops -------------------------------------------------------------------


def _previous_result(case: Case) -> Diagnosis | None:
    value = case.subject.value
    seen = []
    for other in [*case.variants(3)[1:], case.scaled(0.5)]:
        value(other, case.static)
        before = value(other, case.static)
        if difference(value(case.args, case.static), before, 1e-12) is not None:
            return None
        if difference(value(case.args, case.static), before, 1e-12) and not any(
            difference(before, old, 1e-12) is None for old in seen
        ):
            seen.append(before)
    if len(seen) < 2:  # once may be chance
        return None
    return Diagnosis(
        "stale",
        "The function returns the result of the call before: a buffer is filled after it"
        " was returned, or kept from one call to the next.",
    )


def _loop_axis(cases: Sequence[Case]) -> Diagnosis | None:
    """Whether a row of the result depends on the operands of another row."""
    for case in cases:
        for target in ("f", "jvp", "vjp"):
            operation = operation_of(case, target)
            if operation is None:
                continue
            mapped = case.subject.compiled(
                ("rows", operation.key), lambda operation=operation: jax.vmap(operation.function)
            )
            row = operation.rows[0]
            others = [
                [np.asarray(x * by, x.dtype) if is_inexact(x) else x for x in row]
                for by in (0.5, 1.75)
            ]
            try:
                mixed = any(
                    difference(first, second, 1e-9)
                    for place in (0, 1)
                    for first, second in [[_row(mapped, row, other, place) for other in others]]
                )
            except Exception:
                continue
            if mixed:
                name = {"f": "The function", "jvp": "The rule for J v", "vjp": "The rule for Jᵀ w"}
                return Diagnosis(
                    "loop_axis",
                    f"{name[target]} mixes the loop dimensions: what it gives for one element of a"
                    " batch depends on the others. It is declared vectorized=True, so give its"
                    " sums, means, norms and sorts the core axes (axis=-1, keepdims=True), or bind"
                    " it without vectorized=True.",
                )
    return None


def _row(
    mapped: Callable, row: Sequence[Any], other: Sequence[Any], place: int
) -> list[np.ndarray]:
    """What ``row`` gives in a batch with another one."""
    pairs = [(x, y) if place == 0 else (y, x) for x, y in zip(row, other, strict=True)]
    return [np.asarray(r)[place] for r in mapped([np.stack(pair) for pair in pairs])]


def _constant(cases: Sequence[Case]) -> bool:
    """Whether the pushforward is the function's value, for any tangent."""
    for case in cases[:3]:
        wrt = case.subject.available("jvp", case.args, case.static)
        found = case.pushed(wrt, case.directions(wrt))
        if difference(found, case.results, 1e-9):
            return False
    return True


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
