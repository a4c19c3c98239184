"""`Declarations`: the rules that users declare about a binding, and what they get from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import jax

from jaxbind import _derive, _jax, _whole
from jaxbind._call import Call
from jaxbind._definition import Definition, Role
from jaxbind._derivatives import Pullback, Pushforward
from jaxbind._errors import log
from jaxbind._parameters import Parameters, position
from jaxbind._roles import GENERAL, LINEAR, Function
from jaxbind._rules import Jacobians, Partials, Traced, takes_primals
from jaxbind._transposed import Transposed

#: for keyword-only parameters that mean something in other functions
_REMEDIES = {
    "wrt": "Rules of def_vjp and def_transpose are told wrt, this one is not",
    "plan": "Only functions and rules over NumPy arrays can have a plan, this one can not",
}


class Declarations:
    """Declaring derivatives and the vmap rule; a derivative is a binding of the same class."""

    definition: Definition
    _derivatives: dict[Definition, Any]

    @property
    def _label(self) -> str:
        return self.definition.label

    @property
    def _parameters(self) -> Parameters:
        return self.definition.parameters

    @property
    def _count(self) -> int | None:
        """How many operands the function has, if that is known."""
        calling = self.definition.calling
        return None if calling.variadic else calling.fill or len(calling.operands)

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
        self._forget()
        return made

    def _forget(self) -> None:
        """After a change of rules: whatever JAX has cached holds the old ones."""
        if self.definition.ever_traced():
            log.debug("%s: a rule has changed after use: JAX's caches are cleared", self._label)
            _jax.forget_traces()

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
        self._refuse_needless("def_jvp")
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
        self._refuse_needless("def_vjp")
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
        if isinstance(rule, (str, int)):
            rule, argument = None, rule
        if rule is None:
            return partial(self.def_transpose, argument=argument, traced=traced)
        group, step = self._group(argument)
        return self._declare(("T", group), step, Transposed(self.definition, group), rule, traced)

    def _declare(self, key: Hashable, step: str, role: Role, rule: Any, traced: bool) -> Any:
        what = f"def_{step.partition('_')[0]}"
        self._checked(what, rule, role.positional, wrt=role.takes_wrt, plan=not traced)
        if traced:
            made = Traced(rule, f"{self._label}.{step}", has_wrt=role.takes_wrt)
            self._define(key, step, role, None, made)
            return rule
        return self._handle(self._define(key, step, role, rule))

    def _checked(
        self, what: str, rule: Any, count: int | None, *, wrt: bool = False, plan: bool = False
    ) -> Parameters:
        """The parameters of what a user declares.

        Args:
          what: the method that was called.
          rule: the function that it was given.
          count: with how many positional arguments it will be called, if that is known.
          wrt: whether it may ask for ``wrt``.
          plan: whether it can have a plan.

        Raises:
          TypeError: if it is not callable, or has parameters that nobody will give.
        """
        if not callable(rule):
            raise TypeError(
                f"{self._label}.{what}: got {rule!r}, which is not callable; give a function"
            )
        parameters = bare = Parameters.of(rule, rule=wrt)
        if count is not None:
            parameters = bare.behind(count)
        known = self.definition.calling
        for name, default in parameters.static.items():
            if default is not inspect.Parameter.empty or name in known.static or known.any_static:
                continue
            if name == "plan" and plan:
                continue
            shown = f"keyword-only parameter {name}"
            if name not in bare.static:
                shown = f"parameter {name} behind the {count} that are given by position"
            raise TypeError(
                f"{self._label}.{what}: the rule has a {shown}, which"
                f" is no static parameter of the function ({', '.join(known.static) or 'none'}"
                f"). {_REMEDIES.get(name, 'Give it a default, or leave it out')}"
            )
        return parameters

    def _refuse_needless(self, what: str) -> None:
        """Where all of the derivative follows from linearity, a rule would never be called."""
        role = self.definition.role
        if not isinstance(role, Function) or not role.mixed:
            return
        kinds = [role.kind(p) for p in range(len(self._parameters.operands))]
        if role.linear is True or (GENERAL not in kinds and not self._parameters.variadic):
            raise TypeError(
                f"{self._label}: {what} would never be called, since it is declared linear in"
                " each of its arguments; def_transpose is all it needs"
            )

    def _group(self, argument: str | int | None) -> tuple[Hashable, str]:
        role = self.definition.role
        if not isinstance(role, Function) or not (role.linear or role.multilinear):
            raise TypeError(
                f"{self._label}: def_transpose is for functions declared linear (bind(...,"
                " linear=True), linear=('x',) or multilinear=('x', 'y')); for others write"
                " def_vjp"
            )
        if argument is None:
            if not role.linear:
                names = ", ".join(repr(self._argument_name(p)) for p in sorted(role.multilinear))
                raise TypeError(
                    f"{self._label}: say in which argument the rule transposes: def_transpose(x)"
                    f"(rule) with x one of {names}"
                )
            return LINEAR, "transpose"
        where = position(self._label, "def_transpose", self._parameters, argument)
        if role.linear is True or (role.linear and where in role.linear):
            return LINEAR, "transpose"
        if where not in role.multilinear:
            raise TypeError(
                f"{self._label}: argument {where} ({self._argument_name(where)}) is not"
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

        Raises:
          TypeError: for another number of rules than of arguments, one that is not callable, has
            a keyword-only parameter that is no static parameter of the function, or would never
            be called; for the derivative of a derivative. When it is differentiated: if an
            argument is no array, a partial derivative is not elementwise, or complex where the
            result is real.
        """
        function = self._function_role("def_partials")
        self._refuse_needless("def_partials")
        count = self.definition.calling.fill or len(self._parameters.operands)
        names = ", ".join(self._parameters.operands[:count])
        if not self._parameters.variadic and len(rules) != count:
            raise TypeError(
                f"{self._label}: def_partials got {len(rules)} rules for {count} arguments"
                f" ({names}); give one for each, None where there is no derivative"
            )
        for rule in rules:
            if rule is not None:
                self._checked("def_partials", rule, self._count, plan=not traced)
        if not traced:
            rules = tuple(
                None if rule is None else self._companion(rule, f"partial_{i}", function.shapes)
                for i, rule in enumerate(rules)
            )
        self._set_pushforward(Partials(rules, f"{self._label}.def_partials"))
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

        Raises:
          TypeError: as for `def_partials`; when it is differentiated, if a Jacobian has another
            shape.
        """
        if rule is None:
            return partial(self.def_jacobian, traced=traced)
        self._refuse_needless("def_jacobian")
        packed = takes_primals(Parameters.of(rule)) and not takes_primals(self._parameters)
        self._checked("def_jacobian", rule, 1 if packed else self._count, plan=not traced)
        if not traced:
            function = _per_argument(_unpacked(rule) if packed else rule)
            rule = self._companion(function, "jacobian", _derive.JacobianShapes(self.definition))
        self._set_pushforward(
            Jacobians(rule, f"{self._label}.def_jacobian", packed=packed and traced)
        )
        return rule

    def _function_role(self, what: str) -> Function:
        role = self.definition.role
        if not isinstance(role, Function):
            raise TypeError(
                f"{self._label}: {what} is for functions; declare the derivatives of a derivative"
                " with def_jvp and def_vjp"
            )
        return role

    def _companion(self, rule: Callable, step: str, shapes: Any) -> Any:
        """A binding beside this one: same operands, nonlinear, its own results."""
        nondiff = self._function_role(step).nondiff
        role = Function(shapes, False, frozenset(), nondiff, self.definition.compute_dtype)
        return self._handle(self._define(step, step, role, rule))

    def _set_pushforward(self, traced: Any) -> None:
        self._define("jvp", "jvp", Pushforward(self.definition), None, traced)

    def def_plan(self, make: Any) -> Any:
        """Declare an object that each compiled call site makes once: ``make(*args, **static)``.

        An FFT plan, a factorisation: what depends on shapes, dtypes and static parameters alone.

        Args:
          make: gets `jax.ShapeDtypeStruct` of the core shapes and of the dtypes that the function
            sees, in the structure of the positional arguments, and the static parameters that it
            names. It is called at the first execution of each call site of each program, and what
            it returns is given to the function as the keyword ``plan``. The plan is released with
            the program.

        Returns:
          ``make``.

        Raises:
          TypeError: if ``make`` is not callable, or has a keyword-only parameter that is no
            static parameter; if the function has no keyword-only parameter ``plan``, or is not
            called from Python.
        """
        definition = self.definition
        if definition.compiled is not None or definition.function is None:
            raise TypeError(f"{self._label}.def_plan: only functions in Python can have a plan")
        if "plan" not in definition.parameters.static and not definition.parameters.any_static:
            raise TypeError(
                f"{self._label}.def_plan: the function has no keyword-only parameter plan, by which"
                " it would get it"
            )
        self._checked("def_plan", make, self._count)
        definition.make_plan = make
        static = {n: v for n, v in definition.calling.static.items() if n != "plan"}
        definition.calling = replace(definition.calling, static=static)
        self._forget()
        return make

    def def_impl(self, platform: str, /) -> Callable[[Callable], Callable]:
        """Declare what takes the function's place on another platform.

        ``@f.def_impl("cuda")`` decorates a JAX function ``implementation(*args, **static)`` of core
        operands that gives what the function gives; loop dimensions are mapped over it. It runs
        where a program is compiled for that platform; the function itself runs on the CPU.
        Derivatives have implementations of their own: ``f.vjp.def_impl("cuda")``.

        Args:
          platform: ``"cuda"``, ``"rocm"``, ``"gpu"`` (both), ``"tpu"``, or another of JAX's.

        Returns:
          A decorator, which returns the implementation.

        Raises:
          TypeError: if ``platform`` is no name, or what is decorated is not callable, or has a
            keyword-only parameter that is no static parameter.
          ValueError: for ``"cpu"``.
        """
        if not isinstance(platform, str):
            raise TypeError(f"{self._label}.def_impl({platform!r}): name a platform: 'cuda', say")
        if platform == "cpu":
            raise ValueError(
                f"{self._label}.def_impl('cpu'): on the CPU the bound function itself is called"
            )

        def declare(implementation: Callable) -> Callable:
            self._checked(f"def_impl({platform!r})", implementation, self._count)
            for name in {"gpu": ("cuda", "rocm")}.get(platform, (platform,)):
                self.definition.implementations[name] = implementation
            self._forget()
            return implementation

        return declare

    def def_vmap(self, rule: Callable) -> Callable:
        """Replace the loop: ``rule(axis_size, in_batched, *args, **static)``.

        The interface of ``jax.custom_batching.custom_vmap``.

        Args:
          rule: a JAX function of the size of the mapped axis; of a tuple of bools in the structure
            of ``args``; and of the arguments, whose mapped axes are in front (shape
            ``(axis_size, *core)``) where its flag is set. Returns the result, in the structure
            and the dtypes of the function's, and, in its structure (or one bool for all),
            whether it is batched.

        Returns:
          ``rule``.

        Raises:
          TypeError: if ``rule`` is not callable, or has a keyword-only parameter that is no static
            parameter of the function. When it is mapped: if it returns something else.
        """
        count = self._count
        parameters = self._checked("def_vmap", rule, None if count is None else 2 + count)

        def apply(call: Call, size: int, batched: tuple, args: tuple) -> tuple[Any, Any]:
            known = parameters.behind(2 + len(args)).accepted(call.static.values)
            answer = rule(size, list(batched), *args, **known)
            if not (isinstance(answer, tuple) and len(answer) == 2):
                raise TypeError(
                    f"{self._label}: the rule of def_vmap must return (result, out_batched)"
                )
            return answer

        self.definition.vmap_rule = apply
        self._forget()
        return rule

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
            self._group(None)  # says so where it is not linear at all
            linear = self.definition.transpose_rule(LINEAR, "its linear arguments")
        return self._rule(linear)

    def _rule(self, rule: Definition) -> Any:
        """What the user gets for a declared derivative: its binding, or the traced rule."""
        if isinstance(rule.traced, Traced) and rule.role.whole is None:
            return rule.traced.function
        return self._handle(rule)


def _unpacked(rule: Callable) -> Callable:
    @wraps(rule)
    def unpacked(*primals: Any, **static: Any) -> Any:
        return rule(primals, **static)

    signature = inspect.signature(rule)
    first, *others = signature.parameters.values()
    made: Any = unpacked
    made.__signature__ = signature.replace(
        parameters=[
            first.replace(kind=first.VAR_POSITIONAL),
            *(p.replace(kind=max(p.kind, p.KEYWORD_ONLY)) for p in others),
        ]
    )
    return unpacked


def _per_argument(rule: Callable) -> Callable:
    """A rule for Jacobians, which may return a tuple of one for a single argument."""

    def structure(value: Any) -> Any:
        return jax.tree.structure(value, is_leaf=lambda leaf: leaf is None)

    def is_one(value: Any) -> bool:
        return isinstance(value, tuple) and len(value) == 1

    @wraps(rule)
    def bare(*primals: Any, **static: Any) -> Any:
        result = rule(*primals, **static)
        if len(primals) != 1 or is_one(result):  # of one result it may be anyway
            return result
        argument = structure(primals[0])
        return jax.tree.map(
            lambda v: v[0] if is_one(v) and structure(v[0]) == argument else v,
            result,
            is_leaf=is_one,
        )

    return bare
