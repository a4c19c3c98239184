"""`Declarations`: the rules of differentiation that users declare, and what they get from them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

from jaxbind import _derive, _whole
from jaxbind._declaring import (
    checked,
    forget,
    function_role,
    operand_count,
    refuse_needless,
    transposed_group,
)
from jaxbind._definition import Definition, Role
from jaxbind._derivatives import Pullback, Pushforward
from jaxbind._parameters import Parameters
from jaxbind._roles import LINEAR, Function
from jaxbind._rules import Jacobians, Partials, Traced, per_argument, takes_primals, unpacked
from jaxbind._transposed import Transposed


class Declarations:
    """Declaring derivatives; a derivative is a binding of the same class."""

    definition: Definition
    _derivatives: dict[Definition, Any]

    @property
    def _label(self) -> str:
        return self.definition.label

    @property
    def _parameters(self) -> Parameters:
        return self.definition.parameters

    def _argument_name(self, position: int) -> str:
        return self.definition.argument_name(position)

    def _handle(self, definition: Definition) -> Any:
        """The binding of a derivative, the same one each time."""
        if definition not in self._derivatives:
            make: Any = type(self)
            self._derivatives[definition] = make(definition)
        return self._derivatives[definition]

    def _define(
        self, key: Hashable, step: str, role: Role, function: Callable | None, traced: Any = None
    ) -> Definition:
        label = None
        if isinstance(key, tuple) and key[1] != LINEAR:  # as the user reaches it
            label = f"{self._label}.transpose[{self._argument_name(key[1])!r}]"
        made = self.definition.define(key, step, role, function, traced, label)
        current = self.definition.rules.values()
        self._derivatives = {d: b for d, b in self._derivatives.items() if d in current}
        forget(self.definition)
        return made

    def def_jvp(self, rule: Any = None, *, traced: bool = False) -> Any:
        """Declare the pushforward: ``rule(primals, tangents, **static)``.

        Args:
          rule: gets two tuples with an entry per positional argument; ``tangents`` has ``None``
            where there is none (integers, ``nondiff``), otherwise an array of the primal's shape
            and dtype. Returns the tangent of the result, in the result's structure and of its
            shapes and dtypes (``None`` for integers). NumPy arrays in and out; it may have a
            parameter ``out``, and names the static parameters that it needs. Or one of

            - ``"finite-difference"``: central differences, two calls of the function. A third of
              the digits of its coarsest dtype is lost: errors of 1e-10 in float64, 1e-5 in
              float32, relative to the function's own scale;
            - ``"complex-step"``: one call with a complex operand, exact to rounding, for
              functions that accept complex operands and are analytic;
            - ``"from-vjp"``: the Jacobian row by row, as many calls of the vjp rule as the
              result has real numbers (in one batch).
          traced: the rule is a JAX function (it may call bindings), and so is differentiable
            to any order by JAX itself.

        Returns:
          The derivative as a `Binding`, ``f.jvp``; for a traced rule, the rule.

        Raises:
          TypeError: if ``rule`` is not callable, or another string; if it has a keyword-only
            parameter that is no static parameter of the function; if it would never be called,
            since the function is linear in all its arguments; for ``"from-vjp"`` where the vjp
            rule is ``"from-jvp"``. What the rule returns is checked when it is called: a traced
            one while it is traced (``TypeError``), one over NumPy arrays at execution
            (``jax.errors.JaxRuntimeError``).
        """
        if rule is None:
            return partial(self.def_jvp, traced=traced)
        refuse_needless(self.definition, "def_jvp")
        role = Pushforward(self.definition)
        if isinstance(rule, str):
            made = _derive.named_jvp(self.definition, rule)
            self._define("jvp", "jvp", role, None, made)
            return made
        return self._declare("jvp", "jvp", role, rule, traced)

    def def_vjp(self, rule: Any = None, *, traced: bool = False) -> Any:
        """Declare the pullback: ``rule(primals, cotangents, **static)``.

        Args:
          rule: gets the tuple of primals, and the cotangents in the structure of the result
            and of its shapes and dtypes (``None`` for integer results; zeros for others that
            nothing depends on). Returns a tuple with the cotangent of each positional argument,
            of its shape and dtype, ``None`` where there is no derivative; the bare array will do
            for one argument. It is the transpose of the pushforward, without conjugation; of a
            real argument the real part is taken. With a keyword parameter ``wrt`` it is told
            which cotangents are wanted (``wrt[i]``, ``"x" in wrt``) and may return ``None`` for
            the others. Or ``"from-jvp"``: the Jacobian column by column, as many calls of the jvp
            rule as the arguments have real numbers (in one batch).
          traced: as in `def_jvp`.

        Returns:
          The derivative as a `Binding`, ``f.vjp``; for a traced rule, the rule.

        Raises:
          TypeError: as for `def_jvp`.
        """
        if rule is None:
            return partial(self.def_vjp, traced=traced)
        refuse_needless(self.definition, "def_vjp")
        role = Pullback(self.definition)
        if isinstance(rule, str):
            made = _derive.named_vjp(self.definition, rule)
            self._define("vjp", "vjp", role, None, made)
            return made
        return self._declare("vjp", "vjp", role, rule, traced)

    def def_transpose(
        self, rule: Any = None, *, argument: str | int | None = None, traced: bool = False
    ) -> Any:
        """Declare the transpose: ``rule(*nonlinear_args, cotangents, **static)``.

        For ``linear=``, ``@f.def_transpose``; the rule returns the cotangents of the linear
        arguments (a tuple if there are several). For ``multilinear=``,
        ``@f.def_transpose("x")`` for each argument; the other arguments come first.

        It is the transpose, not the adjoint: ``sum(w * f(v)) == sum(transpose(w) * v)`` without
        conjugation. From an adjoint: ``conj(adjoint(conj(cotangents)))``.

        Args:
          rule: gets the arguments in which the function is not linear, as positional arguments
            in their order, and the cotangents in the structure of the result, and of its shapes
            and dtypes (``None`` for integer results). Returns arrays of the shapes and dtypes of
            the linear arguments. It may ask for ``wrt`` and ``out``, as in `def_vjp`.
          argument: for ``multilinear=``, the name or the position of the argument.
          traced: as in `def_jvp`.

        Returns:
          The transpose as a `Binding`, ``f.transpose``; for a traced rule, the rule. Called
          directly it gives arrays of the cotangents' dtype, since it does not see the argument
          that was transposed: ``jax.linear_transpose`` knows whether that was real.

        Raises:
          TypeError: as for `def_jvp`; if the function is not declared linear, or not in
            ``argument``; if ``argument`` is not given where there are several to choose from.
        """
        if isinstance(rule, (str, int)) and argument is None:
            rule, argument = None, rule
        group, step = transposed_group(self.definition, argument)
        if rule is None:
            return partial(self.def_transpose, argument=argument, traced=traced)
        return self._declare(("T", group), step, Transposed(self.definition, group), rule, traced)

    def _declare(self, key: Hashable, step: str, role: Role, rule: Any, traced: bool) -> Any:
        what = f"def_{step.partition('_')[0]}"
        checked(self.definition, what, rule, role.positional, wrt=role.takes_wrt, plan=not traced)
        if traced:
            made = Traced(rule, f"{self._label}.{step}", has_wrt=role.takes_wrt)
            self._define(key, step, role, None, made)
            return rule
        return self._handle(self._define(key, step, role, rule))

    def def_partials(self, *rules: Callable | None, traced: bool = True) -> Any:
        """Declare the partial derivatives of an elementwise function, one rule per argument.

        They are the derivative in both modes, in the place of rules that were declared before.

        Args:
          rules: ``rule(*primals, **static)`` gives the derivative of the result with respect to
            its argument, elementwise (a tuple of them for several results); ``None`` where
            there is none. JAX functions, which may call bindings, so that derivatives of any
            order follow.
          traced: ``False`` for rules over NumPy arrays; each becomes a binding of its own.

        Returns:
          The rules (for ``traced=False``, their bindings).

        Raises:
          TypeError: for another number of rules than of arguments, one that is not callable, has
            a keyword-only parameter that is no static parameter of the function, or would never
            be called; for the derivative of a derivative. When it is differentiated: if an
            argument is no array, a partial derivative is not elementwise, or complex where the
            result is real.
        """
        function = function_role(self.definition, "def_partials")
        refuse_needless(self.definition, "def_partials")
        count = self.definition.calling.fill or len(self._parameters.operands)
        names = ", ".join(self._parameters.operands[:count])
        if not self._parameters.variadic and len(rules) != count:
            raise TypeError(
                f"{self._label}: def_partials got {len(rules)} rules for {count} arguments"
                f" ({names}); give one for each, None where there is no derivative"
            )
        known = operand_count(self.definition)
        for rule in rules:
            if rule is not None:
                checked(self.definition, "def_partials", rule, known, plan=not traced)
        if not traced:
            rules = tuple(
                None if rule is None else self._companion(rule, f"partial_{i}", function.shapes)
                for i, rule in enumerate(rules)
            )
        self._set_pushforward(Partials(rules, f"{self._label}.def_partials"))
        return rules

    def def_jacobian(self, rule: Any = None, *, traced: bool = False) -> Any:
        """Declare dense Jacobians: ``rule(*primals, **static)``.

        They are the derivative in both modes, in the place of rules that were declared before.

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

        Raises:
          TypeError: as for `def_partials`; when it is differentiated, if a Jacobian has another
            shape.
        """
        if rule is None:
            return partial(self.def_jacobian, traced=traced)
        refuse_needless(self.definition, "def_jacobian")
        packed = takes_primals(Parameters.of(rule)) and not takes_primals(self._parameters)
        count = 1 if packed else operand_count(self.definition)
        checked(self.definition, "def_jacobian", rule, count, plan=not traced)
        if not traced:
            function = per_argument(unpacked(rule) if packed else rule)
            rule = self._companion(function, "jacobian", _derive.JacobianShapes(self.definition))
        self._set_pushforward(
            Jacobians(rule, f"{self._label}.def_jacobian", packed=packed and traced)
        )
        return rule

    def _companion(self, rule: Callable, step: str, shapes: Any) -> Any:
        """A binding beside this one: same operands, nonlinear, its own results."""
        nondiff = function_role(self.definition, step).nondiff
        role = Function(shapes, False, frozenset(), nondiff, self.definition.options.compute_dtype)
        return self._handle(self._define(step, step, role, rule))

    def _set_pushforward(self, traced: Any) -> None:
        """Declare all of the derivative: a pullback from before is no part of it."""
        self.definition.rules.pop("vjp", None)
        self._define("jvp", "jvp", Pushforward(self.definition), None, traced)

    @property
    def jvp(self) -> Any:
        """The pushforward, a function of ``(primals, tangents)``, linear in the second.

        Both are tuples with an entry per positional argument; a tangent is ``None`` where there is
        none, and so is that of an integer result. For a traced rule it is the rule itself, but
        where the function is linear in some arguments: then JAX puts the whole together.

        Raises:
          TypeError: when it is called, for tuples of other lengths, or if a rule is missing.
        """
        return self._rule(self.definition.rules.get("jvp") or self.definition.undeclared_jvp())

    @property
    def vjp(self) -> Any:
        """The pullback, a function of ``(primals, cotangents)``, linear in the second.

        The cotangents have the structure of the result, ``None`` for integer results; it gives a
        tuple with an entry per positional argument, ``None`` for those without derivative.

        Raises:
          TypeError: when it is called, for other structures, or if a rule is missing.
        """
        rule = self.definition.rules.get("vjp")
        if rule is not None:
            return self._rule(rule)

        def pullback(primals: Any, cotangents: Any, **static: Any) -> tuple:
            label = f"{self._label}.vjp"
            given = _whole.entries(label, self._label, "primals", primals)
            _, parameters = self.definition.calling.bind(self._label, given, static)
            return _whole.pull(self.definition, label, parameters, (given, cotangents))

        return pullback

    @property
    def transpose(self) -> Any:
        """The transpose of a linear function; for ``multilinear``, a dict by argument name.

        Raises:
          TypeError: if none was declared; when it is called, if the operands do not tell the shape
            of the argument that was transposed.
        """
        rules = {
            self._argument_name(key[1]): self._rule(rule)
            for key, rule in self.definition.rules.items()
            if isinstance(key, tuple) and key[0] == "T" and key[1] != LINEAR
        }
        linear = self.definition.rules.get(("T", LINEAR))
        if linear is None and rules:
            return rules
        if linear is None:
            transposed_group(self.definition, None)  # says so where it is not linear at all
            linear = self.definition.transpose_rule(LINEAR, "its linear arguments")
        return self._rule(linear)

    def _rule(self, rule: Definition) -> Any:
        """What the user gets for a declared derivative: its binding, or the traced rule."""
        if isinstance(rule.traced, Traced) and rule.role.whole is None:
            return rule.traced.function
        return self._handle(rule)
