"""`Call`: the one parameter of the primitive, and how its operands are laid out.

Operands and results are flat lists of arrays. Each operand has ``loop`` leading loop
dimensions, of size 1 or of the full size, and its core dimensions behind them; each result
has all loop dimensions in full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path, tree_structure, tree_unflatten

from jaxbind import _jax
from jaxbind._static import Static

if TYPE_CHECKING:
    from jaxbind._definition import Definition

    PyTreeDef = Any  # a variable in JAX's stubs
else:
    from jax.tree_util import PyTreeDef


@_jax.cached_weakly
@dataclass(frozen=True, slots=True, weakref_slot=True)
class Call:
    """What is called, with which static parameters, over how many loop dimensions.

    Attributes:
      definition: compared by identity, so that no two functions share one of JAX's caches.
      static: the static parameters.
      tree: the structure of the tuple of positional arguments.
      loop: the number of leading loop dimensions of every operand.
      like: core shapes and dtypes of the results, where the operands do not tell them
        (a transposed function), or which of them are wanted (a pullback).
    """

    definition: Definition
    static: Static
    tree: PyTreeDef
    loop: int = 0
    like: Any = None

    def batched(self) -> Call:
        return replace(self, loop=self.loop + 1)

    def arguments(self, leaves: Sequence[Any]) -> tuple:
        return tree_unflatten(self.tree, leaves)

    def operand(self, index: int) -> str:
        """How errors call operand ``index``: ``argument 1 (y)``."""
        return self.definition.operand_name(self.tree, index)


class Outputs(NamedTuple):
    """The results of one core call.

    Attributes:
      tree: the structure in which the function returns them.
      kept: which leaves of that structure exist (integers have no tangent, say).
      structs: shapes and dtypes of those that do, as JAX holds them.
      declared: their dtypes as the function knows them.
    """

    tree: PyTreeDef
    kept: tuple[bool, ...]
    structs: tuple[jax.ShapeDtypeStruct, ...]
    declared: tuple[np.dtype, ...]

    def restore(self, leaves: Sequence[Any]) -> Any:
        """The user-facing result: ``None`` where nothing is kept."""
        return tree_unflatten(self.tree, fill(self.kept, leaves))


def fill(kept: Sequence[bool], leaves: Sequence[Any], missing: Any = None) -> list[Any]:
    """Spread ``leaves`` over the places that are kept."""
    remaining: Iterator[Any] = iter(leaves)
    return [next(remaining) if k else missing for k in kept]


@lru_cache(maxsize=4096)
def owners(tree: PyTreeDef) -> tuple[tuple[int, str], ...]:
    """For each leaf of an argument tuple: its argument's position and the path inside it."""
    paths, _ = tree_flatten_with_path(tree_unflatten(tree, range(tree.num_leaves)))
    return tuple((path[0].idx, jax.tree_util.keystr(path[1:])) for path, _ in paths)


@lru_cache(maxsize=4096)
def masked(tree: PyTreeDef, kept: tuple[bool, ...]) -> PyTreeDef:
    """The structure without the leaves that are not kept (``None`` in their place)."""
    return tree_structure(tree_unflatten(tree, [0 if k else None for k in kept]))


@lru_cache(maxsize=4096)
def present(full: PyTreeDef, partial: PyTreeDef) -> tuple[bool, ...]:
    """Which leaves of ``full`` the structure ``partial`` (`masked`) still has."""
    skeleton = tree_unflatten(partial, [0] * partial.num_leaves)
    return tuple(leaf is not None for leaf in leaves_up_to(full, skeleton))


def cotangents_present(label: str, results: PyTreeDef, given: PyTreeDef) -> tuple[bool, ...]:
    """`present` for cotangents that a user gives, of results with the structure ``results``.

    Raises:
      TypeError: if theirs is another one.
    """
    try:
        leaves = leaves_up_to(results, tree_unflatten(given, [0] * given.num_leaves))
    except ValueError:
        leaves = None
    if leaves is None or any(leaf not in (None, 0) for leaf in leaves):
        raise TypeError(
            f"{label}: cotangents must have the structure of the result,"
            f" {_in_words(results)}; got {_in_words(given)}. Give None for integer results"
        )
    return tuple(leaf is not None for leaf in leaves)


def _in_words(tree: PyTreeDef) -> str:
    """``(*, None)``"""
    return str(tree).removeprefix("PyTreeDef(").removesuffix(")")


@lru_cache(maxsize=4096)
def masked_arguments(tree: PyTreeDef, kept: tuple[bool, ...]) -> PyTreeDef:
    """`masked` for an argument tuple: ``None`` for a whole argument of which nothing is kept."""
    flags = iter(kept)
    children = []
    for child in tree.children():
        own = tuple(next(flags) for _ in range(child.num_leaves))
        children.append(tree_structure(None) if own and not any(own) else masked(child, own))
    return joined(*children)


def leaves_up_to(tree: PyTreeDef, value: Any) -> list[Any]:
    """The leaves of ``value``, where ``None`` may stand for all of an item of a tuple."""
    node = tree.node_data()
    if node is None or node[0] is not tuple or not isinstance(value, (tuple, list)):
        return tree.flatten_up_to(value)
    leaves: list[Any] = []
    for child, item in zip(tree.children(), value, strict=True):
        leaves += [None] * child.num_leaves if item is None else leaves_up_to(child, item)
    return leaves


@lru_cache(maxsize=4096)
def joined(*trees: PyTreeDef) -> PyTreeDef:
    """The structure of the tuple of these structures."""
    return jax.tree_util.treedef_tuple(trees)


def core_struct(aval: Any, loop: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape[loop:], aval.dtype)


def loop_shape(shapes: Sequence[Sequence[Any]], loop: int) -> tuple[Any, ...]:
    """Broadcast the loop dimensions (each is 1 or the full size)."""
    full: list[Any] = [1] * loop
    for shape in shapes:
        for axis in range(loop):
            if full[axis] == 1:
                full[axis] = shape[axis]
    return tuple(full)


def over_loops(function: Callable[..., Sequence[Any]], loop: int, operands: Sequence[Any]) -> list:
    """Apply a JAX function of core operands over the loop dimensions, as one ``vmap`` each."""
    if loop == 0 or not operands:
        return list(function(*operands))
    size = loop_shape([x.shape for x in operands], loop)[0]
    axes = [None if x.shape[0] == 1 and size != 1 else 0 for x in operands]
    inner = [jnp.squeeze(x, 0) if a is None else x for a, x in zip(axes, operands, strict=True)]
    mapped = jax.vmap(lambda *xs: over_loops(function, loop - 1, xs), in_axes=tuple(axes))
    return list(mapped(*inner))


def unbroadcast(value: Any, shape: Sequence[Any], loop: int) -> Any:
    """Sum a cotangent over the loop dimensions in which its operand has size 1."""
    axes = tuple(a for a in range(loop) if shape[a] == 1 and value.shape[a] != 1)
    return jnp.sum(value, axis=axes, keepdims=True) if axes else value
