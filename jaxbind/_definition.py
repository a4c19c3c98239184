"""`Definition`: what was bound, what was declared about it, and what follows.

JAX's caches hold definitions, in the parameters of their programs. The callable `Binding` is
another object, on which nothing here depends: when the user drops it, JAX's caches, which
know it weakly, let go of the definition, and the function can be freed.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten

from jaxbind import _dtypes, _fork, _missing, _primitive
from jaxbind._call import (
    Call,
    Outputs,
    PyTreeDef,
    core_struct,
    fill,
    joined,
    masked,
    masked_arguments,
    over_loops,
)
from jaxbind._derivatives import Pullback, Pushforward
from jaxbind._kernels import Kernel
from jaxbind._options import Options
from jaxbind._parameters import Parameters
from jaxbind._roles import GENERAL, Function, Wanted, differentiable
from jaxbind._rules import Traced
from jaxbind._static import Static
from jaxbind._transposed import Transposed
from jaxbind._ufuncs import UfuncLoops

Role = Function | Pushforward | Pullback | Transposed

#: the key of a pushforward that nobody declared, but which JAX transposes
UNDECLARED = "undeclared jvp"


#: held by who makes a cache smaller: looking for its oldest entry takes two steps
_evicting = threading.Lock()


def kept(cache: dict, key: Any, value: Any) -> Any:
    """Put into a cache of limited size, the oldest out; a value that was faster wins."""
    with _evicting:
        while len(cache) >= 256:
            cache.pop(next(iter(cache)), None)
        return cache.setdefault(key, value)


class EagerCalls(dict[Call, Callable]):
    """Compiled calls, for those outside jit; a binding owns them."""

    def keep(self, call: Call, compiled: Callable) -> Callable:
        return kept(self, call, compiled)


class Definition:
    """A function, or the derivative of one, with its role and its rules.

    Attributes:
      function: on NumPy arrays; ``None`` for a derivative that is traced or undeclared.
      role: what it stands for, which says the shapes of its results and its transpose.
      label: how errors call it.
      parent: of a derivative, what it is the derivative of.
      step: of a derivative, its name in programs behind the parent's: ``jvp``, ``vjp@2``.
      parameters: what the function takes.
      calling: how it is called (a rule may take fewer static parameters).
      traced: a rule that is a JAX function.
      options: how it is called.
      make_plan: makes the object that a call site keeps (``def_plan``).
      vmap_rule: the rule of ``def_vmap``.
      rules: the derivatives that were declared.
      bound: the compiled calls that its binding, or a derivative's, holds (weakly: they hold
        this definition, and JAX's caches hold definitions as long as what they compiled lives).
    """

    def __init__(
        self,
        function: Callable | None,
        role: Role,
        *,
        label: str,
        parent: Definition | None = None,
        module: str = "",
        qualname: str = "",
        home: str = "",
        given_name: str | None = None,
        step: str | None = None,
        calling: Parameters | None = None,
        traced: Any = None,
        options: Options | None = None,
    ):
        self.function: Any = function
        self.role = role
        self.label = label
        self.module = module
        self.qualname = qualname
        self.home = home
        self.given_name = given_name
        self.private_name: str | None = None
        self.step = step
        self.parent: Any = parent
        # what the function takes, and how the binding is called (a rule may take less)
        self.parameters = Parameters.of(function or _nothing, rule=role.takes_wrt)
        self.calling = calling or self.parameters
        self.traced = traced
        self.options = options or Options()
        self.make_plan: Callable | None = None
        self.implementations: dict[str, Callable] = {}
        self.vmap_rule: Any = None
        self.rules: dict[Hashable, Definition] = {}
        self.bound: ref[EagerCalls] | None = None
        # replaced ones, too, as long as programs hold them
        self._steps: WeakValueDictionary[str, Definition] = WeakValueDictionary()
        self._versions: dict[Hashable, int] = {}
        # by static parameters, which live no longer than the programs that hold them
        self._outputs: WeakKeyDictionary[Static, dict[Any, Outputs]] = WeakKeyDictionary()
        self._asked = False

    def __repr__(self) -> str:
        return f"<Definition {self.label}>"

    # Calling ------------------------------------------------------------------------------------

    def apply(self, static: Static, *args: Any) -> Any:
        """A call on traced or concrete operands, from its checks to its result."""
        if self.role.whole is not None:
            return self.role.whole(self.label, static, args)
        args, like = self.role.prepare(self, args)
        _fork.check(self.label)
        leaves, tree = tree_flatten(args)
        call = Call(self, static, tree, 0, like)
        # `jnp.asarray` of what is an array forgets, in jax 0.9, how `vmap` moved its sharding
        arrays = [x if isinstance(x, jax.Array) else jnp.asarray(x) for x in leaves]
        operands = self._checked(call, arrays)
        call, operands = self._with_loops(call, operands)
        if call.loop and self.vmap_rule is not None:
            core = Call(self, static, tree, 0, like)
            results = over_loops(lambda *xs: self.bind(core, xs), call.loop, operands)
        else:
            results = self.bind(call, operands)
        structs = [core_struct(jax.typeof(x), call.loop) for x in operands]
        return self.outputs(call, structs).restore(results)

    def check_integer(self, what: str, index: int, number: int) -> None:
        """Refuse an integer of Python's that JAX, or a kernel's C type, cannot hold.

        Raises:
          TypeError, OverflowError: naming it.
        """
        _dtypes.check_integer(self.label, what, number)
        compiled = self.options.compiled
        known = compiled.loop.dtypes[index : index + 1] if isinstance(compiled, Kernel) else ()
        for dtype in known:
            if dtype.kind in "iu" and not np.iinfo(dtype).min <= number <= np.iinfo(dtype).max:
                raise TypeError(
                    f"{self.label}: {what} is {number}, but the kernel takes {dtype.name}, which"
                    " cannot hold that"
                )

    def _checked(self, call: Call, operands: list[Any]) -> list[Any]:
        """Refuse dtypes that cannot cross; give Python numbers the precision of the others."""
        compiled = self.options.compiled
        every = isinstance(compiled, UfuncLoops)  # NumPy's rule for ufuncs: integers, too
        strong = []
        for index, x in enumerate(operands):
            _dtypes.check(self.label, call.operand(index), x.dtype)
            if (every or _dtypes.is_inexact(x.dtype)) and not jax.typeof(x).weak_type:
                strong.append(x.dtype)
        if isinstance(compiled, Kernel):
            known = compiled.loop.dtypes
            return [_number_as(x, d) for x, d in zip(operands, known, strict=False)]
        if not strong:
            return operands
        if isinstance(compiled, UfuncLoops):
            weak = [jax.typeof(x).weak_type for x in operands]
            chosen = compiled.of_numbers([x.dtype for x in operands], weak)
            if chosen is not None:
                pairs = zip(operands, weak, chosen, strict=True)
                return [x.astype(d) if w else x for x, w, d in pairs]
        return [
            x.astype(_dtypes.with_precision(x, strong))
            if jax.typeof(x).weak_type and (every or _dtypes.is_inexact(x.dtype))
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
            call.tree,
            call.like,
            tuple((s.shape, s.dtype) for s in structs),
            _dtypes.canonical(np.float64),
        )
        self._asked = True
        self._check_plan(call)
        known = self._outputs.setdefault(call.static, {})
        found = known.get(key)
        if found is not None:
            return found
        made = self.role.outputs(call, structs)
        for argument, result in self.options.aliases:
            if result >= len(made.structs):
                raise ValueError(
                    f"{self.label}: aliases= maps argument {argument}"
                    f" ({self.argument_name(argument)}) to result {result}; there"
                    f" {'is 1 result' if len(made.structs) == 1 else f'are {len(made.structs)}'},"
                    " counted from 0"
                )
        return kept(known, key, made)

    def _check_plan(self, call: Call) -> None:
        """A rule is not given the plan of its function, but one of its own."""
        default = self.parameters.static.get("plan")
        if (
            default is inspect.Parameter.empty
            and self.make_plan is None
            and "plan" not in call.static.values
        ):
            raise TypeError(
                f"{self.label}: its rule has a keyword-only parameter plan, and a rule gets a plan"
                f" of its own only: declare it with {self.label}.def_plan(make), or leave it out"
            )

    def eager_calls(self) -> EagerCalls:
        """The compiled calls of the nearest binding that is alive: our own, or our parent's."""
        definition: Definition | None = self
        while definition is not None:
            found = definition.bound and definition.bound()
            if found is not None:
                return found
            definition = definition.parent
        return EagerCalls()

    @staticmethod
    def bind(call: Call, operands: Sequence[Any]) -> list[Any]:
        return _primitive.bind(call, operands)

    def argument_name(self, position: int) -> str:
        return self.calling.name(position) or f"operand {position}"

    def operand_name(self, tree: PyTreeDef, index: int) -> str:
        return self.role.operand_name(self, tree, index)

    # Derivatives --------------------------------------------------------------------------------

    def define(
        self,
        key: Hashable,
        step: str,
        role: Role,
        function: Callable | None,
        traced: Any = None,
        label: str | None = None,
    ) -> Definition:
        """Make (or replace) the derivative ``key``."""
        undeclared = self.rules.pop(UNDECLARED, None) if key == "jvp" else None
        if undeclared is not None:  # it may have rules for second derivatives already
            undeclared.function, undeclared.traced = function, traced
            undeclared.parameters = Parameters.of(function or _nothing)
        self._versions[key] = version = self._versions.get(key, 0) + 1
        numbered = step if version == 1 else f"{step}@{version}"
        definition = undeclared or self._derivative(
            function, role, numbered, label or f"{self.label}.{step}", traced
        )
        self.rules[key] = definition
        self._steps[definition.step or ""] = definition
        return definition

    def _derivative(
        self, function: Callable | None, role: Role, step: str, label: str, traced: Any = None
    ) -> Definition:
        """A derivative, with the options that it has from its function."""
        return Definition(
            function,
            role,
            label=label,
            parent=self,
            step=step,
            calling=role.calling(self.calling),
            traced=traced,
            options=self.options.of_rules(),
        )

    @property
    def has_derivative(self) -> bool:
        """Whether a pushforward or a pullback was declared."""
        return "jvp" in self.rules or "vjp" in self.rules

    @property
    def asks_wrt(self) -> bool:
        """Whether the rule has a parameter ``wrt``."""
        if self.traced is not None:
            return isinstance(self.traced, Traced) and self.traced.parameters.wants_wrt
        return self.parameters.wants_wrt

    @property
    def inlined(self) -> bool:
        """Whether a call is a JAX function that is put in its place."""
        if self.traced is None:
            return False
        # A pushforward whose transpose was declared, or which JAX cannot transpose, must stay
        # one operation.
        if isinstance(self.role, Pushforward):
            return "vjp" not in self.role.parent.rules and self.traced.transposable
        return True

    def derivative(self, step: str) -> Definition | None:
        """The derivative that a name in a program calls ``step``: ``jvp``, ``vjp@2``, ..."""
        return self._steps.get(step)

    def undeclared_jvp(self) -> Definition:
        """The pushforward of a function of which only the pullback was declared."""
        found = self.rules.get(UNDECLARED)
        if found is None:
            found = self.rules[UNDECLARED] = self._derivative(
                None, Pushforward(self), "jvp", f"{self.label}.jvp"
            )
        return found

    def ever_traced(self) -> bool:
        """Whether a program of JAX's may hold this definition, or its rules."""
        return self._asked or (self.parent is not None and self.parent.ever_traced())

    # What the primitive asks --------------------------------------------------------------------

    def push_general(
        self, call: Call, primals: Sequence[Any], tangents: Sequence[Any]
    ) -> list[Any]:
        """Push tangents (``None``: zero) of the operands with a rule forward."""
        rule = self.rules.get("jvp")
        if rule is None:
            if "vjp" not in self.rules:
                index = next(i for i, t in enumerate(tangents) if t is not None)
                raise _missing.no_rule(self, call, index)
            rule = self.undeclared_jvp()
        skip = rule.traced is not None and rule.traced.skips_zeros
        kinds = self.role.kinds(call, [jax.typeof(p) for p in primals])
        filled = [
            None
            if kind != GENERAL or (t is None and skip)
            else (jnp.zeros_like(p) if t is None else t)
            for kind, p, t in zip(kinds, primals, tangents, strict=True)
        ]
        tree = joined(call.tree, masked_arguments(call.tree, tuple(t is not None for t in filled)))
        pushed = Call(rule, call.static, tree, call.loop, call.like)
        return self.bind(pushed, [*primals, *(t for t in filled if t is not None)])

    def pull_general(
        self,
        call: Call,
        primals: Sequence[Any],
        wanted: Sequence[bool],
        cts: Sequence[Any],
    ) -> list[Any]:
        """Pull cotangents (``None``: an integer result) back to the operands that are wanted.

        A result that is floating-point, but that nobody wanted, has zeros.
        """
        rule = self.vjp_rule(call.operand(wanted.index(True)))
        structs = [core_struct(jax.typeof(p), call.loop) for p in primals]
        asked = differentiable(self.outputs(call, structs))
        whole = replace(call, like=self.role.completed(call, structs))
        every = differentiable(self.outputs(whole, structs))
        zeros = iter(every.structs)
        full = [
            _or_zeros(ct, next(zeros), call.loop) if k else None
            for ct, k in zip(fill(asked.kept, cts), every.kept, strict=True)
        ]
        given = [ct for ct in full if ct is not None]
        cts_tree = masked(every.tree, tuple(ct is not None for ct in full))
        like = Wanted(tuple(wanted), whole.like)
        pullback = Call(rule, call.static, joined(call.tree, cts_tree), call.loop, like)
        return self.bind(pullback, [*primals, *given])

    def vjp_rule(self, operand: str) -> Definition:
        rule = self.rules.get("vjp")
        if rule is None:
            pushforward = self.rules.get("jvp")
            made = getattr(pushforward and pushforward.traced, "name", "")
            raise _missing.no_vjp(self.label, operand, made)
        return rule

    def transpose_rule(self, group: Hashable, operand: str) -> Definition:
        rule = self.rules.get(("T", group))
        if rule is None:
            raise _missing.no_transpose(self, group, operand)
        return rule


def _or_zeros(ct: Any, struct: jax.ShapeDtypeStruct, loop: int) -> Any:
    return jnp.zeros((1,) * loop + struct.shape, struct.dtype) if ct is None else ct


def _number_as(x: Any, dtype: np.dtype) -> Any:
    """A Python number as the dtype that a kernel takes, if that can hold it."""
    if not jax.typeof(x).weak_type or x.dtype == dtype:
        return x
    if _dtypes.is_inexact(dtype) and (_dtypes.is_complex(dtype) or not _dtypes.is_complex(x.dtype)):
        return x.astype(dtype)
    return x.astype(dtype) if dtype.kind in "iu" and x.dtype.kind in "iu" else x


def _nothing() -> None:
    """Stands for the function of a derivative without one."""
