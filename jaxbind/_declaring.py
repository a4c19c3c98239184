"""What all ``def_...`` methods share: checks of what is declared, and forgetting."""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from typing import Any

from jaxbind import _jax
from jaxbind._definition import Definition
from jaxbind._errors import log
from jaxbind._parameters import Parameters, position
from jaxbind._roles import GENERAL, LINEAR, Function

#: for keyword-only parameters that mean something in other functions
_REMEDIES = {
    "wrt": "Rules of def_vjp and def_transpose are told wrt, this one is not",
    "plan": "Only functions and rules over NumPy arrays can have a plan, this one can not",
}


def operand_count(definition: Definition) -> int | None:
    """How many operands the function has, if that is known."""
    calling = definition.calling
    return None if calling.variadic else calling.fill or len(calling.operands)


def checked(
    definition: Definition,
    what: str,
    rule: Any,
    count: int | None,
    *,
    wrt: bool = False,
    plan: bool = False,
) -> Parameters:
    """The parameters of what a user declares.

    Args:
      definition: what it is declared about.
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
            f"{definition.label}.{what}: got {rule!r}, which is not callable; give a function"
        )
    parameters = bare = Parameters.of(rule, rule=wrt)
    if count is not None:
        parameters = bare.behind(count)
    known = definition.calling
    few = not bare.variadic and not known.defaults and len(bare.operands) < (count or 0)
    if few:
        raise TypeError(
            f"{definition.label}.{what}: the rule takes {len(bare.operands)} positional"
            f" argument{'s' * (len(bare.operands) != 1)}; it is called with {count}"
        )
    for name, default in parameters.static.items():
        if default is not inspect.Parameter.empty or name in known.static or known.any_static:
            continue
        if name == "plan" and plan:
            continue
        shown = f"keyword-only parameter {name}"
        if name not in bare.static:
            shown = f"parameter {name} behind the {count} that are given by position"
        raise TypeError(
            f"{definition.label}.{what}: the rule has a {shown}, which"
            f" is no static parameter of the function ({', '.join(known.static) or 'none'}"
            f"). {_REMEDIES.get(name, 'Give it a default, or leave it out')}"
        )
    return parameters


def function_role(definition: Definition, what: str) -> Function:
    role = definition.role
    if not isinstance(role, Function):
        raise TypeError(
            f"{definition.label}: {what} is for functions; declare the derivatives of a derivative"
            " with def_jvp and def_vjp"
        )
    return role


def refuse_needless(definition: Definition, what: str) -> None:
    """Where all of the derivative follows from linearity, a rule would never be called."""
    role = definition.role
    if not isinstance(role, Function) or not role.mixed:
        return
    kinds = [role.kind(p) for p in range(len(definition.parameters.operands))]
    if role.linear is True or (GENERAL not in kinds and not definition.parameters.variadic):
        raise TypeError(
            f"{definition.label}: {what} would never be called, since it is declared linear in"
            " each of its arguments; def_transpose is all it needs"
        )


def transposed_group(definition: Definition, argument: str | int | None) -> tuple[Hashable, str]:
    """The key and the name of the transpose in an argument (``None``: in all that are linear)."""
    role = definition.role
    if not isinstance(role, Function) or not (role.linear or role.multilinear):
        raise TypeError(
            f"{definition.label}: def_transpose is for functions declared linear (bind(...,"
            " linear=True), linear=('x',) or multilinear=('x', 'y')); for others write"
            " def_vjp"
        )
    if argument is None:
        if not role.linear:
            names = ", ".join(repr(definition.argument_name(p)) for p in sorted(role.multilinear))
            raise TypeError(
                f"{definition.label}: say in which argument the rule transposes: def_transpose(x)"
                f"(rule) with x one of {names}"
            )
        return LINEAR, "transpose"
    where = position(definition.label, "def_transpose", definition.parameters, argument)
    if role.linear is True or (role.linear and where in role.linear):
        return LINEAR, "transpose"
    if where not in role.multilinear:
        raise TypeError(
            f"{definition.label}: argument {where} ({definition.argument_name(where)}) is not"
            " declared linear or multilinear"
        )
    return where, f"transpose_{where}"


def forget(definition: Definition) -> None:
    """After a change of rules: whatever JAX has cached holds the old ones."""
    if definition.ever_traced():
        log.debug("%s: a rule has changed after use: JAX's caches are cleared", definition.label)
        _jax.forget_traces()
