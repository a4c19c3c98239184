"""What users read when a rule is missing or a declaration forbids what they ask for."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from jaxbind._call import Call, present

if TYPE_CHECKING:
    from jaxbind._definition import Definition


class MissingRule(TypeError):
    """A derivative that was asked for, but that was not declared, or that its rule cannot give."""

    __module__ = "builtins"


MissingRule.__name__ = MissingRule.__qualname__ = "TypeError"  # what it is to users


def no_rule(definition: Definition, call: Call, index: int) -> TypeError:
    label = definition.label
    others = f" or {label}.def_jvp('finite-difference') and {label}.def_vjp('from-jvp')"
    if definition.parent is None:
        others = f" {label}.def_partials(...) for an elementwise function,{others}"
    return MissingRule(
        f"{label}: no derivative with respect to {call.operand(index)}: give"
        f" {label}.def_vjp(rule) for reverse mode (jax.grad), {label}.def_jvp(rule)"
        f" for forward mode (jax.jvp),{others}"
    )


def effect(definition: Definition) -> TypeError:
    label = definition.label
    return MissingRule(
        f"{label}: a function with an effect (effect={definition.options.effect!r}) is"
        f" differentiated by rules only, which it does not have: {label}.def_jvp(rule),"
        f" {label}.def_vjp(rule). Its derivative must not call it once more. Or stop at its"
        " arguments with jax.lax.stop_gradient"
    )


def no_vjp(label: str, operand: str, made: str) -> TypeError:
    """For a function with a pushforward only; ``made``: how that is made, if it is."""
    if made == "from-vjp":
        return MissingRule(
            f"{label}: differentiation with respect to {operand} needs {label}.def_vjp(rule), from"
            f" which {label}.def_jvp('from-vjp') makes the pushforward"
        )
    return MissingRule(
        f"{label}: reverse-mode differentiation (jax.grad, jax.vjp) with respect to"
        f" {operand} needs {label}.def_vjp(rule); only a rule for forward mode was"
        f" given. {label}.def_vjp('from-jvp') makes one from it, at one call per"
        " element of the arguments"
    )


def no_jvp(call: Call) -> TypeError:
    """For the call of a pushforward that nobody declared."""
    parent = call.definition.parent
    tree, tangents = call.tree.children()
    index = present(tree, tangents).index(True)
    if not parent.has_derivative:
        return no_rule(parent, call.definition.role.parent_call(call), index)
    operand = parent.operand_name(tree, index)
    return MissingRule(
        f"{parent.label}: forward-mode differentiation (jax.jvp, jax.jacfwd, jax.hessian)"
        f" with respect to {operand} needs {parent.label}.def_jvp(rule); only a rule for"
        f" reverse mode was given. {parent.label}.def_jvp('from-vjp') makes one from it, at"
        " one call per element of the result"
    )


def no_transpose(definition: Definition, group: Hashable, operand: str) -> TypeError:
    how = "def_transpose(rule)"
    if isinstance(group, int):
        how = f"def_transpose({definition.argument_name(group)!r})(rule)"
    return MissingRule(
        f"{definition.label}: transposing with respect to {operand} (jax.grad, jax.vjp,"
        f" jax.linear_transpose) needs {definition.label}.{how}"
    )


def not_differentiable(call: Call, index: int) -> TypeError:
    return TypeError(
        f"{call.definition.label}: not differentiable with respect to {call.operand(index)}, which"
        " is declared nondiff. Use jax.lax.stop_gradient on it if it has no influence on what"
        " you differentiate"
    )


def not_linear(call: Call, index: int) -> TypeError:
    return TypeError(
        f"{call.definition.label}: cannot be transposed with respect to {call.operand(index)}, in"
        " which it is not declared linear. Declare it with bind(..., linear=...) if it is; to"
        " differentiate it use jax.vjp"
    )


def no_implementation(
    definition: Definition, platforms: str, where: str = ""
) -> NotImplementedError:
    label = definition.label
    return NotImplementedError(
        f"{label}: there is no implementation for platform {platforms}; {where}jaxbind calls"
        " functions on the CPU. Move the operands with jax.device_put(x, jax.devices('cpu')[0]),"
        f" run under jax.default_device(jax.devices('cpu')[0]), or give"
        f" {label}.def_impl({platforms!r}) a JAX function that does the same"
    )
