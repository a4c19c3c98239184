"""Derivatives made from others: Jacobians, finite differences, complex steps.

They are traced rules in terms of the binding itself, so JAX differentiates them further.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_structure, tree_unflatten

from jaxbind import _dtypes
from jaxbind._call import (
    Call,
    Outputs,
    PyTreeDef,
    core_struct,
    fill,
    leaves_up_to,
    present,
)
from jaxbind._missing import MissingRule
from jaxbind._roles import differentiable

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

    The step ``eps**(1/3) * max(1, |x|)`` along ``t / |t|`` balances truncation and rounding (Press
    et al., Numerical Recipes, 3rd ed., section 5.7), with the eps of the coarsest dtype on the
    way: of the operands that move, of what the function sees of them, and of the results.
    """

    name = "finite-difference"

    def __call__(self, call: Call, outputs: Outputs, args: tuple) -> list[Any]:
        inner = self.parent_call(call)
        primals, tangents = jax.tree.leaves(args[0]), leaves_up_to(inner.tree, args[1])
        moving = [p for p, t in zip(primals, tangents, strict=True) if t is not None]
        dtype = jnp.finfo(jnp.result_type(*moving)).dtype
        along, size = _unit(tangents, dtype)
        scale = jax.lax.stop_gradient(jnp.maximum(1.0, _largest(moving)).astype(dtype))
        step = scale * np.asarray(_coarsest(inner, outputs, primals, tangents) ** (1 / 3), dtype)

        def shifted(by: Any) -> list[Any]:
            leaves = [
                p if t is None else p + (by * t).astype(p.dtype)
                for p, t in zip(primals, along, strict=True)
            ]
            return _kept(inner, outputs, leaves)

        pairs = zip(shifted(step), shifted(-step), strict=True)
        return [((plus - minus) / (2 * step) * size).astype(plus.dtype) for plus, minus in pairs]


class ComplexStep(_Numerical):
    """``Im f(x + i h t) / h``: one call; exact to rounding for analytic functions.

    Squire and Trapp, SIAM Review 40 (1998) 110. The operands must be real. The step is taken
    along ``t / |t|``, whatever the size of t; its square is far below eps, and it is far above
    the smallest number of the dtype.
    """

    name = "complex-step"

    def __call__(self, call: Call, outputs: Outputs, args: tuple) -> list[Any]:
        inner = self.parent_call(call)
        primals, tangents = jax.tree.leaves(args[0]), leaves_up_to(inner.tree, args[1])
        for p, t in zip(primals, tangents, strict=True):
            if t is not None and _dtypes.is_complex(p.dtype):
                raise MissingRule(
                    f"{self.label}.def_jvp('complex-step') needs real operands; got {p.dtype.name}."
                    " For complex ones use 'finite-difference' or a rule"
                )
        along, size = _unit(tangents, jnp.result_type(*(t for t in tangents if t is not None)))
        double = _coarsest(inner, outputs, primals, tangents) <= np.finfo(np.float64).eps
        step = 1e-30 if double else 1e-15
        moved = [
            p if t is None else _complex(p, step * t) for p, t in zip(primals, along, strict=True)
        ]
        results = _kept(inner, outputs, moved)
        for leaf in results:
            if not _dtypes.is_complex(leaf.dtype):
                raise MissingRule(
                    f"{self.label}.def_jvp('complex-step'): with complex operands its result is"
                    f" declared {leaf.dtype.name}; declare a complex one (dtype= or out=) or use"
                    " 'finite-difference'"
                )
        return [
            (jnp.imag(y) / step * size).astype(struct.dtype)
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

        def along(cotangents: list[Any]) -> Any:
            pulled = inner.definition.pull_general(inner, primals, wanted, cotangents)
            return _pairing(pulled, given)

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


def _complex(real: Any, imaginary: Any) -> jax.Array:
    # there are no complex numbers of less than single precision
    dtype = real.dtype if real.dtype == np.float64 else np.dtype(np.float32)
    return jax.lax.complex(real.astype(dtype), imaginary.astype(dtype))


def _coarsest(
    call: Call, outputs: Outputs, primals: Sequence[Any], tangents: Sequence[Any]
) -> float:
    """The eps of the coarsest dtype between what moves and the results."""
    seen = call.definition.role.seen(call, [core_struct(p, 0) for p in primals])
    passed = [s.dtype for s in outputs.structs] + list(outputs.declared)
    for p, known, t in zip(primals, seen, tangents, strict=True):
        passed += [] if t is None else [p.dtype, known]
    return max(float(jnp.finfo(d).eps) for d in passed if _dtypes.is_inexact(d))


def _unit(tangents: Sequence[Any], dtype: Any) -> tuple[list[Any], Any]:
    """The tangents (or ``None``) divided by the largest number in them, and that number.

    It is no part of the derivative, which is linear in the tangents.
    """
    size = _largest([t for t in tangents if t is not None]).astype(dtype)
    size = jax.lax.stop_gradient(jnp.where(size == 0, jnp.ones((), dtype), size))
    return [None if t is None else (t / size).astype(t.dtype) for t in tangents], size


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
        size = math.prod(struct.shape)  # symbolic in a program for several sizes
        if isinstance(size, int) and size == 0:
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

    def core_ranks(
        self, label: str, ranks: Sequence[int], names: Sequence[str], absent: Sequence[str] = ()
    ) -> Any:
        return self.parent.role.shapes.core_ranks(label, ranks, names, absent)

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
