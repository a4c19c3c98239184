"""The role of a transposed function."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten

from jaxbind import _dtypes
from jaxbind._call import (
    Call,
    Outputs,
    PyTreeDef,
    cotangents_present,
    fill,
    joined,
    owners,
    present,
)
from jaxbind._parameters import Parameters
from jaxbind._roles import GENERAL, LINEAR, NONDIFF, Kinds, Like, core_structs
from jaxbind._shapes import ARRAY, FromSignature, Shapes
from jaxbind._signature import Signature
from jaxbind._wrt import by_argument


class Transposed:
    """``f.transpose(*others, cotangents)``, for a group of arguments in which f is linear.

    The cotangent of a single linear argument is bare, in ``out`` too: ``bare``.
    """

    mixed = False
    gives_cotangents = True
    takes_wrt = True
    bare = True
    whole = None

    def __init__(self, parent: Any, group: Hashable):
        self.parent = parent
        self.group = group

    @property
    def positional(self) -> int | None:
        """How many positional arguments a rule gets, if that is known."""
        calling, linear = self.parent.calling, self.parent.role.linear
        count = calling.fill or len(calling.operands)
        group = linear if self.group == LINEAR else {self.group}
        if calling.variadic or (group is True and count > 1):  # which depends on their dtypes
            return None
        return 1 if group is True else count - len(group) + 1

    def calling(self, parameters: Parameters) -> Parameters:
        """How it is called, with the static parameters of the function."""
        return replace(parameters, operands=(), defaults={}, by_keyword=frozenset(), variadic=True)

    def lacks(self, call: Call, structs: Sequence[Any]) -> bool:
        del call, structs
        signature = getattr(self.parent.role.shapes, "signature", None)
        return signature is not None and any(d.optional for core in signature.inputs for d in core)

    def operand_name(self, definition: Any, tree: PyTreeDef, index: int) -> str:
        position, path = owners(tree)[index]
        last = len(tree.children()) - 1
        name = "cotangents" if position == last else self._name(position, last)
        return f"argument {position} ({name}{path})"

    def _name(self, position: int, last: int) -> str:
        """The parent's name of one of our arguments but the last."""
        group = self.parent.role.linear if self.group == LINEAR else {self.group}
        if group is True:  # in all that have a derivative, which depends on their dtypes
            return "operand"
        others = [p for p in range(last + len(group)) if p not in group]
        return self.parent.argument_name(others[position])

    def _positions(self, call: Call) -> list[int]:
        """The parent's positions of our arguments, without the cotangents."""
        like = call.like
        assert isinstance(like, Like)
        total = len(call.tree.children()) - 1 + len(like.positions)
        return [p for p in range(total) if p not in like.positions]

    def kinds(self, call: Call, structs: Sequence[Any]) -> Kinds:
        positions = self._positions(call)
        role = self.parent.role
        found: list[Hashable | None] = []
        for (position, _), s in zip(owners(call.tree), structs, strict=True):
            if position == len(positions):
                found.append("cotangents")
            elif not _dtypes.is_inexact(s.dtype):
                found.append(NONDIFF)
            else:
                found.append(role.kind(positions[position]))
        return tuple(found)

    def kind(self, position: int) -> Hashable | None:  # of one argument of a linear parent
        del position
        return GENERAL

    def seen(self, call: Call, structs: Sequence[Any]) -> tuple[np.dtype, ...]:
        kind = self.parent.role.kind
        nondiff = {i for i, p in enumerate(self._positions(call)) if kind(p) is NONDIFF}
        compute = self.parent.options.compute_dtype
        return tuple(
            np.dtype(s.dtype)
            if position in nondiff
            else _dtypes.computing(np.dtype(s.dtype), compute)
            for (position, _), s in zip(owners(call.tree), structs, strict=True)
        )

    def core_ranks(self, call: Call, ranks: Sequence[int]) -> list[int] | None:
        turned = self._turned(call)
        if turned is None:
            return None
        names = [call.operand(i) for i in range(len(ranks))]
        return turned.core_ranks(call.definition.label, ranks, names)

    def check(self, call: Call, shapes: Sequence[Sequence[Any]]) -> None:
        turned = self._turned(call)
        if turned is not None:
            names = [call.operand(i) for i in range(len(shapes))]
            turned.check(call.definition.label, shapes, names)

    def _turned(self, call: Call) -> FromSignature | None:
        """Our shapes, where the parent has a signature."""
        like = call.like
        assert isinstance(like, Like)
        return _turned(
            call.definition.label, self.parent.role.shapes, like.positions, call.tree.children()[-1]
        )

    def outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        like = call.like
        assert isinstance(like, Like)
        compute = self.parent.options.compute_dtype
        structs = tuple(s for s, w in zip(like.structs, like.wanted, strict=True) if w)
        declared = tuple(_dtypes.computing(np.dtype(s.dtype), compute) for s in structs)
        return Outputs(_group_tree(like), like.wanted, structs, declared)

    def completed(self, call: Call, structs: Sequence[Any]) -> Any:
        del structs
        like = call.like
        assert isinstance(like, Like)
        return like._replace(wanted=(True,) * len(like.structs))

    def wanted(self, call: Call) -> tuple[bool, ...]:
        like = call.like
        assert isinstance(like, Like)
        flags = dict(
            zip(like.positions, by_argument(joined(*like.trees), like.wanted), strict=True)
        )
        total = len(call.tree.children()) - 1 + len(like.positions)
        return tuple(flags.get(p, False) for p in range(total))

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        del ranks
        like = call.like
        assert isinstance(like, Like) and isinstance(self.parent.role.shapes, FromSignature)
        inputs = self.parent.role.shapes.signature.inputs
        return _group_tree(like), [len(inputs[p]) for p in like.positions]

    def prepare(self, definition: Any, args: tuple) -> tuple[tuple, Any]:
        return args, _deduce_like(self.parent, definition, self.group, args)

    def transpose(
        self, call: Call, group: Hashable, operands: Sequence[Any], cts: Sequence[Any]
    ) -> tuple[list[int], list[Any]]:
        """With u for our cotangents: ``<u, Tx(y, ct)> = <f(u, y), ct>``.

        So transposed in ``ct`` it is f(u, y); in another argument y of a multilinear f it is
        f's own transpose there, with u in the place of x.
        """
        like = call.like
        assert isinstance(like, Like)
        positions = self._positions(call)
        kinds = self.kinds(call, core_structs(call, operands))
        members = [i for i, kind in enumerate(kinds) if kind == group]
        own = owners(call.tree)
        children = call.tree.children()
        # the parent's operands: x := u (zeros where JAX knows that u is zero), y as it is
        u = iter(
            jnp.zeros((1,) * call.loop + s.shape, s.dtype) if ct is None else ct
            for ct, s in zip(fill(like.wanted, cts), like.structs, strict=True)
        )
        trees, leaves = [], []
        for position in range(len(positions) + len(like.positions)):
            if position in like.positions:
                tree = like.trees[like.positions.index(position)]
                part = [next(u) for _ in range(tree.num_leaves)]
            else:
                mine = positions.index(position)
                tree = children[mine]
                part = [x for x, (p, _) in zip(operands, own, strict=True) if p == mine]
            trees.append(tree)
            leaves.extend(part)
        parent_call = Call(self.parent, call.static, joined(*trees), call.loop)
        if group == "cotangents":
            results = call.definition.bind(parent_call, leaves)
            outputs = self.parent.outputs(parent_call, core_structs(parent_call, leaves))
            has = present(outputs.tree, children[-1])
            return members, [r for r, h in zip(results, has, strict=True) if h]
        parent_cts = [x for x, (p, _) in zip(operands, own, strict=True) if p == len(positions)]
        outputs = self.parent.outputs(parent_call, core_structs(parent_call, leaves))
        full = fill(present(outputs.tree, children[-1]), parent_cts)
        aligned = [ct for ct, k in zip(full, outputs.kept, strict=True) if k]
        _, results = self.parent.role.transpose(parent_call, group, leaves, aligned)
        return members, results


def _group_tree(like: Like) -> PyTreeDef:
    """The structure of the cotangents: that of the argument, or a tuple of several."""
    return like.trees[0] if len(like.trees) == 1 else joined(*like.trees)


def _deduce_like(parent: Any, definition: Any, group: Hashable, args: tuple) -> Like:
    """For ``f.transpose(...)`` called directly: shapes of the arguments of f, by its signature.

    Raises:
      TypeError: where the signature does not tell them.
    """
    shapes = parent.role.shapes
    remedy = (
        f"{definition.label}: called directly, the shape of the argument that was transposed is"
        f" known only where {parent.label} has a signature all of whose input dimensions"
        " stand in the other operands or results; use jax.linear_transpose"
        f"({parent.label}, jax.ShapeDtypeStruct(...)) instead"
    )
    if not isinstance(shapes, FromSignature):
        raise TypeError(remedy)
    signature = shapes.signature
    total = len(signature.inputs)
    if group == LINEAR:
        positions = tuple(p for p in range(total) if parent.role.kind(p) == LINEAR)
    else:
        assert isinstance(group, int)
        positions = (group,)
    others = [p for p in range(total) if p not in positions]
    if len(args) != len(others) + 1:
        raise TypeError(
            f"{definition.label}: got {len(args)} arguments; it takes {len(others) + 1}: the"
            " arguments in which the function is not linear, then the cotangents"
        )
    leaves, tree = tree_flatten(args)
    turned: Any = _turned(definition.label, shapes, positions, tree.children()[-1])
    names = [definition.operand_name(tree, i) for i in range(len(leaves))]
    ranks = turned.core_ranks(definition.label, [np.ndim(x) for x in leaves], names)
    cores = [np.shape(x)[np.ndim(x) - rank :] for x, rank in zip(leaves, ranks, strict=True)]
    turned.check(definition.label, cores, names)
    resolved = turned.signature.of_core_ranks(ranks)
    if resolved.computed():
        raise TypeError(remedy)
    dtype = _dtypes.canonical(jnp.result_type(*leaves[len(others) :]))
    sizes = resolved.output_shapes(resolved.sizes(cores, names))
    structs = tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in sizes)
    return Like(positions, (ARRAY,) * len(positions), structs, (True,) * len(structs))


def _turned(
    label: str, shapes: Shapes, positions: tuple[int, ...], cotangents: PyTreeDef
) -> FromSignature | None:
    """The shapes of the transpose in ``positions``: the other inputs and outputs come first.

    Raises:
      TypeError: if the cotangents have another structure than the results.
    """
    if not isinstance(shapes, FromSignature):
        return None
    signature = shapes.signature
    others = [core for p, core in enumerate(signature.inputs) if p not in positions]
    has = cotangents_present(label, shapes.tree, cotangents)
    results = [core for core, h in zip(signature.outputs, has, strict=True) if h]
    taken = tuple(signature.inputs[p] for p in positions)
    return FromSignature(Signature((*others, *results), taken), None, None)
