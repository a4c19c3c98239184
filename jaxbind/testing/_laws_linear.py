"""Laws about what is declared linear."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.tree_util import tree_unflatten

from jaxbind._roles import GENERAL, NONDIFF
from jaxbind.testing._case import Case
from jaxbind.testing._compare import (
    difference,
    is_inexact,
    leaves_of,
    magnitude,
    number,
    wide,
)
from jaxbind.testing._law import Broken, law
from jaxbind.testing._packing import packed
from jaxbind.testing._rounding import blind, sensitivity
from jaxbind.testing._subject import apply_only_if, errors_told_apart, skipping_where_it_raises
from jaxbind.testing._violation import Skip


@law("a function declared linear is: f(a x + b y) = a f(x) + b f(y), and f(0) = 0", cost=60)
def linear(case: Case) -> None:
    """For the arguments declared jointly linear together, for multilinear ones one by one."""
    groups = _linear_groups(case)
    apply_only_if(bool(groups), "nothing is declared linear or multilinear")
    _ = case.value
    for group in groups:
        _linear_in(case, group)


def _linear_in(case: Case, group: Any) -> None:
    member = _members(case, group)
    names = case.named(member)
    directions = iter(case.directions(member))
    others = [next(directions) if m else x for x, m in zip(case.leaves, member, strict=True)]

    def at(a: float, b: float) -> list[np.ndarray]:
        """f(a x + b y), with the other arguments as they are."""
        leaves = [
            np.asarray(a * x + b * y, x.dtype) if m else x
            for x, y, m in zip(case.leaves, others, member, strict=True)
        ]
        return [wide(r) for r in leaves_of(case.value_at(leaves))]

    a, b = 1.5, -0.75
    with skipping_where_it_raises():
        x, y, mixed, zero = at(1, 0), at(0, 1), at(a, b), at(0, 0)
    if not all(np.all(np.isfinite(r)) for r in [*x, *y, *mixed]):
        raise Skip("the function's value is not finite")
    moved = sensitivity(case, lambda leaves: packed(leaves_of(case.value_at(leaves))), member)
    scale = max(magnitude(x), magnitude(y), magnitude(mixed))
    tolerance = case.tolerance() * scale + 8 * float(np.max(moved, initial=0.0)) + case.slack
    tolerance += case.underflow
    if magnitude(zero) > tolerance:
        largest = max((r.reshape(-1)[np.argmax(np.abs(r))] for r in zero if r.size), key=abs)
        raise Broken(f"got  f(0) = {number(largest)} in {names}: there is a constant term")
    apart = [a * p + b * q for p, q in zip(x, y, strict=True)]
    wrong = difference(mixed, apart, 0.0, [np.full(r.shape, tolerance) for r in mixed])
    if wrong:
        gap = magnitude([p - q for p, q in zip(mixed, apart, strict=True)])
        raise Broken(
            f"got  f(a x + b y) and a f(x) + b f(y) = {wrong}, in {names}",
            single=case.eps < 1e-10 and gap < 1e-6 * scale and blind(case),
        )


def _members(case: Case, group: Any) -> tuple[bool, ...]:
    """The leaves of the arguments that are linear together."""
    return tuple(
        kind == group and is_inexact(x) for kind, x in zip(_kinds(case), case.leaves, strict=True)
    )


def _kinds(case: Case) -> list[Any]:
    return [case.subject.kind(position) for position in case.owners]


def _linear_groups(case: Case) -> list[Any]:
    kinds = [k for k, x in zip(_kinds(case), case.leaves, strict=True) if is_inexact(x)]
    return [kind for kind in dict.fromkeys(kinds) if kind not in (GENERAL, NONDIFF)]


@law("transposing twice gives the function back", cost=30)
def transpose_transpose(case: Case) -> None:
    """For linear f: ``(fᵀ)ᵀ (x) = f(x)``, in each argument in which it is linear."""
    groups = _linear_groups(case)
    apply_only_if(bool(groups), "nothing is declared linear or multilinear")
    want = [r for r in leaves_of(case.value) if is_inexact(r)]
    ran = False
    for kind in groups:
        wrt = _members(case, kind)
        if case.subject.missing("vjp", case.args, case.static, wrt):
            continue
        ran = True
        tree = case.tree

        def twice(leaves: list, wrt: tuple[bool, ...] = wrt, tree: Any = tree) -> list:
            chosen = [x for x, keep in zip(leaves, wrt, strict=True) if keep]

            def inner(chosen: list) -> list:
                rest = iter(chosen)
                full = [next(rest) if k else x for x, k in zip(leaves, wrt, strict=True)]
                found = case.subject.function(*tree_unflatten(tree, full), **case.static)
                return [r for r in jax.tree.leaves(found) if is_inexact(r)]

            structs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in chosen]
            once = jax.linear_transpose(inner, structs)
            back = jax.linear_transpose(lambda ct: once(ct)[0], jax.eval_shape(inner, structs))
            return back(chosen)[0]

        key = ("twice", tree, case.key, wrt)
        with errors_told_apart():
            got = [np.asarray(x) for x in case.subject.compiled(key, lambda: twice)(case.leaves)]
        slack = [np.full(r.shape, case.underflow) for r in want]
        wrong = difference(got, want, case.tolerance(), slack, atol=case.slack)
        if wrong:
            raise Broken(f"got  transposed twice, and f: {wrong}, in {case.named(wrt)}")
    apply_only_if(ran, "no transpose is declared")
