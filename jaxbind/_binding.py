"""`Binding`: a foreign function as a JAX function, and the rules declared about it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef, tree_flatten

from jaxbind import _derive, _dtypes, _jax, _primitive
from jaxbind._call import Call, Outputs, core_struct, joined, masked, over_loops
from jaxbind._parameters import Parameters
from jaxbind._roles import GENERAL, LINEAR, Function, Pullback, Pushforward, Transposed
from jaxbind._rules import Jacobians, Partials, Traced
from jaxbind._static import NO_STATIC, Static

Role = Function | Pushforward | Pullback | Transposed


class Binding:
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
        self.function = function
        self.role = role
        self.label = label
        self.__name__ = label.rpartition(".")[2]
        self.__qualname__ = qualname
        self.__module__ = module
        self.__doc__ = getattr(function, "__doc__", None)
        self.given_name = given_name
        self.private_name: str | None = None
        self.step = step
        self.parent = parent
        # what the function takes, and how the binding is called (a rule may take less)
        self.parameters = Parameters.of(function or _nothing, rule=parent is not None)
        self.calling = calling or self.parameters
        self.traced = traced
        self.vectorized = vectorized
        self.order = order
        self.compute_dtype = compute_dtype
        self.vmap_rule: Callable | None = None
        self._rules: dict[Hashable, Binding] = {}
        self._versions: dict[Hashable, int] = {}
        self._outputs: dict[Any, Outputs] = {}
        self._compiled: dict[Static, Callable] = {}

    def __repr__(self) -> str:
        return f"<jaxbind.Binding {self.label}>"

    # Calling ------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        operands, static = self.calling.bind(self.label, args, kwargs)
        concrete = _jax.concrete_array()
        for operand in operands:
            if type(operand) is not concrete:
                if self._traced_now(operands):
                    return self._apply(static, *operands)
                break
        try:
            compiled = self._compiled[static]
        except KeyError:
            compiled = self._compiled.setdefault(
                static, jax.jit(partial(self._apply, static), inline=True)
            )
        return compiled(*operands)

    def _traced_now(self, operands: tuple) -> bool:
        """Check the leaves of a call that is not on concrete arrays alone."""
        leaves, tree = tree_flatten(operands)
        traced = False
        for index, leaf in enumerate(leaves):
            if isinstance(leaf, jax.core.Tracer):
                traced = True
            elif not isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
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

    # Derivatives --------------------------------------------------------------------------------

    @property
    def inlined(self) -> bool:
        """Whether a call is a JAX function that is put in its place."""
        if self.traced is None:
            return False
        # A pushforward whose transpose was declared must stay one operation.
        return not isinstance(self.role, Pushforward) or "vjp" not in self.role.parent._rules

    def derivative(self, step: str) -> Binding | None:
        """The derivative that a name in a program calls ``step``: ``jvp``, ``vjp@2``, ..."""
        return next((rule for rule in self._rules.values() if rule.step == step), None)

    def _derived(
        self, key: Hashable, step: str, role: Role, rule: Callable, traced: bool
    ) -> Binding:
        """Make (or replace) a derivative; traces that JAX has cached are forgotten."""
        self._versions[key] = version = self._versions.get(key, 0) + 1
        label = f"{self.label}.{step}"
        binding = Binding(
            None if traced else rule,
            role,
            label=label,
            parent=self,
            step=step if version == 1 else f"{step}@{version}",
            calling=self._calling_of(role),
            traced=Traced(rule, label) if traced else None,
            vectorized=self.vectorized,
            order=self.order,
            compute_dtype=self.compute_dtype,
        )
        self._set_rule(key, binding)
        return binding

    def _calling_of(self, role: Role) -> Parameters:
        """How a derivative is called: with our static parameters."""
        if isinstance(role, (Pushforward, Pullback)):
            names = ("primals", role.second)
            return replace(
                self.calling, operands=names, defaults={}, by_keyword=frozenset(names), variadic=False
            )
        if isinstance(role, Transposed):
            return replace(
                self.calling, operands=(), defaults={}, by_keyword=frozenset(), variadic=True
            )
        return self.calling

    def _set_rule(self, key: Hashable, binding: Binding) -> None:
        self._rules[key] = binding
        self._forget()

    def _forget(self) -> None:
        if self._ever_traced():
            self._compiled.clear()
            _jax.forget_traces()

    def _ever_traced(self) -> bool:
        return bool(self._outputs) or (self.parent is not None and self.parent._ever_traced())

    def def_jvp(self, rule: Any = None, *, traced: bool = False) -> Any:
        """Declare the pushforward: ``rule(primals, tangents, **static)``.

        Args:
          rule: gets two tuples with an entry per positional argument; ``tangents`` has ``None``
            where there is none (integers, ``nondiff``). Returns the tangent of the result, in
            the result's structure. NumPy arrays in and out; it may have a parameter ``out``.
            Or one of

            - ``"finite-difference"``: central differences, two calls of the function;
            - ``"complex-step"``: one call with a complex operand, exact to rounding, for
              functions that accept complex operands and are analytic;
            - ``"from-vjp"``: the Jacobian row by row, as many calls of the vjp rule as the
              result has elements (in one batch).
          traced: the rule is a JAX function (it may call bindings), and so is differentiable
            to any order by JAX itself.

        Returns:
          The derivative as a `Binding`, ``f.jvp``; for a traced rule, the rule.
        """
        if rule is None:
            return partial(self.def_jvp, traced=traced)
        if isinstance(rule, str):
            rule, traced = _derive.named_jvp(self, rule), True
        return self._declare("jvp", "jvp", Pushforward(self), rule, traced)

    def def_vjp(self, rule: Any = None, *, traced: bool = False) -> Any:
        """Declare the pullback: ``rule(primals, cotangents, **static)``.

        Args:
          rule: gets the tuple of primals, and the cotangents in the structure of the result
            (``None`` for integer results). Returns a tuple with the cotangent of each
            positional argument, ``None`` where there is no derivative; the bare array will do
            for one argument. It is the transpose of the pushforward, without conjugation. With
            a keyword parameter ``wrt`` it is told which cotangents are wanted (``wrt[i]``,
            ``"x" in wrt``) and may return ``None`` for the others. Or ``"from-jvp"``: the
            Jacobian column by column, as many calls of the jvp rule as the arguments have
            elements (in one batch).
          traced: as in `def_jvp`.

        Returns:
          The derivative as a `Binding`, ``f.vjp``; for a traced rule, the rule.
        """
        if rule is None:
            return partial(self.def_vjp, traced=traced)
        if isinstance(rule, str):
            rule, traced = _derive.named_vjp(self, rule), True
        return self._declare("vjp", "vjp", Pullback(self), rule, traced)

    def def_transpose(
        self, rule: Any = None, *, argument: str | int | None = None, traced: bool = False
    ) -> Any:
        """Declare the transpose: ``rule(*nonlinear_args, cotangents, **static)``.

        For ``linear=``, ``@f.def_transpose``; the rule returns the cotangents of the linear
        arguments (a tuple if there are several). For ``multilinear=``,
        ``@f.def_transpose("x")`` for each argument; the other arguments come first.

        It is the transpose, not the adjoint: ``sum(w * f(v)) == sum(transpose(w) * v)`` without
        conjugation. From an adjoint: ``conj(adjoint(conj(cotangents)))``.

        Returns:
          The transpose as a `Binding`, ``f.transpose``; for a traced rule, the rule.
        """
        if isinstance(rule, (str, int)):
            rule, argument = None, rule
        if rule is None:
            return partial(self.def_transpose, argument=argument, traced=traced)
        group, step = self._group(argument)
        return self._declare(("T", group), step, Transposed(self, group), rule, traced)

    def _declare(self, key: Hashable, step: str, role: Role, rule: Any, traced: bool) -> Any:
        if not callable(rule):
            raise TypeError(
                f"{self.label}.def_{step.partition('_')[0]}: rule={rule!r} is not callable; give a function"
            )
        binding = self._derived(key, step, role, rule, traced)
        return rule if traced else binding

    def _group(self, argument: str | int | None) -> tuple[Hashable, str]:
        role = self.role
        if not isinstance(role, Function) or not (role.linear or role.multilinear):
            raise TypeError(
                f"{self.label}: def_transpose is for functions declared linear (bind(...,"
                " linear=True), linear=('x',) or multilinear=('x', 'y')); for others write"
                " def_vjp"
            )
        if argument is None:
            if not role.linear:
                names = ", ".join(repr(self.argument_name(p)) for p in sorted(role.multilinear))
                raise TypeError(
                    f"{self.label}: say in which argument the rule transposes: def_transpose(x)"
                    f"(rule) with x one of {names}"
                )
            return LINEAR, "transpose"
        position = _position(self.label, "def_transpose", self.parameters, argument)
        if role.linear is True or (role.linear and position in role.linear):
            return LINEAR, "transpose"
        if position not in role.multilinear:
            raise TypeError(
                f"{self.label}: argument {position} ({self.argument_name(position)}) is not"
                " declared linear or multilinear"
            )
        return position, f"transpose_{position}"

    def def_partials(self, *rules: Callable | None, traced: bool = True) -> Any:
        """Declare the partial derivatives of an elementwise function, one rule per argument.

        Args:
          rules: ``rule(*primals, **static)`` gives the derivative of the result with respect to
            its argument, elementwise (a tuple of them for several results); ``None`` where
            there is none. JAX functions, which may call bindings, so that derivatives of any
            order follow.
          traced: ``False`` for rules over NumPy arrays; each becomes a binding of its own.

        Returns:
          The rules (for ``traced=False``, their bindings).
        """
        count = len(self.parameters.operands)
        if not self.parameters.variadic and len(rules) != count:
            raise TypeError(
                f"{self.label}: def_partials got {len(rules)} rules for {count} arguments"
                f" ({', '.join(self.parameters.operands)}); give one for each, None where there"
                " is no derivative"
            )
        for rule in rules:
            if rule is not None and not callable(rule):
                raise TypeError(f"{self.label}: def_partials got {rule!r}, which is not callable")
        if not traced:
            rules = tuple(
                None if rule is None else self._companion(rule, f"partial_{i}", self.role.shapes)
                for i, rule in enumerate(rules)
            )
        self._set_pushforward(Partials(rules, f"{self.label}.def_partials"))
        return rules

    def def_jacobian(self, rule: Any = None, *, traced: bool = False) -> Any:
        """Declare dense Jacobians: ``rule(*primals, **static)``.

        Args:
          rule: returns, for each result, a tuple with an array of shape
            ``result.shape + argument.shape`` for each argument (``None`` where there is none);
            for one argument the array will do. That is the structure of
            ``jax.jacobian(f, argnums=(0, 1, ...))``. A rule whose only positional parameter is
            called ``primals`` gets the tuple of them.
          traced: as in `def_jvp`.

        Returns:
          The Jacobian as a `Binding` (which can have derivatives of its own); for a traced
          rule, the rule.
        """
        if rule is None:
            return partial(self.def_jacobian, traced=traced)
        if not callable(rule):
            raise TypeError(f"{self.label}: def_jacobian got {rule!r}, which is not callable")
        if not traced:
            packed = Parameters.of(rule).operands == ("primals",) != self.parameters.operands
            function = _unpacked(rule) if packed else rule
            rule = self._companion(function, "jacobian", _derive.JacobianShapes(self))
        self._set_pushforward(Jacobians(rule, f"{self.label}.def_jacobian"))
        return rule

    def _companion(self, rule: Callable, step: str, shapes: Any) -> Binding:
        """A binding beside this one: same operands, nonlinear, its own results."""
        nondiff = getattr(self.role, "nondiff", frozenset())
        role = Function(shapes, False, frozenset(), nondiff, self.compute_dtype)
        return self._derived(step, step, role, rule, False)

    def _set_pushforward(self, traced: Any) -> None:
        binding = self._derived("jvp", "jvp", Pushforward(self), traced, True)
        binding.traced = traced

    def def_vmap(self, rule: Callable) -> Callable:
        """Replace the loop: ``rule(axis_size, in_batched, *args, **static)``.

        The interface of ``jax.custom_batching.custom_vmap``: a JAX function; ``in_batched`` is
        a tuple of bools in the structure of ``args``, whose mapped axes are in front. Returns
        the result and, in its structure (or one bool for all), whether it is batched.
        """
        parameters = Parameters.of(rule)

        def apply(call: Call, size: int, batched: tuple, args: tuple) -> tuple[Any, Any]:
            answer = rule(size, list(batched), *args, **parameters.accepted(call.static.values))
            if not (isinstance(answer, tuple) and len(answer) == 2):
                raise TypeError(
                    f"{self.label}: the rule of def_vmap must return (result, out_batched)"
                )
            return answer

        self.vmap_rule = apply
        self._forget()
        return rule

    @property
    def jvp(self) -> Any:
        """The pushforward, a function of ``(primals, tangents)``, linear in the second."""
        rule = self._rules.get("jvp")
        if rule is None:
            if self._all_linear():
                return partial(_derive.linear_jvp, self)
            return self._undeclared_jvp()
        return rule.traced.function if isinstance(rule.traced, Traced) else rule

    @property
    def vjp(self) -> Any:
        """The pullback, a function of ``(primals, cotangents)``, linear in the second."""
        rule = self._rules.get("vjp")
        if rule is None:
            return partial(_derive.pull, self)
        return rule.traced.function if rule.traced is not None else rule

    @property
    def transpose(self) -> Any:
        """The transpose of a linear function; for ``multilinear``, a dict by argument name."""
        rules = {
            self.argument_name(key[1]): rule
            for key, rule in self._rules.items()
            if isinstance(key, tuple) and key[0] == "T" and key[1] != LINEAR
        }
        linear = self._rules.get(("T", LINEAR))
        if linear is None and rules:
            return rules
        rule = linear or self.transpose_rule(LINEAR, "its linear arguments")
        return rule.traced.function if rule.traced is not None else rule

    def _all_linear(self) -> bool:
        return isinstance(self.role, Function) and self.role.linear is True

    def _undeclared_jvp(self) -> Binding:
        """The pushforward of a function of which only the pullback was declared."""
        rule = self._rules.get("undeclared")
        if rule is None:
            rule = Binding(
                None,
                Pushforward(self),
                label=f"{self.label}.jvp",
                parent=self,
                step="jvp",
                calling=self._calling_of(Pushforward(self)),
                compute_dtype=self.compute_dtype,
            )
            self._rules["undeclared"] = rule
        return rule

    # What the primitive asks --------------------------------------------------------------------

    def push_general(
        self, call: Call, primals: Sequence[Any], tangents: Sequence[Any]
    ) -> list[Any]:
        """Push tangents (``None``: zero) of the operands with a rule forward."""
        rule = self._rules.get("jvp")
        if rule is None:
            if "vjp" not in self._rules:
                index = next(i for i, t in enumerate(tangents) if t is not None)
                raise self._no_rule(call, index)
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
            raise TypeError(
                f"{self.label}: reverse-mode differentiation (jax.grad, jax.vjp) with respect to"
                f" {operand} needs {self.label}.def_vjp(rule); only a rule for forward mode was"
                f" given. {self.label}.def_vjp('from-jvp') makes one from it, at one call per"
                " element of the arguments"
            )
        return rule

    def transpose_rule(self, group: Hashable, operand: str) -> Binding:
        rule = self._rules.get(("T", group))
        if rule is None:
            if group == LINEAR:
                how = "def_transpose(rule)"
            else:
                how = f"def_transpose({self.argument_name(group)!r})(rule)"  # type: ignore[arg-type]
            raise TypeError(
                f"{self.label}: transposing with respect to {operand} (jax.grad, jax.vjp,"
                f" jax.linear_transpose) needs {self.label}.{how}"
            )
        return rule

    def no_forward_rule(self, call: Call) -> TypeError:
        parent = self.role.parent
        assert parent is not None
        tree, partial_tree = call.tree.children()
        skeleton = jax.tree_util.tree_unflatten(partial_tree, [0] * partial_tree.num_leaves)
        present = [leaf is not None for leaf in tree.flatten_up_to(skeleton)]
        operand = parent.operand_name(tree, present.index(True))
        return TypeError(
            f"{parent.label}: forward-mode differentiation (jax.jvp, jax.jacfwd, jax.hessian)"
            f" with respect to {operand} needs {parent.label}.def_jvp(rule); only a rule for"
            f" reverse mode was given. {parent.label}.def_jvp('from-vjp') makes one from it, at"
            " one call per element of the result"
        )

    def _no_rule(self, call: Call, index: int) -> TypeError:
        return TypeError(
            f"{self.label}: no derivative with respect to {call.operand(index)}: give"
            f" {self.label}.def_vjp(rule) for reverse mode (jax.grad), {self.label}.def_jvp(rule)"
            f" for forward mode (jax.jvp), {self.label}.def_partials(...) for an elementwise"
            f" function, or {self.label}.def_jvp('finite-difference')"
        )

    def not_differentiable(self, call: Call, index: int) -> TypeError:
        return TypeError(
            f"{self.label}: not differentiable with respect to {call.operand(index)}, which is"
            " declared nondiff. Use jax.lax.stop_gradient on it if it has no influence on what"
            " you differentiate"
        )

    def not_linear(self, call: Call, index: int) -> TypeError:
        return TypeError(
            f"{self.label}: cannot be transposed with respect to {call.operand(index)}, in which"
            " it is not declared linear. Declare it with bind(..., linear=...) if it is; to"
            " differentiate it use jax.vjp"
        )


def _nothing() -> None:
    """Stands for the function of a derivative without one."""


def _unpacked(rule: Callable) -> Callable:
    @wraps(rule)
    def unpacked(*primals: Any, **static: Any) -> Any:
        return rule(primals, **static)

    return unpacked


def _position(label: str, option: str, parameters: Parameters, argument: str | int) -> int:
    """The position of an argument named in an option.

    Raises:
      TypeError: naming the arguments that there are.
    """
    names = parameters.operands
    if isinstance(argument, str) and argument in names:
        return names.index(argument)
    if isinstance(argument, int) and not isinstance(argument, bool):
        if 0 <= argument < len(names) or (argument >= 0 and parameters.variadic):
            return argument
    raise TypeError(
        f"{label}: {option} names {argument!r}, which is no argument; it has"
        f" {', '.join(names) or 'no named arguments; give positions'}"
    )


def positions(label: str, option: str, parameters: Parameters, given: Any) -> frozenset[int]:
    """Positions of the arguments that an option names (one name, or several)."""
    several = (given,) if isinstance(given, (str, int)) else tuple(given)
    return frozenset(_position(label, option, parameters, a) for a in several)
