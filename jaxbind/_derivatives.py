"""The roles of derivatives: pushforward and pullback."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten, tree_unflatten

from jaxbind import _dtypes
from jaxbind._call import (
    Call,
    Outputs,
    PyTreeDef,
    cotangents_present,
    fill,
    masked_arguments,
    present,
)
from jaxbind._parameters import Parameters
from jaxbind._roles import (
    GENERAL,
    LINEAR,
    NONDIFF,
    Kinds,
    Wanted,
    core_structs,
    differentiable,
    is_undefined,
)
from jaxbind._static import NO_STATIC
from jaxbind._whole import entries, per_leaf, pull, push
from jaxbind._wrt import by_argument


class _Derived:
    """What the roles of derivatives share."""

    mixed = False
    gives_cotangents = True
    positional = 2
    takes_wrt = False
    bare = False  # a tuple with an entry per argument, or the structure of the result
    second = ""  # what stands behind the primals
    by_jax: Callable  # puts it together with what follows from linearity

    def __init__(self, parent: Any):
        self.parent = parent

    @property
    def whole(self) -> Callable | None:
        """Of a function that is linear in some arguments: the whole of it, rule or not."""
        return partial(self.by_jax, self.parent) if self.parent.role.mixed else None

    def calling(self, parameters: Parameters) -> Parameters:
        """How it is called, with the static parameters of the function."""
        names = ("primals", self.second)
        return replace(
            parameters,
            operands=names,
            defaults={},
            by_keyword=frozenset(names),
            variadic=False,
            fill=0,
        )

    def lacks(self, call: Call, structs: Sequence[Any]) -> bool:
        inner = self.parent_call(call)
        return self.parent.role.lacks(inner, structs[: inner.tree.num_leaves])

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
        compute = self.parent.options.compute_dtype
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

    def wanted(self, call: Call) -> tuple[bool, ...]:
        del call
        return ()

    def _prepared_primals(self, definition: Any, args: tuple) -> tuple[tuple, Any]:
        primals = entries(definition.label, self.parent.label, "primals", args[0])
        return self.parent.role.prepare(self.parent, primals)


class Pushforward(_Derived):
    """``f.jvp(primals, tangents)``."""

    second = "tangents"
    by_jax = staticmethod(push)

    @property
    def gives_cotangents(self) -> bool:
        return self.parent.role.gives_cotangents

    def outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        return self._parent_outputs(call, structs)

    def completed(self, call: Call, structs: Sequence[Any]) -> Any:
        inner = self.parent_call(call)
        return self.parent.role.completed(inner, structs[: inner.tree.num_leaves])

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
        tangents = entries(definition.label, self.parent.label, "tangents", args[1])
        leaves, tree = tree_flatten(primals)
        given = per_leaf(definition.label, tree, tangents)
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
        return members, self.parent.pull_general(inner, primals, wanted, cts)


class Pullback(_Derived):
    """``f.vjp(primals, cotangents)``; `Call.like` says for which operands of f."""

    takes_wrt = True
    second = "cotangents"
    by_jax = staticmethod(pull)

    def wanted(self, call: Call) -> tuple[bool, ...]:
        return by_argument(call.tree.children()[0], call.like.operands)

    def _parent_like(self, call: Call) -> Any:
        assert isinstance(call.like, Wanted)
        return call.like.parent

    def completed(self, call: Call, structs: Sequence[Any]) -> Any:
        inner = self.parent_call(call)
        primals = structs[: inner.tree.num_leaves]
        kinds = self.parent.role.kinds(inner, primals)
        like = self.parent.role.completed(inner, primals)
        return Wanted(tuple(kind == GENERAL for kind in kinds), like)

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
        has = cotangents_present(call.definition.label, tree, call.tree.children()[1])
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
        cotangents = jax.tree.map(_or_none, args[1])
        return (primals, cotangents), Wanted(tuple(kind == GENERAL for kind in kinds), like)

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


def _or_none(cotangent: Any) -> Any:
    """The cotangent of an integer, which JAX makes an array of nothing."""
    empty = getattr(cotangent, "dtype", None) == jax.dtypes.float0
    return None if empty else cotangent


def _avals(leaves: Sequence[Any]) -> list[Any]:
    return [jax.typeof(leaf) for leaf in leaves]
