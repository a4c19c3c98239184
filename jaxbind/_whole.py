"""Whole derivatives by JAX, called directly: ``f.jvp`` and ``f.vjp`` where no rule is all of it.

Of a function that is linear in some arguments the rules are a part only, and a function without
a pullback of its own may still have one by its transposes: JAX puts them together. What is given
and what comes back are as for derivatives with a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import tree_flatten, tree_structure, tree_unflatten

from jaxbind import _dtypes
from jaxbind._call import Call, PyTreeDef, cotangents_present, fill, leaves_up_to
from jaxbind._result import describe
from jaxbind._roles import NONDIFF
from jaxbind._static import Static


def push(parent: Any, label: str, static: Static, args: tuple) -> Any:
    """``t_y = J(x) t_x``: ``None`` for a result that has no tangent.

    Args:
      parent: the definition of the function.
      label: how errors call the pushforward.
      static: its static parameters.
      args: primals and tangents.

    Raises:
      TypeError: if primals or tangents are no tuples with an entry per argument, or a tangent is
        complex where its primal is real.
    """
    primals = entries(label, parent.label, "primals", args[0])
    tangents = entries(label, parent.label, "tangents", args[1])
    leaves, tree = tree_flatten(primals)
    given = per_leaf(label, tree, tangents)
    moves = [
        m and t is not None for m, t in zip(_movable(parent, static, primals), given, strict=True)
    ]
    chosen = [jnp.asarray(leaf) for leaf, m in zip(leaves, moves, strict=True) if m]
    along = [
        _like(label, "tangent", t, leaf)
        for t, leaf in zip((t for t, m in zip(given, moves, strict=True) if m), chosen, strict=True)
    ]
    pushed = jax.jvp(_of_moving(parent, static, leaves, tree, moves), chosen, along)[1]
    return jax.tree.map(lambda t: None if t.dtype == jax.dtypes.float0 else t, pushed)


def pull(parent: Any, label: str, static: Static, args: tuple) -> tuple:
    """``ct_x = J(x)ᵀ ct_y``: ``None`` for an argument that has no derivative.

    Args:
      parent: the definition of the function.
      label: how errors call the pullback.
      static: its static parameters.
      args: primals, and cotangents in the structure of the result (``None`` for integers, and for
        zeros).

    Raises:
      TypeError: if primals are no tuple with an entry per argument, or the cotangents have
        another structure than the result, or one is complex where its result is real.
    """
    primals = entries(label, parent.label, "primals", args[0])
    leaves, tree = tree_flatten(primals)
    moves = _movable(parent, static, primals)
    chosen = [jnp.asarray(leaf) for leaf, m in zip(leaves, moves, strict=True) if m]
    of_moving = _of_moving(parent, static, leaves, tree, moves)

    def inner(*moved: Any) -> tuple[list[Any], Any]:
        result = of_moving(*moved)
        return [y for y in jax.tree.leaves(result) if _dtypes.is_inexact(y.dtype)], result

    _, back, result = jax.vjp(inner, *chosen, has_aux=True)
    cotangents = [
        jnp.zeros_like(y) if ct is None else _like(label, "cotangent", ct, y)
        for ct, y in _with_results(label, result, args[1])
        if _dtypes.is_inexact(y.dtype)
    ]
    return tree_unflatten(tree, fill(moves, back(cotangents)))


def entries(label: str, parent_label: str, name: str, value: Any) -> tuple:
    """``value`` as a tuple with an entry per positional argument.

    Raises:
      TypeError: if it is neither a tuple nor a list.
    """
    if not isinstance(value, (tuple, list)):
        raise TypeError(
            f"{label}: {name} must be a tuple with an entry per positional argument of"
            f" {parent_label}; got {describe(value)}"
        )
    return tuple(value)


def per_leaf(label: str, tree: PyTreeDef, tangents: tuple) -> list[Any]:
    """A tangent, or ``None``, for each leaf of the primals, whose structure ``tree`` is.

    Raises:
      TypeError: for another number of tangents than of primals.
    """
    children = tree.children()
    if len(tangents) != len(children):
        raise TypeError(
            f"{label}: got {len(tangents)} tangents for {len(children)} primals; give"
            " one per positional argument, None where there is none"
        )
    return leaves_up_to(tree, tangents)


def _with_results(label: str, result: Any, cotangents: Any) -> list[tuple[Any, Any]]:
    """Pairs of a cotangent, or ``None``, and its result."""
    values, tree = tree_flatten(result)
    cotangents_present(label, tree, tree_structure(cotangents))
    given = leaves_up_to(tree, cotangents)
    return list(zip(given, values, strict=True))


def _movable(parent: Any, static: Static, primals: tuple) -> list[bool]:
    """Which leaves of the primals have a derivative."""
    leaves, tree = tree_flatten(primals)
    _, like = parent.role.prepare(parent, primals)
    structs = [jax.typeof(jnp.asarray(leaf)) for leaf in leaves]
    kinds = parent.role.kinds(Call(parent, static, tree, 0, like), structs)
    return [kind is not NONDIFF for kind in kinds]


def _like(label: str, what: str, value: Any, wanted: Any) -> jax.Array:
    """A tangent or cotangent in the dtype of its primal or result."""
    value = jnp.asarray(value)
    if _dtypes.is_complex(value.dtype) and not _dtypes.is_complex(wanted.dtype):
        raise TypeError(
            f"{label}: a {what} is {value.dtype.name}, where {wanted.dtype.name} is wanted; give"
            " its real part"
        )
    return value.astype(wanted.dtype)


def _of_moving(
    parent: Any, static: Static, leaves: Sequence[Any], tree: Any, moves: Sequence[bool]
) -> Callable:
    def inner(*chosen: Any) -> Any:
        full = [c if m else x for c, m, x in zip(fill(moves, chosen), moves, leaves, strict=True)]
        return parent.apply(static, *tree_unflatten(tree, full))

    return inner
