"""`Declarations`: the rules that users declare about a binding, and what they get from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial, wraps
from typing import Any

from jaxbind import _derive, _jax
from jaxbind._call import Call
from jaxbind._derivatives import Pullback, Pushforward
from jaxbind._parameters import Parameters, position
from jaxbind._roles import LINEAR, Function
from jaxbind._rules import Jacobians, Partials, Traced
from jaxbind._transposed import Transposed

Role = Function | Pushforward | Pullback | Transposed


class Declarations:
    """Declaring derivatives and the vmap rule; a derivative is a binding of the same class."""

    label: str
    role: Any
    parent: Any
    traced: Any
    parameters: Parameters
    calling: Parameters
    vectorized: bool
    order: str
    compute_dtype: Any
    vmap_rule: Callable | None
    argument_name: Callable[[int], str]
    transpose_rule: Callable[[Hashable, str], Any]
    _rules: dict[Hashable, Any]
    _versions: dict[Hashable, int]
    _outputs: dict[Any, Any]
    _compiled: dict[Any, Callable]
    _plain_count: int

    @property
    def inlined(self) -> bool:
        """Whether a call is a JAX function that is put in its place."""
        if self.traced is None:
            return False
        # A pushforward whose transpose was declared must stay one operation.
        return not isinstance(self.role, Pushforward) or "vjp" not in self.role.parent._rules

    def derivative(self, step: str) -> Any:
        """The derivative that a name in a program calls ``step``: ``jvp``, ``vjp@2``, ..."""
        return next((rule for rule in self._rules.values() if rule.step == step), None)

    def _sibling(self, function: Callable | None, role: Role, **options: Any) -> Any:
        make: Any = type(self)
        return make(function, role, parent=self, compute_dtype=self.compute_dtype, **options)

    def _derived(self, key: Hashable, step: str, role: Role, rule: Callable, traced: bool) -> Any:
        """Make (or replace) a derivative; traces that JAX has cached are forgotten."""
        self._versions[key] = version = self._versions.get(key, 0) + 1
        label = f"{self.label}.{step}"
        binding = self._sibling(
            None if traced else rule,
            role,
            label=label,
            step=step if version == 1 else f"{step}@{version}",
            calling=self._calling_of(role),
            traced=Traced(rule, label) if traced else None,
            vectorized=self.vectorized,
            order=self.order,
        )
        self._set_rule(key, binding)
        return binding

    def _calling_of(self, role: Role) -> Parameters:
        """How a derivative is called: with our static parameters."""
        if isinstance(role, (Pushforward, Pullback)):
            names = ("primals", role.second)
            return replace(
                self.calling,
                operands=names,
                defaults={},
                by_keyword=frozenset(names),
                variadic=False,
            )
        if isinstance(role, Transposed):
            return replace(
                self.calling, operands=(), defaults={}, by_keyword=frozenset(), variadic=True
            )
        return self.calling

    def _set_rule(self, key: Hashable, binding: Any) -> None:
        self._rules[key] = binding
        self._forget()

    def _forget(self) -> None:
        if self._ever_traced():
            self._compiled.clear()
            self._plain_count = -1
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
                f"{self.label}.def_{step.partition('_')[0]}: rule={rule!r} is not callable; give"
                " a function"
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
        where = position(self.label, "def_transpose", self.parameters, argument)
        if role.linear is True or (role.linear and where in role.linear):
            return LINEAR, "transpose"
        if where not in role.multilinear:
            raise TypeError(
                f"{self.label}: argument {where} ({self.argument_name(where)}) is not"
                " declared linear or multilinear"
            )
        return where, f"transpose_{where}"

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

    def _companion(self, rule: Callable, step: str, shapes: Any) -> Any:
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

    def _undeclared_jvp(self) -> Any:
        """The pushforward of a function of which only the pullback was declared."""
        rule = self._rules.get("undeclared")
        if rule is None:
            rule = self._sibling(
                None,
                Pushforward(self),
                label=f"{self.label}.jvp",
                step="jvp",
                calling=self._calling_of(Pushforward(self)),
            )
            self._rules["undeclared"] = rule
        return rule


def _unpacked(rule: Callable) -> Callable:
    @wraps(rule)
    def unpacked(*primals: Any, **static: Any) -> Any:
        return rule(primals, **static)

    return unpacked
