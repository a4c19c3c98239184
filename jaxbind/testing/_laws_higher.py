"""The law about derivatives of derivatives."""

from __future__ import annotations

from functools import partial
from typing import Any

from jaxbind._roles import GENERAL, NONDIFF
from jaxbind.testing._case import Case
from jaxbind.testing._law import Broken, law
from jaxbind.testing._laws_derivatives import adjoint, jvp, ruled_by_differences
from jaxbind.testing._subject import Subject, apply_only_if
from jaxbind.testing._violation import Inapplicable, Skip


@law("the same laws hold for the derivatives, to the order that was declared", cost=40)
def higher(case: Case) -> None:
    """`jvp` and `adjoint` for ``(x, v) -> J(x) v`` and ``(x, w) -> J(x)ᵀ w``, as functions.

    So for second derivatives; and for those of third and higher order, where rules for them were
    declared (what JAX derives of a traced rule follows from the rule).
    """
    apply_only_if(not ruled_by_differences(case), "the derivative is itself taken by differences")
    case.need_finite()
    definition = getattr(case.subject.binding, "definition", None)
    _higher(case, 1 if definition is None else _declared_order(definition))


def _declared_order(definition: Any) -> int:
    """Of rules upon rules."""
    return max((1 + _declared_order(rule) for rule in definition.rules.values()), default=0)


def _higher(case: Case, order: int) -> None:
    """Check both derivatives, to this order and at least the second.

    Raises:
      Skip: if there is nothing to check, or the derivative itself is wrong.
    """
    skips = []
    for mode in ("jvp", "vjp"):
        try:
            _higher_in(case, mode, order)
        except Skip as skip:
            skips.append(skip)
    if len(skips) == 2:
        raise next((skip for skip in skips if not isinstance(skip, Inapplicable)), skips[0])


def _higher_in(case: Case, mode: str, order: int) -> None:
    wrt = case.subject.available(mode, case.args, case.static)
    apply_only_if(any(wrt), "no first derivatives")
    inner = _inner_case(case, mode, wrt)
    skips, done = [], False
    for check in (jvp, adjoint):
        try:
            check.run(inner)
        except Inapplicable:
            continue
        except Skip as skip:
            skips.append(skip)
        except Broken as error:
            wrong = _first_broken(case)
            if wrong is not None:
                raise Skip(f"the derivative itself is wrong (see `{wrong}`)") from None
            name = f"{case.subject.label}.{mode}"
            derive = partial(_inner_case, mode=mode, wrt=wrt)
            detail = {**error.detail, "inner": derive, "order": mode}
            raise Broken(f"{error}: `{check.name}` of {name}", **detail) from None
        else:
            done = True
    if skips and not done:
        raise skips[0]
    apply_only_if(done, "no second derivatives are declared")
    if order > 2:
        _higher_than_second(case, mode, wrt, order)


def _higher_than_second(case: Case, mode: str, wrt: tuple[bool, ...], order: int) -> None:
    """Check the derivatives of this derivative, as far as anything can be said about them."""
    derive = partial(_inner_case, mode=mode, wrt=wrt)
    try:
        inner = derive(case)
        inner.need_finite()
        _higher(inner, order - 1)
    except Skip:
        return
    except Broken as error:
        further = error.detail["inner"]
        detail = {
            **error.detail,
            "inner": lambda case: further(derive(case)),
            "order": f"{mode}.{error.detail['order']}",
        }
        raise Broken(str(error), **detail) from None


def _first_broken(case: Case) -> str | None:
    """Which law the derivatives themselves break: what they are built of then says nothing."""
    for check in (jvp, adjoint):
        try:
            check.run(case)
        except Broken:
            return check.name
        except Exception:  # it says nothing here, or the rule raises
            continue
    return None


def _inner_case(case: Case, mode: str, wrt: tuple[bool, ...]) -> Case:
    """The derivative, and arguments for it."""
    seeds = case.directions(wrt) if mode == "jvp" else case.cotangents()
    chosen = [x for x, keep in zip(case.leaves, wrt, strict=True) if keep]
    others = [x for x, keep in zip(case.leaves, wrt, strict=True) if not keep]
    return case.of(_derivative_subject(case, mode, wrt), (chosen, seeds, others))


def _derivative_subject(case: Case, mode: str, wrt: tuple[bool, ...]) -> Subject:
    """The derivative as a function of (primals, tangents or cotangents, other arguments)."""
    parent, args, static = case.subject, case.args, dict(case.static)

    def make() -> Subject:
        apply = (parent.linearised if mode == "jvp" else parent.transposed)(args, static, wrt)

        def function(chosen: list, seeds: list, others: list) -> list:
            some, rest = iter(chosen), iter(others)
            return apply([next(some) if keep else next(rest) for keep in wrt], seeds)

        names = ("primals", "tangents" if mode == "jvp" else "cotangents", "others")
        return Subject(
            function,
            f"{parent.label}.{mode}",
            kind=lambda position: NONDIFF if position == 2 else GENERAL,
            parameter=lambda position: names[position],
        )

    return parent.kept(("subject", mode, case.tree, case.key, wrt), make)
