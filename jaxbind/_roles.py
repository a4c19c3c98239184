"""What a binding stands for: a function, or the pushforward, pullback or transpose of one.

A derivative is itself a binding, so that it can have derivatives; its role says what follows
from its parent: the shapes of its results, in which operands it is linear, and what its
transpose is. With f a function, J its Jacobian at x, and Aᵀ the transpose without conjugation:

    f.jvp(x, t_x)   = J(x) t_x           linear in t_x;   transposed: f.vjp
    f.vjp(x, ct_y)  = J(x)ᵀ ct_y         linear in ct_y;  transposed: f.jvp
    f.transpose(a, ct_y)                 where f is linear in x; transposed in ct_y: f itself,
                                         in another argument of a multilinear f: f's transpose there
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad
from jax.tree_util import PyTreeDef, tree_flatten, tree_unflatten

from jaxbind import _dtypes
from jaxbind._call import Call, Outputs, core_struct, fill, joined, masked, owners
from jaxbind._shapes import ARRAY, FromSignature, Shapes
from jaxbind._static import NO_STATIC

if TYPE_CHECKING:
    from jaxbind._binding import Binding

#: kinds of operands: no derivative; by rule; anything else names a group of operands in
#: which the function is jointly linear.
NONDIFF = None
GENERAL = "general"
LINEAR = "linear"

Kinds = tuple[Hashable | None, ...]


class Like(NamedTuple):
    """The results of a transposed function: the arguments that were transposed away."""

    positions: tuple[int, ...]
    trees: tuple[PyTreeDef, ...]
    structs: tuple[jax.ShapeDtypeStruct, ...]


class Wanted(NamedTuple):
    """The results of a pullback: for which operands of its parent; and the parent's own."""

    operands: tuple[bool, ...]
    parent: tuple | None


@lru_cache(maxsize=4096)
def _present(full: PyTreeDef, partial: PyTreeDef) -> tuple[bool, ...]:
    """Which leaves of ``full`` the structure ``partial`` (with ``None`` for some) still has."""
    skeleton = tree_unflatten(partial, [0] * partial.num_leaves)
    return tuple(leaf is not None for leaf in full.flatten_up_to(skeleton))


def _structs(call: Call, operands: Sequence[Any]) -> list[jax.ShapeDtypeStruct]:
    return [core_struct(x if hasattr(x, "shape") else x.aval, call.loop) for x in operands]


@dataclass(frozen=True)
class Function:
    """A function that somebody has bound.

    Attributes:
      shapes: what was declared about its results.
      linear: positions of the arguments in which it is jointly linear; ``True``: all that
        have a derivative.
      multilinear: positions of those in each of which it is linear separately.
      nondiff: positions of those without a derivative.
      compute: the dtype that it knows, if only one.
    """

    shapes: Shapes
    linear: frozenset[int] | bool
    multilinear: frozenset[int]
    nondiff: frozenset[int]
    compute: np.dtype | None
    bare = False

    def operand_name(self, binding: Binding, tree: PyTreeDef, index: int) -> str:
        position, path = owners(tree)[index]
        return f"argument {position} ({binding.argument_name(position)}{path})"

    def kind(self, position: int) -> Hashable | None:
        if position in self.nondiff:
            return NONDIFF
        if self.linear is True or (self.linear and position in self.linear):
            return LINEAR
        return position if position in self.multilinear else GENERAL

    def kinds(self, call: Call, structs: Sequence[Any]) -> Kinds:
        return tuple(
            self.kind(position) if _dtypes.is_inexact(s.dtype) else NONDIFF
            for (position, _), s in zip(owners(call.tree), structs, strict=True)
        )

    def seen(self, call: Call, structs: Sequence[Any]) -> tuple[np.dtype, ...]:
        return tuple(
            np.dtype(s.dtype)
            if position in self.nondiff
            else _dtypes.computing(np.dtype(s.dtype), self.compute)
            for (position, _), s in zip(owners(call.tree), structs, strict=True)
        )

    def core_ranks(self, call: Call, ranks: Sequence[int]) -> list[int] | None:
        names = [call.operand(i) for i in range(len(ranks))]
        return self.shapes.core_ranks(call.binding.label, ranks, names)

    def check(self, call: Call, shapes: Sequence[Sequence[Any]]) -> None:
        names = [call.operand(i) for i in range(len(shapes))]
        self.shapes.check(call.binding.label, shapes, names)

    def outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        return self.shapes.outputs(call, structs)

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        return self.shapes.results(call, ranks)

    def prepare(self, binding: Binding, args: tuple) -> tuple[tuple, Any]:
        """Normalise the arguments of a direct call; returns them and ``Call.like``."""
        del binding
        return args, None

    def transpose(
        self, call: Call, group: Hashable, operands: Sequence[Any], cts: Sequence[Any]
    ) -> tuple[list[int], list[Any]]:
        """Transpose with respect to the operands of ``group``.

        Returns the indices of its operands, and a cotangent for each.
        """
        binding = call.binding
        structs = _structs(call, operands)
        kinds = self.kinds(call, structs)
        members = [i for i, kind in enumerate(kinds) if kind == group]
        own = owners(call.tree)
        positions = tuple(sorted({own[i][0] for i in members}))
        rule = binding.transpose_rule(group, call.operand(members[0]))
        children = call.tree.children()
        taken = [position in positions for position, _ in own]
        for index, t in enumerate(taken):
            if t and index not in members:
                raise TypeError(
                    f"{binding.label}: {call.operand(index)} is {structs[index].dtype.name}"
                    " inside an argument declared linear; make it an argument of its own"
                )
        like = Like(
            positions,
            tuple(children[p] for p in positions),
            tuple(structs[i] for i in members),
        )
        outputs = binding.outputs(call, structs)
        cts_tree = masked(outputs.tree, _spread(outputs, cts))
        rest = [child for p, child in enumerate(children) if p not in positions]
        transposed = Call(rule, call.static, joined(*rest, cts_tree), call.loop, like)
        others = [x for x, t in zip(operands, taken, strict=True) if not t]
        given = [ct for ct in cts if ct is not None]
        return members, binding.bind(transposed, [*others, *given])


def _spread(outputs: Outputs, cts: Sequence[Any]) -> tuple[bool, ...]:
    return tuple(fill(outputs.kept, [ct is not None for ct in cts], False))


class _Derived:
    """What the roles of derivatives share."""

    bare = False

    def __init__(self, parent: Binding):
        self.parent = parent

    def check(self, call: Call, shapes: Sequence[Sequence[Any]]) -> None:
        del call, shapes  # the parent's results are computed, and checked, from the primals

    def _parent_call(self, call: Call) -> Call:
        like = call.like.parent if isinstance(call.like, Wanted) else call.like
        return Call(self.parent, call.static, call.tree.children()[0], call.loop, like)

    def _parent_outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        inner = self._parent_call(call)
        return differentiable(self.parent.outputs(inner, structs[: inner.tree.num_leaves]))

    def seen(self, call: Call, structs: Sequence[Any]) -> tuple[np.dtype, ...]:
        inner = self._parent_call(call)
        count = inner.tree.num_leaves
        compute = self.parent.compute_dtype
        return (
            *self.parent.role.seen(inner, structs[:count]),
            *(_dtypes.computing(np.dtype(s.dtype), compute) for s in structs[count:]),
        )

    def kinds(self, call: Call, structs: Sequence[Any]) -> Kinds:
        inner = self._parent_call(call)
        count = inner.tree.num_leaves
        primals = self.parent.role.kinds(inner, structs[:count])
        by_rule = tuple(NONDIFF if kind is NONDIFF else GENERAL for kind in primals)
        return by_rule + (LINEAR,) * (len(structs) - count)

    def operand_name(self, binding: Binding, tree: PyTreeDef, index: int) -> str:
        primals = tree.children()[0]
        if index < primals.num_leaves:
            inner = self.parent.operand_name(primals, index)
            return f"argument 0 (primals): {inner}"
        return f"argument 1 ({self.second})"

    second = "tangents"

    def _prepared_primals(self, binding: Binding, args: tuple) -> tuple[tuple, Any]:
        if not isinstance(args[0], (tuple, list)):
            raise _not_a_tuple(binding, "primals", args[0])
        return self.parent.role.prepare(self.parent, tuple(args[0]))


def differentiable(outputs: Outputs) -> Outputs:
    """The results that have a tangent: floating-point and complex ones."""
    keep = [_dtypes.is_inexact(s.dtype) for s in outputs.structs]
    if all(keep):
        return outputs
    return Outputs(
        outputs.tree,
        tuple(fill(outputs.kept, keep, False)),
        tuple(s for s, k in zip(outputs.structs, keep, strict=True) if k),
        tuple(d for d, k in zip(outputs.declared, keep, strict=True) if k),
    )


class Pushforward(_Derived):
    """``f.jvp(primals, tangents)``."""

    def outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        return self._parent_outputs(call, structs)

    def core_ranks(self, call: Call, ranks: Sequence[int]) -> list[int] | None:
        inner = self._parent_call(call)
        count = inner.tree.num_leaves
        primals = self.parent.role.core_ranks(inner, ranks[:count])
        if primals is None:
            return None
        present = _present(*call.tree.children())
        return primals + [rank for rank, p in zip(primals, present, strict=True) if p]

    def prepare(self, binding: Binding, args: tuple) -> tuple[tuple, Any]:
        primals, like = self._prepared_primals(binding, args)
        tangents = args[1]
        if not isinstance(tangents, (tuple, list)):
            raise _not_a_tuple(binding, "tangents", tangents)
        leaves, tree = tree_flatten(primals)
        given = _leafwise(binding, tree, tuple(tangents))
        kinds = self.parent.role.kinds(Call(self.parent, NO_STATIC, tree, 0, like), _avals(leaves))
        filled = [
            None if kind != GENERAL else (jnp.zeros_like(primal) if t is None else t)
            for t, kind, primal in zip(given, kinds, leaves, strict=True)
        ]
        return (primals, tree_unflatten(tree, filled)), like

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        inner = self._parent_call(call)
        return self.parent.role.results(inner, ranks[: inner.tree.num_leaves])

    def transpose(
        self, call: Call, group: Hashable, operands: Sequence[Any], cts: Sequence[Any]
    ) -> tuple[list[int], list[Any]]:
        """``t_x -> J(x) t_x`` transposed is ``ct_y -> J(x)ᵀ ct_y``, the parent's pullback."""
        del group
        inner = self._parent_call(call)
        count = inner.tree.num_leaves
        primals, tangents = operands[:count], operands[count:]
        wanted = fill(
            _present(*call.tree.children()),
            [_undefined(t) for t in tangents],
            False,
        )
        members = [count + k for k, t in enumerate(tangents) if _undefined(t)]
        outputs = self._parent_outputs(call, _structs(call, operands))
        rule = self.parent.vjp_rule(inner.operand(wanted.index(True)))
        cts_tree = masked(outputs.tree, _spread(outputs, cts))
        like = Wanted(tuple(wanted), inner.like)
        pullback = Call(rule, call.static, joined(inner.tree, cts_tree), call.loop, like)
        given = [ct for ct in cts if ct is not None]
        return members, call.binding.bind(pullback, [*primals, *given])


class Pullback(_Derived):
    """``f.vjp(primals, cotangents)``; `Call.like` says for which operands of f."""

    second = "cotangents"

    def outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        inner = self._parent_call(call)
        primals = structs[: inner.tree.num_leaves]
        seen = self.seen(call, structs)
        assert isinstance(call.like, Wanted)
        wanted = call.like.operands
        return Outputs(
            inner.tree,
            wanted,
            tuple(s for s, w in zip(primals, wanted, strict=True) if w),
            tuple(d for d, w in zip(seen, wanted, strict=False) if w),
        )

    def core_ranks(self, call: Call, ranks: Sequence[int]) -> list[int] | None:
        inner = self._parent_call(call)
        count = inner.tree.num_leaves
        primals = self.parent.role.core_ranks(inner, ranks[:count])
        if primals is None:
            return None
        tree, result_ranks = self.parent.role.results(inner, ranks[:count])
        present = _present(tree, call.tree.children()[1])
        return primals + [rank for rank, p in zip(result_ranks, present, strict=True) if p]

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        inner = self._parent_call(call)
        primals = self.parent.role.core_ranks(inner, ranks[: inner.tree.num_leaves])
        assert primals is not None
        return inner.tree, primals

    def prepare(self, binding: Binding, args: tuple) -> tuple[tuple, Any]:
        primals, like = self._prepared_primals(binding, args)
        leaves, tree = tree_flatten(primals)
        kinds = self.parent.role.kinds(Call(self.parent, NO_STATIC, tree, 0, like), _avals(leaves))
        return (primals, args[1]), Wanted(tuple(kind == GENERAL for kind in kinds), like)

    def transpose(
        self, call: Call, group: Hashable, operands: Sequence[Any], cts: Sequence[Any]
    ) -> tuple[list[int], list[Any]]:
        """``ct_y -> J(x)ᵀ ct_y`` transposed is ``t_x -> J(x) t_x``, with 0 where not wanted."""
        del group
        inner = self._parent_call(call)
        count = inner.tree.num_leaves
        primals = operands[:count]
        structs = _structs(call, operands)
        assert isinstance(call.like, Wanted)
        tangents = fill(call.like.operands, cts)
        pushed = self.parent.push_general(inner, primals, tangents)
        parent_outputs = self._parent_outputs(call, structs)
        present = _present(parent_outputs.tree, call.tree.children()[1])
        full = fill(parent_outputs.kept, pushed)
        wanted = [t for t, p in zip(full, present, strict=True) if p]
        return list(range(count, len(operands))), wanted


class Transposed:
    """``f.transpose(*others, cotangents)``, for a group of arguments in which f is linear.

    The cotangent of a single linear argument is bare, in ``out`` too: ``bare``.
    """

    bare = True

    def __init__(self, parent: Binding, group: Hashable):
        self.parent = parent
        self.group = group

    def operand_name(self, binding: Binding, tree: PyTreeDef, index: int) -> str:
        position, path = owners(tree)[index]
        last = len(tree.children()) - 1
        return f"argument {position} ({'cotangents' if position == last else 'operand'}{path})"

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
        declared = tuple(_dtypes.computing(np.dtype(s.dtype), compute) for s in like.structs)
        return Outputs(joined(*like.trees), (True,) * len(declared), like.structs, declared)

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        del ranks
        like = call.like
        assert isinstance(like, Like) and isinstance(self.parent.role.shapes, FromSignature)
        inputs = self.parent.role.shapes.signature.inputs
        return joined(*like.trees), [len(inputs[p]) for p in like.positions]

    def prepare(self, binding: Binding, args: tuple) -> tuple[tuple, Any]:
        return args, _deduce_like(self.parent, binding, self.group, args)

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
        kinds = self.kinds(call, _structs(call, operands))
        members = [i for i, kind in enumerate(kinds) if kind == group]
        own = owners(call.tree)
        children = call.tree.children()
        # the parent's operands: x := u (zeros where JAX knows that u is zero), y as it is
        u = iter(
            jnp.zeros((1,) * call.loop + s.shape, s.dtype) if ct is None else ct
            for ct, s in zip(cts, like.structs, strict=True)
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
            results = call.binding.bind(parent_call, leaves)
            present = _present(
                self.parent.outputs(parent_call, _structs(parent_call, leaves)).tree, children[-1]
            )
            return members, [r for r, p in zip(results, present, strict=True) if p]
        parent_cts = [x for x, (p, _) in zip(operands, own, strict=True) if p == len(positions)]
        outputs = self.parent.outputs(parent_call, _structs(parent_call, leaves))
        full = fill(_present(outputs.tree, children[-1]), parent_cts)
        aligned = [ct for ct, k in zip(full, outputs.kept, strict=True) if k]
        _, results = self.parent.role.transpose(parent_call, group, leaves, aligned)
        return members, results


def _undefined(value: Any) -> bool:
    return ad.is_undefined_primal(value)


def _avals(leaves: Sequence[Any]) -> list[Any]:
    return [jax.typeof(leaf) for leaf in leaves]


def _not_a_tuple(binding: Binding, name: str, value: Any) -> TypeError:
    return TypeError(
        f"{binding.label}: {name} must be a tuple with an entry per positional argument of"
        f" {binding.role.parent.label}; got {type(value).__name__}"
    )


def _leafwise(binding: Binding, tree: PyTreeDef, tangents: tuple) -> list[Any]:
    children = tree.children()
    if len(tangents) != len(children):
        raise TypeError(
            f"{binding.label}: got {len(tangents)} tangents for {len(children)} primals; give"
            " one per positional argument, None where there is none"
        )
    leaves: list[Any] = []
    for child, tangent in zip(children, tangents, strict=True):
        if tangent is None:
            leaves.extend([None] * child.num_leaves)
        else:
            leaves.extend(child.flatten_up_to(tangent))
    return leaves


def _deduce_like(parent: Binding, binding: Binding, group: Hashable, args: tuple) -> Like:
    """For ``f.transpose(...)`` called directly: shapes of the arguments of f, by its signature.

    Raises:
      TypeError: where the signature does not tell them.
    """
    shapes = parent.role.shapes
    remedy = (
        f"{binding.label}: called directly, the shape of the argument that was transposed is"
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
        positions = (group,)  # type: ignore[assignment]
    others = [p for p in range(total) if p not in positions]
    if len(args) != len(others) + 1:
        raise TypeError(
            f"{binding.label}: got {len(args)} arguments; it takes {len(others) + 1}: the"
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
    return Like(positions, (ARRAY,) * len(positions), tuple(structs))
