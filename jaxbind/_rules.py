"""Rules that are JAX functions: how each becomes a pushforward on core operands.

A *traced* rule is inlined into the program where it is needed, so JAX differentiates,
transposes and batches it by itself. (A rule over NumPy arrays is a `Binding` instead.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxbind import _dtypes, _jax
from jaxbind._call import Call, Outputs, core_struct, leaves_up_to, over_loops, owners
from jaxbind._missing import MissingRule
from jaxbind._parameters import Parameters
from jaxbind._result import conform, flatten
from jaxbind._wrt import Wrt


class TracedRule(Protocol):
    """A rule that is a JAX function of core operands."""

    #: what the user gave
    function: Any
    #: whether zero tangents are left out (``None``) rather than made into arrays
    skips_zeros: bool
    #: whether JAX can transpose it: numerical derivatives are no linear programs
    transposable: bool

    def __call__(self, call: Call, outputs: Outputs, args: tuple) -> list[Any]: ...


#: what functions that are not JAX's raise when JAX traces them
NOT_IN_JAX = (
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
    jax.errors.ConcretizationTypeError,
)


def inline(call: Call, operands: Sequence[Any]) -> list[Any]:
    """Apply the traced rule of ``call.definition`` over all loop dimensions."""
    definition = call.definition
    operands = [_jax.as_jax_array(x) for x in operands]
    outputs = definition.outputs(call, [core_struct(x, call.loop) for x in operands])

    def core(*leaves: Any) -> list[Any]:
        try:
            return definition.traced(call, outputs, call.arguments(leaves))
        except NOT_IN_JAX as error:
            error.add_note(
                f"(in the rule of {definition.label}, which must be a JAX function; one over NumPy"
                " arrays is declared with traced=False)"
            )
            raise

    return over_loops(core, call.loop, operands)


class Traced:
    """A JAX function that is a jvp, vjp or transpose rule."""

    skips_zeros = False

    def __init__(
        self, function: Callable, label: str, *, transposable: bool = True, has_wrt: bool = False
    ):
        self.function = function
        self.label = label
        self.transposable = transposable
        self.parameters = Parameters.of(function, rule=has_wrt)

    def __call__(self, call: Call, outputs: Outputs, args: tuple) -> list[Any]:
        static = self.parameters.behind(len(args)).accepted(call.static.values)
        if self.parameters.wants_wrt:
            static["wrt"] = Wrt.of(call)
        result = self.function(*args, **static)
        if call.definition.role.bare and isinstance(result, (tuple, list)) and len(result) == 1:
            (result,) = result
        cotangents = call.definition.role.gives_cotangents
        return conform(self.label, outputs, result, cotangents=cotangents)


class Partials:
    """One JAX function per argument of an elementwise function: its partial derivative.

    ``t_y = sum_i  (df/dx_i)(x) * t_x_i``
    """

    skips_zeros = True
    transposable = True

    def __init__(self, functions: Sequence[Callable | None], label: str):
        self.functions = tuple(functions)
        self.function = self.functions
        self.label = label

    def __call__(self, call: Call, outputs: Outputs, args: tuple) -> list[Any]:
        primals, tangents = args
        parent, tree = call.definition.parent, call.tree.children()[0]
        if tree.num_leaves != len(tree.children()):
            raise TypeError(
                f"{parent.label}: def_partials takes one rule per argument, which must be an array;"
                " for arguments that are lists, tuples or dicts write def_jvp or def_vjp"
            )
        totals: list[Any] = [None] * len(outputs.structs)
        for index, t in enumerate(leaves_up_to(tree, tangents)):
            if t is None:
                continue
            name = parent.operand_name(tree, index)
            partial = self.functions[owners(tree)[index][0]]
            if partial is None:
                raise MissingRule(
                    f"{parent.label}: no derivative with respect to {name}: its rule in"
                    f" {self.label} is None. Give one, or use jax.lax.stop_gradient on that"
                    " argument"
                )
            parameters = Parameters.of(partial).behind(len(primals))
            static = parameters.accepted(call.static.values)
            values = flatten(outputs.tree, outputs.kept, partial(*primals, **static))
            for o, (value, struct) in enumerate(zip(values, outputs.structs, strict=True)):
                what = f"{self.label}: the rule of {name}"
                term = _cast(what, value, struct) * _cast(what, t, struct)
                if term.shape != struct.shape:
                    raise TypeError(
                        f"{what} gives shape {term.shape} where the result has {struct.shape};"
                        " def_partials is for elementwise functions"
                    )
                totals[o] = term if totals[o] is None else totals[o] + term
        return totals


class Jacobians:
    """A dense Jacobian per argument: ``t_y = sum_i J_i t_x_i``, contracted over x_i's dimensions.

    The structure is that of ``jax.jacobian(f, argnums=(0, 1, ...))``: for each result a tuple
    with an array of shape ``y.shape + x_i.shape`` per argument.
    """

    skips_zeros = True
    transposable = True

    def __init__(self, function: Callable, label: str, *, packed: bool):
        self.function = function
        self.label = label
        self.packed = packed
        self.parameters = Parameters.of(function)

    def __call__(self, call: Call, outputs: Outputs, args: tuple) -> list[Any]:
        primals, packed_tangents = args
        tree = call.tree.children()[0]
        tangents = leaves_up_to(tree, packed_tangents)
        given = (primals,) if self.packed else primals
        static = self.parameters.behind(len(given)).accepted(call.static.values)
        result = self.function(*given, **static)
        per_output = flatten(outputs.tree, outputs.kept, result)
        totals: list[Any] = []
        for jacobians, struct in zip(per_output, outputs.structs, strict=True):
            entries = flatten(tree, [t is not None for t in tangents], jacobians)
            given = [t for t in tangents if t is not None]
            total: Any = None
            for jacobian, t in zip(entries, given, strict=True):
                wanted = struct.shape + t.shape
                if jnp.shape(jacobian) != wanted:
                    raise TypeError(
                        f"{self.label}: a Jacobian has shape {jnp.shape(jacobian)}; wanted"
                        f" {wanted}, the result's dimensions and then the argument's"
                    )
                term = jnp.tensordot(
                    _cast(self.label, jacobian, struct), _cast(self.label, t, struct), t.ndim
                )
                total = term if total is None else total + term
            totals.append(total)
        return totals


def takes_primals(parameters: Parameters) -> bool:
    """Whether a rule for Jacobians gets the tuple of primals, and nothing else by position."""
    return parameters.behind(1).operands == ("primals",)


def unpacked(rule: Callable) -> Callable:
    """A rule for Jacobians that gets the primals one by one, of one that gets the tuple."""

    @wraps(rule)
    def apart(*primals: Any, **static: Any) -> Any:
        return rule(primals, **static)

    signature = inspect.signature(rule)
    first, *others = signature.parameters.values()
    made: Any = apart
    made.__signature__ = signature.replace(
        parameters=[
            first.replace(kind=first.VAR_POSITIONAL),
            *(p.replace(kind=max(p.kind, p.KEYWORD_ONLY)) for p in others),
        ]
    )
    return apart


def per_argument(rule: Callable) -> Callable:
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


def _cast(what: str, value: Any, struct: jax.ShapeDtypeStruct) -> jax.Array:
    value = jnp.asarray(value)
    if _dtypes.is_complex(value.dtype) and not _dtypes.is_complex(struct.dtype):
        raise TypeError(
            f"{what}: a complex factor cannot give the tangent of a real result; a real function"
            " of a complex argument has no complex derivative. Write def_jvp instead"
        )
    return jax.lax.convert_element_type(value, struct.dtype)
