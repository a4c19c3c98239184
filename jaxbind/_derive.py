"""Derivatives made from others: Jacobians, finite differences, complex steps.

They are traced rules in terms of the binding itself, so JAX differentiates them further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten, tree_structure, tree_unflatten

from jaxbind import _dtypes
from jaxbind._call import (
    Call,
    Outputs,
    PyTreeDef,
    core_struct,
    fill,
    joined,
    leaves_up_to,
    masked,
    present,
)
from jaxbind._missing import MissingRule
from jaxbind._roles import Wanted, differentiable
from jaxbind._static import Static


def push(definition: Any, static: Static, args: tuple) -> Any:
    """The whole pushforward by JAX, for functions linear in some arguments: a direct ``f.jvp``."""
    primals, tangents = args
    leaves, tree = tree_flatten(primals)
    given = leaves_up_to(tree, tangents)
    moving = [_dtypes.is_inexact(jnp.result_type(leaf)) for leaf in leaves]
    moving = [m and t is not None for m, t in zip(moving, given, strict=True)]
    chosen = [leaf for leaf, m in zip(leaves, moving, strict=True) if m]
    along = [jnp.asarray(t) for t, m in zip(given, moving, strict=True) if m]
    inner = _of_moving(definition, static, leaves, tree, moving)
    return jax.jvp(inner, tuple(map(jnp.asarray, chosen)), tuple(along))[1]


def pull(definition: Any, static: Static, args: tuple) -> tuple:
    """The whole pullback by JAX: a direct ``f.vjp`` where no rule, or only a part, is declared."""
    primals, cotangents = args
    leaves, tree = tree_flatten(tuple(primals))
    moving = [_dtypes.is_inexact(jnp.result_type(leaf)) for leaf in leaves]
    chosen = [jnp.asarray(leaf) for leaf, m in zip(leaves, moving, strict=True) if m]
    _, back = jax.vjp(_of_moving(definition, static, leaves, tree, moving), *chosen)
    return tree_unflatten(tree, fill(moving, back(cotangents)))


def _of_moving(
    definition: Any, static: Static, leaves: Sequence[Any], tree: Any, moving: Sequence[bool]
) -> Callable:
    def inner(*chosen: Any) -> Any:
        full = [c if m else x for c, m, x in zip(fill(moving, chosen), moving, leaves, strict=True)]
        return definition.apply(static, *tree_unflatten(tree, full))

    return inner


# Numerical derivatives --------------------------------------------------------------------------
#
# With R(a, b) = Re(sum a b), the transpose without conjugation is defined by
# R(Jᵀ c, t) = R(c, J t) for all t and c, also where J is linear over the reals only. So
#
#     Re (J t)_k = R(Jᵀ e_k, t)       Im (J t)_k =  R(Jᵀ (-i e_k), t)
#     Re (Jᵀ c)_k = R(c, J e_k)       Im (Jᵀ c)_k = -R(c, J (i e_k))


class _Numerical:
    """A rule made from the binding itself, or from its other rule."""

    skips_zeros = False
    transposable = False
    name = ""

    def __init__(self, definition: Any):
        self.label = definition.label

    @property
    def function(self) -> Any:
        return self

    def __repr__(self) -> str:
        return f"<{self.name!r} derivative of {self.label}>"

    @staticmethod
    def parent_call(call: Call) -> Call:
        return replace(call.definition.role.parent_call(call), loop=0)


class FiniteDifference(_Numerical):
    """Central difference along the tangent: two calls; error of order step².

    The step ``eps**(1/3) * max(1, |x|) / |t|`` balances truncation and rounding (Press et al.,
    Numerical Recipes, 3rd ed., section 5.7).
    """

    name = "finite-difference"

    def __call__(self, call: Call, outputs: Outputs, args: tuple) -> list[Any]:
        inner = self.parent_call(call)
        primals, tangents = jax.tree.leaves(args[0]), leaves_up_to(inner.tree, args[1])
        moving = [p for p, t in zip(primals, tangents, strict=True) if t is not None]
        given = [t for t in tangents if t is not None]
        dtype = jnp.finfo(jnp.result_type(*moving)).dtype
        scale = jnp.maximum(1.0, _largest(moving)).astype(dtype)
        size = _largest(given).astype(dtype)
        step = scale / jnp.where(size == 0, jnp.ones((), dtype), size)
        step = jax.lax.stop_gradient(step) * np.asarray(jnp.finfo(dtype).eps ** (1 / 3), dtype)

        def shifted(by: Any) -> list[Any]:
            leaves = [
                p if t is None else p + (by * t).astype(p.dtype)
                for p, t in zip(primals, tangents, strict=True)
            ]
            return _kept(inner, outputs, leaves)

        pairs = zip(shifted(step), shifted(-step), strict=True)
        return [((plus - minus) / (2 * step)).astype(plus.dtype) for plus, minus in pairs]


class ComplexStep(_Numerical):
    """``Im f(x + i h t) / h``: one call; exact to rounding for analytic functions.

    Squire and Trapp, SIAM Review 40 (1998) 110. The operands must be real.
    """

    name = "complex-step"
    STEP = 1e-30

    def __call__(self, call: Call, outputs: Outputs, args: tuple) -> list[Any]:
        inner = self.parent_call(call)
        moved = []
        for p, t in zip(jax.tree.leaves(args[0]), leaves_up_to(inner.tree, args[1]), strict=True):
            if t is not None and _dtypes.is_complex(p.dtype):
                raise MissingRule(
                    f"{self.label}.def_jvp('complex-step') needs real operands; got {p.dtype.name}."
                    " For complex ones use 'finite-difference' or a rule"
                )
            moved.append(p if t is None else jax.lax.complex(p, (self.STEP * t).astype(p.dtype)))
        results = _kept(inner, outputs, moved)
        for leaf in results:
            if not _dtypes.is_complex(leaf.dtype):
                raise MissingRule(
                    f"{self.label}.def_jvp('complex-step'): with complex operands its result is"
                    f" declared {leaf.dtype.name}; declare a complex one (dtype= or out=) or use"
                    " 'finite-difference'"
                )
        return [
            (jnp.imag(y) / self.STEP).astype(struct.dtype)
            for y, struct in zip(results, outputs.structs, strict=True)
        ]


class FromVjp(_Numerical):
    """The Jacobian row by row: a call of the vjp rule per (real) element of the result."""

    name = "from-vjp"
    transposable = True

    def __call__(self, call: Call, outputs: Outputs, args: tuple) -> list[Any]:
        inner = self.parent_call(call)
        primals, tangents = jax.tree.leaves(args[0]), leaves_up_to(inner.tree, args[1])
        wanted = tuple(t is not None for t in tangents)
        given = [t for t in tangents if t is not None]
        rule = inner.definition.vjp_rule(inner.operand(wanted.index(True)))
        cts_tree = masked(outputs.tree, outputs.kept)
        pullback = Call(
            rule, call.static, joined(inner.tree, cts_tree), 0, Wanted(wanted, inner.like)
        )

        def along(cotangents: list[Any]) -> Any:
            return _pairing(inner.definition.bind(pullback, [*primals, *cotangents]), given)

        return _per_element(along, outputs.structs, -1j, 1j)


class FromJvp(_Numerical):
    """The Jacobian column by column: a call of the jvp rule per (real) element of the arguments."""

    name = "from-jvp"
    transposable = True

    def __call__(self, call: Call, outputs: Outputs, args: tuple) -> list[Any]:
        inner = self.parent_call(call)
        primals, cotangents = jax.tree.leaves(args[0]), jax.tree.leaves(args[1])
        results = inner.definition.outputs(inner, [core_struct(p, 0) for p in primals])
        has = present(results.tree, call.tree.children()[1])

        def along(tangents: list[Any]) -> Any:
            full = fill(call.like.operands, tangents)
            pushed = inner.definition.push_general(inner, primals, full)
            kept = fill(differentiable(results).kept, pushed)
            return _pairing([p for p, h in zip(kept, has, strict=True) if h], cotangents)

        return _per_element(along, outputs.structs, 1j, -1j)


JVP_NAMES = {kind.name: kind for kind in (FiniteDifference, ComplexStep, FromVjp)}


def named_jvp(definition: Any, name: str) -> _Numerical:
    if name not in JVP_NAMES:
        raise TypeError(
            f"{definition.label}: def_jvp({name!r}) is not known; give a rule, or one of"
            f" {', '.join(map(repr, JVP_NAMES))}"
        )
    _no_circle(definition, name, "vjp", FromJvp)
    return JVP_NAMES[name](definition)


def named_vjp(definition: Any, name: str) -> _Numerical:
    if name != FromJvp.name:
        raise TypeError(
            f"{definition.label}: def_vjp({name!r}) is not known; give a rule, or 'from-jvp'"
        )
    _no_circle(definition, name, "jvp", FromVjp)
    return FromJvp(definition)


def _no_circle(definition: Any, name: str, other: str, kind: type) -> None:
    known = definition.rules.get(other)
    if name in (FromVjp.name, FromJvp.name) and known and isinstance(known.traced, kind):
        raise TypeError(
            f"{definition.label}: {name!r} cannot be, since its def_{other} is"
            f" {known.traced.name!r} already; one of the two must be a rule"
        )


def _kept(call: Call, outputs: Outputs, leaves: Sequence[Any]) -> list[Any]:
    """The results of a call that have a tangent."""
    results = call.definition.bind(call, leaves)
    structs = [core_struct(leaf, 0) for leaf in leaves]
    full = fill(call.definition.outputs(call, structs).kept, results)
    return [y for y, k in zip(full, outputs.kept, strict=True) if k]


def _largest(leaves: Sequence[Any]) -> Any:
    sizes = [jnp.max(jnp.abs(x)) for x in leaves if x.size]
    if not sizes:
        return jnp.zeros(())
    dtype = jnp.result_type(*sizes)
    return jnp.max(jnp.stack([s.astype(dtype) for s in sizes]))


def _pairing(first: Sequence[Any], second: Sequence[Any]) -> Any:
    """``Re(sum a b)`` over all leaves."""
    terms = [jnp.real(jnp.sum(a * b)) for a, b in zip(first, second, strict=True)]
    return sum(terms[1:], start=terms[0])


def _per_element(
    along: Callable, structs: Sequence[Any], imaginary_unit: complex, factor: complex
) -> list[Any]:
    """``along(e)`` for every unit vector e; complex entries get their imaginary part, too."""
    found = []
    for index, struct in enumerate(structs):
        size = int(np.prod(struct.shape))
        if size == 0:
            found.append(jnp.zeros(struct.shape, struct.dtype))
            continue
        basis = jnp.eye(size, dtype=struct.dtype).reshape(size, *struct.shape)

        def of_unit(unit: Any, index: int = index) -> Any:
            units = [jnp.zeros(s.shape, s.dtype) for s in structs]
            units[index] = unit
            return along(units)

        values = jax.vmap(of_unit)(basis).astype(struct.dtype)
        if _dtypes.is_complex(struct.dtype):
            rotated = jax.vmap(of_unit)(basis * np.asarray(imaginary_unit, struct.dtype))
            values = values + np.asarray(factor, struct.dtype) * rotated.astype(struct.dtype)
        found.append(values.reshape(struct.shape))
    return found


# Dense Jacobians --------------------------------------------------------------------------------


@dataclass(frozen=True)
class JacobianShapes:
    """Results of ``f.jacobian``: for each result of f a tuple with a Jacobian per argument."""

    parent: Any

    bare = True

    def _inner(self, call: Call) -> Call:
        return Call(self.parent, call.static, call.tree)

    def core_ranks(self, label: str, ranks: Sequence[int], names: Sequence[str]) -> Any:
        return self.parent.role.shapes.core_ranks(label, ranks, names)

    def check(self, label: str, core_shapes: Sequence[Any], names: Sequence[str]) -> None:
        self.parent.role.shapes.check(label, core_shapes, names)

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        tree, result_ranks = self.parent.role.shapes.results(self._inner(call), ranks)
        return self._tree(call, tree), [r + rank for r in result_ranks for rank in ranks]

    def _tree(self, call: Call, results: PyTreeDef) -> PyTreeDef:
        skeleton = tree_unflatten(call.tree, [0] * call.tree.num_leaves)
        if len(skeleton) == 1:
            (skeleton,) = skeleton
        return tree_structure(tree_unflatten(results, [skeleton] * results.num_leaves))

    def outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        results = differentiable(self.parent.outputs(self._inner(call), structs))
        kinds = call.definition.role.kinds(call, structs)
        per_leaf = iter(zip(results.structs, results.declared, strict=True))
        kept, made, declared = [], [], []
        for leaf_kept in results.kept:
            result: Any = None
            dtype: Any = None
            if leaf_kept:
                result, dtype = next(per_leaf)
            for operand, kind in zip(structs, kinds, strict=True):
                kept.append(leaf_kept and kind is not None)
                if kept[-1]:
                    shape = result.shape + operand.shape
                    made.append(jax.ShapeDtypeStruct(shape, result.dtype))
                    declared.append(dtype)
        tree = self._tree(call, results.tree)
        return Outputs(tree, tuple(kept), tuple(made), tuple(declared))
