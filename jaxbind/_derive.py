"""Derivatives made from others: Jacobians, finite differences, complex steps.

They are traced rules in terms of the binding itself, so JAX differentiates them further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten, tree_map, tree_structure, tree_unflatten

from jaxbind import _dtypes
from jaxbind._call import Call, Outputs, PyTreeDef, leaves_up_to
from jaxbind._roles import differentiable


def _is_none(value: Any) -> bool:
    return value is None


def linear_jvp(binding: Any, primals: Sequence[Any], tangents: Sequence[Any], **static: Any):
    """The pushforward of a linear function is the function."""
    operands = [p if t is None else t for p, t in zip(primals, tangents, strict=True)]
    return binding(*operands, **static)


def pull(binding: Any, primals: Sequence[Any], cotangents: Any, **static: Any) -> tuple:
    """The pullback by JAX, for functions of which the transpose or a traced rule is known."""
    leaves, tree = tree_flatten(tuple(primals))
    wanted = [_dtypes.is_inexact(jnp.result_type(leaf)) for leaf in leaves]

    def inner(*chosen: Any) -> Any:
        remaining = iter(chosen)
        full = [next(remaining) if w else leaf for leaf, w in zip(leaves, wanted, strict=True)]
        return binding(*tree_unflatten(tree, full), **static)

    _, back = jax.vjp(inner, *(leaf for leaf, w in zip(leaves, wanted, strict=True) if w))
    pulled = iter(back(cotangents))
    return tree_unflatten(tree, [next(pulled) if w else None for w in wanted])


# Numerical derivatives --------------------------------------------------------------------------


def named_jvp(binding: Any, name: str) -> Callable:
    makers = {
        "finite-difference": _finite_difference,
        "complex-step": _complex_step,
        "from-vjp": _from_vjp,
    }
    if name not in makers:
        raise TypeError(
            f"{binding.definition.label}: def_jvp({name!r}) is not known; give a rule, or one of"
            f" {', '.join(map(repr, makers))}"
        )
    return makers[name](binding)


def named_vjp(binding: Any, name: str) -> Callable:
    if name != "from-jvp":
        raise TypeError(
            f"{binding.definition.label}: def_vjp({name!r}) is not known; give a rule, or"
            " 'from-jvp'"
        )
    return _from_jvp(binding)


def _moved(primals: tuple, tangents: tuple, step: Any) -> tuple:
    """``primals + step * tangents``, where there is a tangent."""
    return tree_map(
        lambda t, p: p if t is None else p + (step * t).astype(p.dtype),
        tangents,
        primals,
        is_leaf=_is_none,
    )


def _norm(tree: Any) -> Any:
    leaves = [jnp.max(jnp.abs(x), initial=0.0) for x in jax.tree.leaves(tree) if x.size]
    return jnp.max(jnp.stack(leaves)) if leaves else jnp.zeros(())


def _finite_difference(binding: Any) -> Callable:
    def finite_difference(primals: tuple, tangents: tuple, **static: Any) -> Any:
        """Central difference along the tangent: two calls; error of order step².

        The step ``eps**(1/3) * max(1, |x|) / |t|`` balances truncation and rounding
        (Press et al., Numerical Recipes, 3rd ed., section 5.7).
        """
        moving = [
            p
            for p, t in zip(
                jax.tree.leaves(primals),
                leaves_up_to(tree_structure(primals), tangents),
                strict=True,
            )
            if t is not None
        ]
        dtype = jnp.finfo(jnp.result_type(*moving)).dtype
        scale = jax.lax.stop_gradient(jnp.maximum(1.0, _norm(moving))).astype(dtype)
        size = jax.lax.stop_gradient(_norm(tangents)).astype(dtype)
        size = jnp.where(size == 0, jnp.ones((), dtype), size)
        step = np.asarray(float(jnp.finfo(dtype).eps) ** (1 / 3), dtype) * scale / size
        plus = binding(*_moved(primals, tangents, step), **static)
        minus = binding(*_moved(primals, tangents, -step), **static)
        return tree_map(lambda a, b: ((a - b) / (2 * step)).astype(a.dtype), plus, minus)

    return finite_difference


def _complex_step(binding: Any) -> Callable:
    def complex_step(primals: tuple, tangents: tuple, **static: Any) -> Any:
        """``Im f(x + i h t) / h``: one call; exact to rounding for analytic functions.

        Squire and Trapp, SIAM Review 40 (1998) 110. The operands must be real.
        """
        for leaf in jax.tree.leaves(primals):
            if _dtypes.is_complex(leaf.dtype):
                raise TypeError(
                    f"{binding.definition.label}.def_jvp('complex-step') needs real operands; got"
                    f" {leaf.dtype.name}. For complex ones use 'finite-difference' or a rule"
                )
        step = 1e-30
        moved = tree_map(
            lambda t, p: p if t is None else jax.lax.complex(p, (step * t).astype(p.dtype)),
            tangents,
            primals,
            is_leaf=_is_none,
        )
        result = binding(*moved, **static)
        for leaf in jax.tree.leaves(result):
            if not _dtypes.is_complex(leaf.dtype):
                raise TypeError(
                    f"{binding.definition.label}.def_jvp('complex-step'): with complex operands"
                    f" its result is declared {leaf.dtype.name}; declare a complex one (dtype="
                    " or out=) or use 'finite-difference'"
                )
        return tree_map(lambda y: (jnp.imag(y) / step).astype(jnp.real(y).dtype), result)

    return complex_step


def _from_vjp(binding: Any) -> Callable:
    def from_vjp(primals: tuple, tangents: tuple, **static: Any) -> Any:
        """``t_y = J t_x`` with the rows of J from the vjp rule, one per element of the result."""
        result = jax.eval_shape(lambda *p: binding(*p, **static), *primals)
        leaves, tree = tree_flatten(result)
        kept = [_dtypes.is_inexact(leaf.dtype) for leaf in leaves]

        def dot(cotangents: list[Any]) -> Any:
            remaining = iter(cotangents)
            full = tree_unflatten(tree, [next(remaining) if k else None for k in kept])
            pulled = binding.vjp(primals, full, **static)
            terms = [
                jnp.sum(c * t)
                for c, t in zip(
                    leaves_up_to(operands, pulled),
                    leaves_up_to(operands, tangents),
                    strict=True,
                )
                if c is not None and t is not None
            ]
            return sum(terms[1:], start=terms[0])

        operands = tree_structure(primals)
        structs = [leaf for leaf, k in zip(leaves, kept, strict=True) if k]
        pushed = iter(_per_element(dot, structs))
        return tree_unflatten(tree, [next(pushed) if k else None for k in kept])

    return from_vjp


def _from_jvp(binding: Any) -> Callable:
    def from_jvp(primals: tuple, cotangents: Any, **static: Any) -> tuple:
        """``ct_x = Jᵀ ct_y`` with the columns of J from the jvp rule, one per element of x."""
        leaves, tree = tree_flatten(primals)
        wanted = [_dtypes.is_inexact(leaf.dtype) for leaf in leaves]
        moving = [leaf for leaf, w in zip(leaves, wanted, strict=True) if w]

        def dot(tangents: list[Any]) -> Any:
            remaining = iter(tangents)
            full = tree_unflatten(tree, [next(remaining) if w else None for w in wanted])
            pushed = binding.jvp(primals, full, **static)
            terms = [
                jnp.sum(t * c)
                for t, c in zip(
                    jax.tree.leaves(pushed, is_leaf=_is_none),
                    jax.tree.leaves(cotangents, is_leaf=_is_none),
                    strict=True,
                )
                if t is not None and c is not None
            ]
            return sum(terms[1:], start=terms[0])

        pulled = iter(_per_element(dot, moving))
        return tree_unflatten(tree, [next(pulled) if w else None for w in wanted])

    return from_jvp


def _per_element(dot: Callable, structs: Sequence[Any]) -> list[Any]:
    """``dot(e)`` for every unit vector e of the given shapes, arranged in those shapes."""
    found = []
    for index, struct in enumerate(structs):
        size = int(np.prod(struct.shape))
        basis = jnp.eye(size, dtype=struct.dtype).reshape(size, *struct.shape)

        def along(unit: Any, index: int = index) -> Any:
            units = [jnp.zeros(s.shape, s.dtype) for s in structs]
            units[index] = unit
            return dot(units)

        values = jax.vmap(along)(basis) if size else jnp.zeros((0,), struct.dtype)
        found.append(values.reshape(struct.shape).astype(struct.dtype))
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
