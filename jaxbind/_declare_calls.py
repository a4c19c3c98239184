"""`CallDeclarations`: what users declare about how a binding is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxbind._call import Call
from jaxbind._declaring import checked, forget, operand_count
from jaxbind._definition import Definition


class CallDeclarations:
    """Declaring a plan, an implementation for another platform, and the vmap rule."""

    definition: Definition

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
        definition, label = self.definition, self.definition.label
        if definition.options.compiled is not None or definition.function is None:
            raise TypeError(f"{label}.def_plan: only functions in Python can have a plan")
        if "plan" not in definition.parameters.static and not definition.parameters.any_static:
            raise TypeError(
                f"{label}.def_plan: the function has no keyword-only parameter plan, by which"
                " it would get it"
            )
        checked(definition, "def_plan", make, operand_count(definition))
        definition.make_plan = make
        static = {n: v for n, v in definition.calling.static.items() if n != "plan"}
        definition.calling = replace(definition.calling, static=static)
        forget(definition)
        return make

    def def_impl(self, platform: str, /) -> Callable[[Callable], Callable]:
        """Declare what takes the function's place on another platform.

        ``@f.def_impl("cuda")`` decorates a JAX function ``implementation(*args, **static)`` of core
        operands that gives what the function gives; loop dimensions are mapped over it. It runs
        where a program is compiled for that platform; the function itself runs on the CPU, for
        programs on ``"cuda"`` between copies to and from the host.
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
        definition, label = self.definition, self.definition.label
        if not isinstance(platform, str):
            raise TypeError(f"{label}.def_impl({platform!r}): name a platform: 'cuda', say")
        if platform == "cpu":
            raise ValueError(
                f"{label}.def_impl('cpu'): on the CPU the bound function itself is called"
            )

        def declare(implementation: Callable) -> Callable:
            checked(
                definition, f"def_impl({platform!r})", implementation, operand_count(definition)
            )
            for name in {"gpu": ("cuda", "rocm")}.get(platform, (platform,)):
                definition.implementations[name] = implementation
            forget(definition)
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
        definition, label = self.definition, self.definition.label
        count = operand_count(definition)
        parameters = checked(definition, "def_vmap", rule, None if count is None else 2 + count)

        def apply(call: Call, size: int, batched: tuple, args: tuple) -> tuple[Any, Any]:
            known = parameters.behind(2 + len(args)).accepted(call.static.values)
            answer = rule(size, list(batched), *args, **known)
            if not (isinstance(answer, tuple) and len(answer) == 2):
                raise TypeError(f"{label}: the rule of def_vmap must return (result, out_batched)")
            return answer

        definition.vmap_rule = apply
        forget(definition)
        return rule
