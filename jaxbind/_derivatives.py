"""The roles of derivatives: pushforward and pullback."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten, tree_unflatten

from jaxbind import _dtypes
from jaxbind._call import (
    Call,
    Outputs,
    PyTreeDef,
    fill,
    joined,
    leaves_up_to,
    masked,
    masked_arguments,
    present,
)
from jaxbind._roles import (
    GENERAL,
    LINEAR,
    NONDIFF,
    Kinds,
    Wanted,
    core_structs,
    differentiable,
    is_undefined,
    spread,
)
from jaxbind._static import NO_STATIC
from jaxbind._wrt import by_argument

if TYPE_CHECKING:
    pass


class _Derived:
    """What the roles of derivatives share."""

    mixed = False

    def lacks(self, call: Call, structs: Sequence[Any]) -> bool:
        inner = self.parent_call(call)
        return self.parent.role.lacks(inner, structs[: inner.tree.num_leaves])

    bare = False  # a tuple with an entry per argument, or the structure of the result

    def __init__(self, parent: Any):
        self.parent = parent

    def check(self, call: Call, shapes: Sequence[Sequence[Any]]) -> None:
        del call, shapes  # the parent's results are computed, and checked, from the primals

    def parent_call(self, call: Call) -> Call:
        return Call(
            self.parent, call.static, call.tree.children()[0], call.loop, self._parent_like(call)
        )

    def _parent_like(self, call: Call) -> Any:
        return call.like

    def _parent_outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        inner = self.parent_call(call)
        return differentiable(self.parent.outputs(inner, structs[: inner.tree.num_leaves]))

    def seen(self, call: Call, structs: Sequence[Any]) -> tuple[np.dtype, ...]:
        inner = self.parent_call(call)
        count = inner.tree.num_leaves
        compute = self.parent.compute_dtype
        return (
            *self.parent.role.seen(inner, structs[:count]),
            *(_dtypes.computing(np.dtype(s.dtype), compute) for s in structs[count:]),
        )

    def kinds(self, call: Call, structs: Sequence[Any]) -> Kinds:
        inner = self.parent_call(call)
        count = inner.tree.num_leaves
        primals = self.parent.role.kinds(inner, structs[:count])
        by_rule = tuple(NONDIFF if kind is NONDIFF else GENERAL for kind in primals)
        return by_rule + (LINEAR,) * (len(structs) - count)

    def operand_name(self, definition: Any, tree: PyTreeDef, index: int) -> str:
        primals = tree.children()[0]
        if index < primals.num_leaves:
            inner = self.parent.operand_name(primals, index)
            return f"argument 0 (primals): {inner}"
        return f"argument 1 ({self.second})"

    second = "tangents"

    def wanted(self, call: Call) -> tuple[bool, ...]:
        del call
        return ()

    def _prepared_primals(self, definition: Any, args: tuple) -> tuple[tuple, Any]:
        if not isinstance(args[0], (tuple, list)):
            raise _not_a_tuple(definition, "primals", args[0])
        return self.parent.role.prepare(self.parent, tuple(args[0]))


class Pushforward(_Derived):
    """``f.jvp(primals, tangents)``."""

    def outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        return self._parent_outputs(call, structs)

    def core_ranks(self, call: Call, ranks: Sequence[int]) -> list[int] | None:
        inner = self.parent_call(call)
        count = inner.tree.num_leaves
        primals = self.parent.role.core_ranks(inner, ranks[:count])
        if primals is None:
            return None
        has = present(*call.tree.children())
        return primals + [rank for rank, p in zip(primals, has, strict=True) if p]

    def prepare(self, definition: Any, args: tuple) -> tuple[tuple, Any]:
        primals, like = self._prepared_primals(definition, args)
        tangents = args[1]
        if not isinstance(tangents, (tuple, list)):
            raise _not_a_tuple(definition, "tangents", tangents)
        leaves, tree = tree_flatten(primals)
        given = _leafwise(definition, tree, tuple(tangents))
        kinds = self.parent.role.kinds(Call(self.parent, NO_STATIC, tree, 0, like), _avals(leaves))
        filled = [
            None if kind != GENERAL else (jnp.zeros_like(primal) if t is None else t)
            for t, kind, primal in zip(given, kinds, leaves, strict=True)
        ]
        given = [t for t in filled if t is not None]
        shape = masked_arguments(tree, tuple(t is not None for t in filled))
        return (primals, tree_unflatten(shape, given)), like

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        inner = self.parent_call(call)
        return self.parent.role.results(inner, ranks[: inner.tree.num_leaves])

    def transpose(
        self, call: Call, group: Hashable, operands: Sequence[Any], cts: Sequence[Any]
    ) -> tuple[list[int], list[Any]]:
        """``t_x -> J(x) t_x`` transposed is ``ct_y -> J(x)ᵀ ct_y``, the parent's pullback."""
        del group
        inner = self.parent_call(call)
        count = inner.tree.num_leaves
        primals, tangents = operands[:count], operands[count:]
        wanted = fill(
            present(*call.tree.children()),
            [is_undefined(t) for t in tangents],
            False,
        )
        members = [count + k for k, t in enumerate(tangents) if is_undefined(t)]
        outputs = self._parent_outputs(call, core_structs(call, operands))
        rule = self.parent.vjp_rule(inner.operand(wanted.index(True)))
        cts_tree = masked(outputs.tree, spread(outputs, cts))
        like = Wanted(tuple(wanted), inner.like)
        pullback = Call(rule, call.static, joined(inner.tree, cts_tree), call.loop, like)
        given = [ct for ct in cts if ct is not None]
        return members, call.definition.bind(pullback, [*primals, *given])


class Pullback(_Derived):
    """``f.vjp(primals, cotangents)``; `Call.like` says for which operands of f."""

    second = "cotangents"

    def wanted(self, call: Call) -> tuple[bool, ...]:
        return by_argument(call.tree.children()[0], call.like.operands)

    def _parent_like(self, call: Call) -> Any:
        assert isinstance(call.like, Wanted)
        return call.like.parent

    def outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        inner = self.parent_call(call)
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
        inner = self.parent_call(call)
        count = inner.tree.num_leaves
        primals = self.parent.role.core_ranks(inner, ranks[:count])
        if primals is None:
            return None
        tree, result_ranks = self.parent.role.results(inner, ranks[:count])
        has = present(tree, call.tree.children()[1])
        return primals + [rank for rank, p in zip(result_ranks, has, strict=True) if p]

    def results(self, call: Call, ranks: Sequence[int]) -> tuple[PyTreeDef, list[int]]:
        inner = self.parent_call(call)
        primals = self.parent.role.core_ranks(inner, ranks[: inner.tree.num_leaves])
        assert primals is not None
        return inner.tree, primals

    def prepare(self, definition: Any, args: tuple) -> tuple[tuple, Any]:
        primals, like = self._prepared_primals(definition, args)
        leaves, tree = tree_flatten(primals)
        kinds = self.parent.role.kinds(Call(self.parent, NO_STATIC, tree, 0, like), _avals(leaves))
        return (primals, args[1]), Wanted(tuple(kind == GENERAL for kind in kinds), like)

    def transpose(
        self, call: Call, group: Hashable, operands: Sequence[Any], cts: Sequence[Any]
    ) -> tuple[list[int], list[Any]]:
        """``ct_y -> J(x)ᵀ ct_y`` transposed is ``t_x -> J(x) t_x``, with 0 where not wanted."""
        del group
        inner = self.parent_call(call)
        count = inner.tree.num_leaves
        primals = operands[:count]
        structs = core_structs(call, operands)
        assert isinstance(call.like, Wanted)
        tangents = fill(call.like.operands, cts)
        pushed = self.parent.push_general(inner, primals, tangents)
        parent_outputs = self._parent_outputs(call, structs)
        has = present(parent_outputs.tree, call.tree.children()[1])
        full = fill(parent_outputs.kept, pushed)
        wanted = [t for t, p in zip(full, has, strict=True) if p]
        return list(range(count, len(operands))), wanted


def _avals(leaves: Sequence[Any]) -> list[Any]:
    return [jax.typeof(leaf) for leaf in leaves]


def _not_a_tuple(definition: Any, name: str, value: Any) -> TypeError:
    return TypeError(
        f"{definition.label}: {name} must be a tuple with an entry per positional argument of"
        f" {definition.parent.label}; got {type(value).__name__}"
    )


def _leafwise(definition: Any, tree: PyTreeDef, tangents: tuple) -> list[Any]:
    children = tree.children()
    if len(tangents) != len(children):
        raise TypeError(
            f"{definition.label}: got {len(tangents)} tangents for {len(children)} primals; give"
            " one per positional argument, None where there is none"
        )
    return leaves_up_to(tree, tangents)
