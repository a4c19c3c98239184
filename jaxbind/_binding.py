"""`Binding`: a foreign function as a JAX function."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten

from jaxbind import _dtypes, _jax, _missing, _primitive
from jaxbind._call import Call, Outputs, PyTreeDef, core_struct, joined, masked, over_loops
from jaxbind._declare import Declarations, Role
from jaxbind._parameters import Parameters
from jaxbind._roles import GENERAL
from jaxbind._static import Static


class Binding(Declarations):
    """A foreign function that JAX can call, differentiate, map, compile and shard.

    Made by `jaxbind.bind`; call it like the function itself, with JAX or NumPy arrays.

    Attributes:
      function: what was bound (``None`` for a derivative without a rule over NumPy arrays).
    """

    def __init__(
        self,
        function: Callable | None,
        role: Role,
        *,
        label: str,
        parent: Binding | None = None,
        module: str = "",
        qualname: str = "",
        given_name: str | None = None,
        step: str | None = None,
        calling: Parameters | None = None,
        traced: Any = None,
        vectorized: bool = False,
        order: str = "C",
        compute_dtype: np.dtype | None = None,
    ):
        self.function: Any = function
        self.role = role
        self.label = label
        self.__name__ = label.rpartition(".")[2]
        self.__qualname__ = qualname
        self.__module__ = module
        self.__doc__ = getattr(function, "__doc__", None)
        self.given_name = given_name
        self.private_name: str | None = None
        self.step = step
        self.parent: Any = parent
        # what the function takes, and how the binding is called (a rule may take less)
        self.parameters = Parameters.of(function or _nothing, rule=parent is not None)
        self.calling = calling or self.parameters
        self.traced = traced
        self.vectorized = vectorized
        self.order = order
        self.compute_dtype = compute_dtype
        self.vmap_rule: Any = None
        self._rules: dict[Hashable, Binding] = {}
        self._versions: dict[Hashable, int] = {}
        self._outputs: dict[Any, Outputs] = {}
        self._compiled: dict[Static, Callable] = {}
        self._plain: Any = None
        self._plain_count = -1

    def __repr__(self) -> str:
        return f"<jaxbind.Binding {self.label}>"

    # Calling ------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not kwargs and len(args) == self._plain_count:  # the shortest path of eager calls
            concrete = _jax.concrete_array()
            for operand in args:
                if type(operand) is not concrete:
                    break
            else:
                return self._plain(*args)
        operands, static = self.calling.bind(self.label, args, kwargs)
        if self._traced_now(operands):
            return self._apply(static, *operands)
        return self._compiled_for(static)(*operands)

    def _compiled_for(self, static: Static) -> Callable:
        """Eager calls go through one ``jax.jit`` per static parameters: JAX's own fast path."""
        found = self._compiled.get(static)
        if found is None:
            fresh = jax.jit(partial(self._apply, static), inline=True)
            found = self._compiled.setdefault(static, fresh)
            if not static.values:
                self._plain = found
                self._plain_count = len(self.calling.operands)
        return found

    def _traced_now(self, operands: tuple) -> bool:
        """Check the leaves of a call that is not on concrete arrays alone."""
        leaves, tree = tree_flatten(operands)
        traced = False
        for index, leaf in enumerate(leaves):
            if _jax.is_tracer(leaf):
                traced = True
            elif not isinstance(
                leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)
            ):
                if hasattr(leaf, "__jax_array__"):
                    continue
                raise TypeError(
                    f"{self.label}: {self.operand_name(tree, index)} is a"
                    f" {type(leaf).__name__}; operands are arrays, numbers, or tuples, lists and"
                    " dicts of them. Other values can be static, keyword-only parameters"
                )
        return traced

    def _apply(self, static: Static, *args: Any) -> Any:
        args, like = self.role.prepare(self, args)
        leaves, tree = tree_flatten(args)
        call = Call(self, static, tree, 0, like)
        operands = self._checked(call, [jnp.asarray(leaf) for leaf in leaves])
        call, operands = self._with_loops(call, operands)
        if call.loop and self.vmap_rule is not None:
            core = Call(self, static, tree, 0, like)
            results = over_loops(lambda *xs: self.bind(core, xs), call.loop, operands)
        else:
            results = self.bind(call, operands)
        structs = [core_struct(jax.typeof(x), call.loop) for x in operands]
        result = self.outputs(call, structs).restore(results)
        return result[0] if self.role.bare and len(result) == 1 else result

    def _checked(self, call: Call, operands: list[Any]) -> list[Any]:
        """Refuse dtypes that cannot cross; give Python numbers the precision of the others."""
        strong = []
        for index, x in enumerate(operands):
            _dtypes.check(self.label, call.operand(index), x.dtype)
            if _dtypes.is_inexact(x.dtype) and not jax.typeof(x).weak_type:
                strong.append(x.dtype)
        if not strong:
            return operands
        return [
            x.astype(jnp.result_type(*strong, x))
            if jax.typeof(x).weak_type and _dtypes.is_inexact(x.dtype)
            else x
            for x in operands
        ]

    def _with_loops(self, call: Call, operands: list[Any]) -> tuple[Call, list[Any]]:
        """Broadcast like a gufunc: pad every operand with loop dimensions of size 1."""
        ranks = self.role.core_ranks(call, [x.ndim for x in operands])
        if ranks is None:
            return call, operands
        loops = [x.ndim - rank for x, rank in zip(operands, ranks, strict=True)]
        self.role.check(call, [x.shape[k:] for x, k in zip(operands, loops, strict=True)])
        loop = max(loops, default=0)
        padded = [
            jax.lax.expand_dims(x, range(loop - k)) if k < loop else x
            for x, k in zip(operands, loops, strict=True)
        ]
        self._check_broadcast(call, padded, loops, loop)
        return Call(self, call.static, call.tree, loop, call.like), padded

    def _check_broadcast(
        self, call: Call, operands: Sequence[Any], loops: Sequence[int], loop: int
    ) -> None:
        for axis in range(loop):
            first = None
            for index, x in enumerate(operands):
                size = x.shape[axis]
                if size == 1:
                    continue
                if first is None:
                    first = index
                elif size != operands[first].shape[axis]:
                    shown = [
                        f"{call.operand(i)} has {operands[i].shape[loop - loops[i] : loop]}"
                        for i in (first, index)
                    ]
                    raise ValueError(
                        f"{self.label}: loop dimensions do not broadcast: {shown[0]},"
                        f" {shown[1]} in front of its core dimensions"
                    )

    def outputs(self, call: Call, structs: Sequence[Any]) -> Outputs:
        """The results of one core call; the declaration is asked once per operand types."""
        key = (
            call.static,
            call.tree,
            call.like,
            tuple((s.shape, s.dtype) for s in structs),
            _dtypes.canonical(np.float64),
        )
        found = self._outputs.get(key)
        if found is None:
            found = self._outputs[key] = self.role.outputs(call, structs)
        return found

    @staticmethod
    def bind(call: Call, operands: Sequence[Any]) -> list[Any]:
        return _primitive.bind(call, operands)

    def argument_name(self, position: int) -> str:
        return self.calling.name(position) or f"operand {position}"

    def operand_name(self, tree: PyTreeDef, index: int) -> str:
        return self.role.operand_name(self, tree, index)

    # What the primitive asks --------------------------------------------------------------------

    def push_general(
        self, call: Call, primals: Sequence[Any], tangents: Sequence[Any]
    ) -> list[Any]:
        """Push tangents (``None``: zero) of the operands with a rule forward."""
        rule = self._rules.get("jvp")
        if rule is None:
            if "vjp" not in self._rules:
                index = next(i for i, t in enumerate(tangents) if t is not None)
                raise _missing.no_rule(self, call, index)
            rule = self._undeclared_jvp()
        skip = rule.traced is not None and rule.traced.skips_zeros
        kinds = self.role.kinds(call, [jax.typeof(p) for p in primals])
        filled = [
            None
            if kind != GENERAL or (t is None and skip)
            else (jnp.zeros_like(p) if t is None else t)
            for kind, p, t in zip(kinds, primals, tangents, strict=True)
        ]
        tree = joined(call.tree, masked(call.tree, tuple(t is not None for t in filled)))
        pushed = Call(rule, call.static, tree, call.loop, call.like)
        return self.bind(pushed, [*primals, *(t for t in filled if t is not None)])

    def vjp_rule(self, operand: str) -> Binding:
        rule = self._rules.get("vjp")
        if rule is None:
            raise _missing.no_vjp(self.label, operand)
        return rule

    def transpose_rule(self, group: Hashable, operand: str) -> Binding:
        rule = self._rules.get(("T", group))
        if rule is None:
            raise _missing.no_transpose(self, group, operand)
        return rule


def _nothing() -> None:
    """Stands for the function of a derivative without one."""
