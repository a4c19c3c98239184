"""Laws about derivatives: by rule against differences, and rules against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from jaxbind._derive import FiniteDifference
from jaxbind.testing._case import Case, raises
from jaxbind.testing._compare import ROUNDING, difference, is_complex, magnitude, number
from jaxbind.testing._jacobians import complex_linear
from jaxbind.testing._law import Broken, law
from jaxbind.testing._numerical import Derivative
from jaxbind.testing._packing import packed, place_of
from jaxbind.testing._rounding import hidden_rounding, quantum, sensitivity
from jaxbind.testing._subject import (
    apply_only_if,
    need,
    subsets,
)
from jaxbind.testing._violation import Inapplicable, Skip

#: how well a derivative must be known whose noise is: much is allowed for that already
ROUGHLY = 0.03


@law("the pushforward is the derivative")
def jvp(case: Case) -> None:
    """``J v = lim (f(x + h v) - f(x - h v)) / 2h``, by differences with an error estimate."""
    wrt = _with_rules(case, "jvp")
    case.need_finite()
    judged = False
    for scaled in ("unit", "relative"):
        v = case.directions(wrt, scaled)
        claimed = packed(case.pushed(wrt, v))
        estimate = case.numerical(wrt, v)
        allowed = _allowed(case, wrt, v, claimed, estimate)
        wrong = _first_wrong(claimed, estimate, allowed)
        rtol = 1e-3
        if wrong is not None:
            noise = quantum(case, wrt, v, _wrong(claimed, estimate, allowed))
            if scaled == "relative":
                rtol = ROUGHLY
                noise = np.fmax(noise, hidden_rounding(case, wrt))
            estimate = case.numerical(wrt, v, noise)
            allowed = _allowed(case, wrt, v, claimed, estimate)
            wrong = _first_wrong(claimed, estimate, allowed, rtol)
        judged |= bool(np.any(estimate.known_to(rtol)))
        if wrong is not None:
            wrong = _first_wrong(
                claimed, _where_linear(case, wrt, v, estimate, scaled), allowed, rtol
            )
        if wrong is not None:
            place = f" in {place_of(wrong, case.results)}" if claimed.size > 1 else ""
            raise Broken(
                f"got  J v = {number(claimed[wrong])}   and   {number(estimate.value[wrong])}"
                f" by differences (error {estimate.error[wrong]:.1g}){place},"
                f" differentiating {case.named(wrt)} along"
                f" {', '.join(np.array2string(t, precision=6) for t in v)}",
                matrix="jvp",
                wrt=wrt,
                gap=abs(claimed[wrong] - estimate.value[wrong]),
                size=abs(estimate.value[wrong]),
                error=estimate.error[wrong],
            )
    need(judged, "no numerical derivative can be had (kinks, jumps, noise, or a value not finite)")


def _with_rules(case: Case, mode: str) -> tuple[bool, ...]:
    """The leaves that can be differentiated in this mode."""
    wanted = case.subject.differentiable(case.args)
    apply_only_if(any(wanted), "no argument has a derivative (integer, boolean, or nondiff)")
    _ = case.value
    need(bool(case.results), "no result has a derivative")
    found = case.subject.available(mode, case.args, case.static)
    if not any(found):
        reason = case.subject.missing(mode, case.args, case.static, wanted) or ""
        raise Inapplicable(
            f"no rule for {'forward' if mode == 'jvp' else 'reverse'} mode: {reason}"
        )
    return found


def _allowed(
    case: Case,
    wrt: tuple[bool, ...],
    v: Sequence[Any],
    claimed: np.ndarray,
    estimate: Derivative,
) -> np.ndarray:
    """How far a right rule may be from the estimate: its error, kinks, and rounding."""
    rounding = sensitivity(case, lambda leaves: packed(case.pushed(wrt, v, leaves)), wrt)
    size = np.maximum(np.abs(claimed), np.abs(estimate.value))
    largest = np.max(np.where(np.isfinite(size), size, 0.0), initial=0.0)
    relative = _relative(case)
    return (
        10 * estimate.error
        + estimate.jump
        + 8 * rounding
        + relative * size
        + ROUNDING * case.eps * largest
        + case.floor(v)
        + case.slack
    )


def _relative(case: Case) -> float:
    """How exact rules are expected to be."""
    if case.rtol is not None:
        return case.rtol
    return 1e-5 if ruled_by_differences(case) else max(ROUNDING * case.eps, 2e-9)


def ruled_by_differences(case: Case) -> bool:
    """Whether the rule is ``def_jvp("finite-difference")``."""
    rules = getattr(getattr(case.subject.binding, "definition", None), "rules", {})
    return isinstance(getattr(rules.get("jvp"), "traced", None), FiniteDifference)


def _where_linear(
    case: Case, wrt: tuple[bool, ...], v: Sequence[Any], estimate: Derivative, scaled: str
) -> Derivative:
    """The estimate, unknown where f is not differentiable although it has slopes.

    There (equal elements that are sorted, equal eigenvalues) it has kinks in some directions, or
    slopes that are not linear in the direction: ``D(v + u) = D(v) + D(u)`` fails.
    """
    linear = ~_has_kink(estimate)
    for _ in range(8):  # one of several may look smooth by chance
        u = case.directions(wrt, scaled)
        both = case.numerical(wrt, [np.asarray(x + y, x.dtype) for x, y in zip(v, u, strict=True)])
        other = case.numerical(wrt, u)
        with np.errstate(all="ignore"):
            gap = np.abs(both.value - estimate.value - other.value)
            size = np.abs(both.value) + np.abs(estimate.value) + np.abs(other.value)
            error = sum(d.error + d.jump for d in (both, estimate, other))
            linear &= gap <= 20 * error + 1e-6 * size
        linear &= ~(_has_kink(both) | _has_kink(other))
    return replace(estimate, error=np.where(linear, estimate.error, np.inf))


def _has_kink(estimate: Derivative) -> np.ndarray:
    """Where a kink is larger than what the estimate leaves in doubt."""
    with np.errstate(all="ignore"):
        doubt = np.maximum(10 * estimate.error, 1e-2 * np.abs(estimate.value))
        return estimate.known & estimate.kinked & (estimate.jump > doubt)


def _first_wrong(
    claimed: np.ndarray, estimate: Derivative, allowed: np.ndarray, rtol: float = 1e-3
) -> int | None:
    """The element that differs most, relative to what is allowed."""
    wrong = _wrong(claimed, estimate, allowed, rtol)
    return wrong[0] if wrong else None


def _wrong(
    claimed: np.ndarray, estimate: Derivative, allowed: np.ndarray, rtol: float = 1e-3
) -> list[int]:
    """The elements that differ by more than is allowed, the worst first."""
    with np.errstate(all="ignore"):
        excess = np.abs(claimed - estimate.value) / np.maximum(allowed, 1e-300)
        known = estimate.known_to(rtol)
        judged = known & np.isfinite(allowed)
        # a rule that gives NaN or infinity, where f is smooth
        # (but where it is constant, as a standard deviation of one number)
        smooth = known & ~estimate.constant
        smooth &= estimate.jump <= 1e-6 * np.maximum(np.abs(estimate.value), estimate.scale)
        excess = np.where(
            np.isfinite(claimed), np.where(judged, excess, 0), np.where(smooth, 1e9, 0)
        )
    worst = np.argsort(-excess, kind="stable")
    return [int(i) for i in worst[: np.count_nonzero(excess > 1)]]


@law("the pushforward is linear in the tangent", cost=60)
def jvp_linear(case: Case) -> None:
    """``J (a v + b u) = a J v + b J u``."""
    wrt = _with_rules(case, "jvp")
    case.need_finite()
    v, u = case.directions(wrt), case.directions(wrt)
    a, b = 1.5, -0.75
    if raises(lambda: case.pushed(wrt, v)):
        raise Skip("the rule raises (see `jvp`)")
    mixed = case.pushed(
        wrt, [np.asarray(a * x + b * y, x.dtype) for x, y in zip(v, u, strict=True)]
    )
    first, second = case.pushed(wrt, v), case.pushed(wrt, u)
    if not all(np.all(np.isfinite(t)) for t in [*first, *second]):
        raise Skip("the pushforward is not finite (see `jvp`)")
    apart = [np.asarray(a * x + b * y, x.dtype) for x, y in zip(first, second, strict=True)]
    rounding = 8 * sensitivity(case, lambda leaves: packed(case.pushed(wrt, v, leaves)), wrt)
    wide = [packed([x]) for x in mixed], [packed([x]) for x in apart]
    slack = _like(wide[0], rounding + case.floor([*v, *u]) + case.slack)
    scale = max(magnitude(x) for x in (first, second, mixed, case.value))
    # rounding to single precision is not linear either, but another fault (see `jvp`)
    wrong = difference(*wide, case.tolerance(max(ROUNDING, 1e-6 / case.eps)), slack, scale)
    if wrong:
        raise Broken(f"got  J(a v + b u) and a J v + b J u = {wrong}", matrix="jvp", wrt=wrt)


def _like(arrays: Sequence[np.ndarray], flat: Any) -> list[np.ndarray]:
    """Cut a flat vector into pieces of the sizes of ``arrays``."""
    ends = np.cumsum([a.size for a in arrays])[:-1]
    return np.split(np.broadcast_to(flat, (sum(a.size for a in arrays),)), ends)


@law("<w, J v> = <Jᵀ w, v>")
def adjoint(case: Case) -> None:
    """For real and complex operands, and for every subset of differentiated arguments."""
    reverse = _with_rules(case, "vjp")
    case.need_finite()
    every = subsets(reverse, case.owners)
    if not all(reverse):
        every = [s for s in every if not case.subject.missing("vjp", case.args, case.static, s)]
    chosen = {every[0], every[case.rng.integers(len(every))]}
    for wrt in sorted(chosen, reverse=True):
        _adjoint_of(case, wrt, None)
    if len(case.results) > 1:  # some results not used at all: their cotangents are zero
        used = [bool(b) for b in case.rng.integers(0, 2, len(case.results))]
        if any(used) and not all(used):
            _adjoint_of(case, every[0], tuple(used))


def _adjoint_of(
    case: Case, wrt: tuple[bool, ...], used: tuple[bool, ...] | None, scaled: str = "unit"
) -> None:
    v, w = case.directions(wrt, scaled), case.cotangents()
    if used is not None:
        w = [x if keep else np.zeros_like(x) for x, keep in zip(w, used, strict=True)]
    given = w if used is None else [x for x, keep in zip(w, used, strict=True) if keep]
    pulled = case.pulled(wrt, given, results=used)
    right = _pairing(pulled, v)
    ruled = case.subject.missing("jvp", case.args, case.static, wrt) is None
    moved = sensitivity(
        case,
        lambda leaves: np.asarray([_pairing(case.pulled(wrt, given, leaves, used), v).real]),
        wrt,
    )
    if ruled:
        pushed = case.pushed(wrt, v)
        left = _pairing(w, pushed)
        if not np.isfinite(left):
            raise Skip("the pushforward is not finite (see `jvp`)")
        allowed = 8 * moved[0] + ROUNDING * case.eps * (_size(w, pushed) + _size(pulled, v))
        allowed += float(np.sum(np.abs(packed(w)) * case.floor(v)))
        if case.rtol is not None:
            allowed += case.rtol * abs(left)
        if abs(left.real - right.real) <= allowed + case.slack:
            return
    noise = hidden_rounding(case, wrt) if scaled == "relative" else 0.0
    estimate = _where_linear(case, wrt, v, case.numerical(wrt, v, noise), scaled)
    if ruled and np.any(np.isinf(estimate.error) & np.isfinite(estimate.value)):
        raise Skip("the function has no derivative here, only slopes (equal elements, kinks)")
    rtol = ROUGHLY if scaled == "relative" else 1e-3
    numerical, allowed, known = _numerical_pairing(case, w, estimate, pulled, v, moved[0], rtol)
    agrees = abs(numerical.real - right.real) <= allowed
    if known and agrees:
        return  # where jvp differs, it is jvp that is wrong
    steps = quantum(case, wrt, v, _used(w)) if known and not ruled else np.zeros(1)
    if np.any(steps):
        noise = np.fmax(noise, steps)
        estimate = _where_linear(case, wrt, v, case.numerical(wrt, v, noise), scaled)
        numerical, allowed, known = _numerical_pairing(case, w, estimate, pulled, v, moved[0], rtol)
        if known and abs(numerical.real - right.real) <= allowed:
            return
    if not ruled and not known and scaled == "unit":  # too long a way, it may be
        _adjoint_of(case, wrt, used, "relative")
        return
    if not ruled:
        need(known, "no numerical derivative can be had (kinks, jumps, noise)")
        left = numerical
    # with a J that is linear over the complex numbers, so are both sides
    of_complex = ruled and all(map(is_complex, [*v, *w])) and complex_linear(case, wrt)
    show = number if of_complex else _real
    zeros = "" if used is None else f", with results {_chosen(used)} used"
    raise Broken(
        f"got  <w, J v> = {show(left)}   and   <Jᵀ w, v> = {show(right)},"
        f" differentiating {case.named(wrt)}{zeros}" + ("" if ruled else " (J v by differences)"),
        matrix="vjp",
        wrt=wrt,
        used=used,
        gap=abs(left.real - right.real),
        size=abs(left.real),
        error=0.0 if ruled else allowed,
    )


def _used(cotangents: Sequence[np.ndarray]) -> list[int]:
    """The elements of packed results that have a cotangent."""
    return [int(i) for i in np.flatnonzero(packed(cotangents))]


def _real(x: complex) -> str:
    return number(x.real)


def _chosen(used: Sequence[bool]) -> str:
    return ", ".join(str(i) for i, keep in enumerate(used) if keep)


def _pairing(a: Sequence[Any], b: Sequence[Any]) -> complex:
    """``sum(a * b)``, without conjugation."""
    with np.errstate(all="ignore"):
        return complex(sum(np.sum(_complex(x) * _complex(y)) for x, y in zip(a, b, strict=True)))


def _complex(x: Any) -> np.ndarray:
    return np.asarray(x).astype(complex)


def _size(a: Sequence[Any], b: Sequence[Any]) -> float:
    """The sum of absolute values of what `_pairing` adds up."""
    return float(sum(np.sum(np.abs(_complex(x) * _complex(y))) for x, y in zip(a, b, strict=True)))


def _numerical_pairing(
    case: Case,
    w: Sequence[Any],
    estimate: Derivative,
    pulled: Sequence[Any],
    v: Sequence[Any],
    moved: float,
    rtol: float,
) -> tuple[complex, float, bool]:
    """``<w, J v>`` by differences, what it may be off, and whether it is known at all."""
    weights = packed([np.conj(x) for x in w])  # Re(w z) = Re w Re z - Im w Im z
    used = weights != 0
    if not np.all(estimate.known_to(rtol)[used]):
        return complex(np.nan), np.inf, False
    weights, value = weights[used], estimate.value[used]
    total = float(np.sum(weights * value))
    relative = _relative(case)
    allowed = (
        np.sum(np.abs(weights) * (10 * estimate.error + estimate.jump)[used])
        + relative * np.sum(np.abs(weights * value))
        + ROUNDING * case.eps * _size(pulled, v)
        + 8 * moved
        + np.sum(np.abs(packed(w)) * case.floor(v))
        + case.slack
    )
    return complex(total), float(allowed), True
