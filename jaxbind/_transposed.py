"""The role of a transposed function."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbind import _dtypes
from jaxbind._call import Call, Outputs, PyTreeDef, fill, joined, owners, present
from jaxbind._roles import GENERAL, LINEAR, NONDIFF, Kinds, Like, core_structs
from jaxbind._shapes import ARRAY, FromSignature
from jaxbind._wrt import by_argument

if TYPE_CHECKING:
    pass


class Transposed:
    """``f.transpose(*others, cotangents)``, for a group of arguments in which f is linear.

    The cotangent of a single linear argument is bare, in ``out`` too: ``bare``.
    """

    mixed = False

    def lacks(self, call: Call, structs: Sequence[Any]) -> bool:
        del call, structs
        signature = getattr(self.parent.role.shapes, "signature", None)
        return signature is not None and any(d.optional for core in signature.inputs for d in core)

    bare = True

    def __init__(self, parent: Any, group: Hashable):
        self.parent = parent
        self.group = group

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
        compute = self.parent.compute_dtype
        return tuple(
            np.dtype(s.dtype)
            if position in nondiff
            else _dtypes.computing(np.dtype(s.dtype), compute)
            for (position, _), s in zip(owners(call.tree), structs, strict=True)
        )

    def core_ranks(self, call: Call, ranks: Sequence[int]) -> list[int] | None:
        shapes = self.parent.role.shapes
        if not isinstance(shapes, FromSignature):
            return None
        signature = shapes.signature
        others = [len(signature.inputs[p]) for p in self._positions(call)]
        return others + [len(core) for core in signature.outputs]

    def check(self, call: Call, shapes: Sequence[Sequence[Any]]) -> None:
        del call, shapes

    def outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        like = call.like
        assert isinstance(like, Like)
        compute = self.parent.compute_dtype
        structs = tuple(s for s, w in zip(like.structs, like.wanted, strict=True) if w)
        declared = tuple(_dtypes.computing(np.dtype(s.dtype), compute) for s in structs)
        return Outputs(_group_tree(like), like.wanted, structs, declared)

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
    cotangents = args[-1] if len(signature.outputs) > 1 else (args[-1],)
    cores = [signature.inputs[p] for p in others] + list(signature.outputs)
    known = [*args[:-1], *cotangents]
    sizes: dict[str, Any] = {}
    for core, value in zip(cores, known, strict=True):
        shape = np.shape(value)
        sizes.update(zip((d.name for d in core), shape[len(shape) - len(core) :], strict=True))
    dtype = _dtypes.canonical(jnp.result_type(*cotangents))
    structs = []
    for p in positions:
        core = signature.inputs[p]
        if any(d.size is None and d.name not in sizes for d in core):
            raise TypeError(remedy)
        shape = tuple(d.size if d.size is not None else sizes[d.name] for d in core)
        structs.append(jax.ShapeDtypeStruct(shape, dtype))
    return Like(positions, (ARRAY,) * len(positions), tuple(structs), (True,) * len(structs))
