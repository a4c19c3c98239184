"""Functions with effects: each execution calls them exactly once, in order if so declared.

JAX's own `jax.experimental.io_callback` sees to that, in control flow as well; it is slower than a
pure binding, and a pure function should not be declared to have an effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from jaxbind import _dtypes, _errors, _missing
from jaxbind._call import Call, Outputs, core_struct, loop_shape
from jaxbind._result import describe, flatten
from jaxbind._roles import GENERAL, NONDIFF

if TYPE_CHECKING:
    from jaxbind._definition import Definition

EFFECTS = (None, "unordered", "ordered")


def call_with_effect(call: Call, operands: Sequence[Any]) -> list[Any]:
    """Apply a call whose definition has an effect."""
    definition = call.definition
    core = [core_struct(jax.typeof(x), call.loop) for x in operands]
    outputs = definition.outputs(call, core)
    full = loop_shape([x.shape for x in operands], call.loop)
    structs = [jax.ShapeDtypeStruct((*full, *s.shape), s.dtype) for s in outputs.structs]
    host = _host(call, outputs, definition.role.seen(call, core), full)

    @jax.custom_batching.custom_vmap
    def called(*xs: Any) -> list[Any]:
        return list(io_callback(host, structs, *xs, ordered=definition.effect == "ordered"))

    @called.def_vmap
    def _(size: int, batched: Sequence[bool], *xs: Any) -> tuple[list[Any], list[bool]]:
        del size
        stacked = [x if b else jnp.expand_dims(x, 0) for x, b in zip(xs, batched, strict=True)]
        return call_with_effect(call.batched(), stacked), [True] * len(structs)

    run = jax.custom_jvp(called)

    def pushed(primals: Any, tangents: Any) -> Any:
        """The rules' tangents; the function itself runs once, for the results."""
        zero = [type(t) is jax.custom_derivatives.SymbolicZero for t in tangents]
        kinds = definition.role.kinds(call, [jax.typeof(p) for p in primals])
        has_rules = "jvp" in definition.rules or "vjp" in definition.rules
        for index, kind in enumerate(kinds):
            if not zero[index] and kind is NONDIFF:
                raise _missing.not_differentiable(call, index)
            if not zero[index] and (kind != GENERAL or not has_rules):
                raise _missing.effect(definition)
        results = run(*primals)
        given = [None if z else t for z, t in zip(zero, tangents, strict=True)]
        inexact = [_dtypes.is_inexact(r.dtype) for r in results]
        made = iter(definition.push_general(call, primals, given))
        return results, [
            next(made) if has else np.zeros(r.shape, jax.dtypes.float0)
            for r, has in zip(results, inexact, strict=True)
        ]

    run.defjvp(pushed, symbolic_zeros=True)
    return run(*operands)


def _host(call: Call, outputs: Outputs, seen: Sequence[np.dtype], full: tuple) -> Callable:
    """The function over NumPy arrays with loop dimensions."""
    definition: Definition = call.definition
    parameters = definition.parameters
    keywords = parameters.accepted(call.static.values)
    function = parameters.by_keyword_out(definition.function)
    label = definition.label

    def run(*operands: Any) -> list[np.ndarray]:
        try:
            return loop_over(operands)
        except _errors.ContractError:
            raise
        except Exception as error:
            names = [call.operand(i) for i in range(len(operands))]
            shown = [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in operands]
            text = _errors.message(label, names, shown, 0, 1, error)[1]
            _errors.remember(error)
            raise RuntimeError(text) from None

    def loop_over(operands: Sequence[Any]) -> list[np.ndarray]:
        arrays = [np.array(x, dtype) for x, dtype in zip(operands, seen, strict=True)]
        padded = [np.broadcast_to(x, (*full, *x.shape[len(full) :])) for x in arrays]
        results = [
            np.zeros((*full, *s.shape), dtype)
            for s, dtype in zip(outputs.structs, outputs.declared, strict=True)
        ]
        if definition.vectorized or not full:
            _once(arrays, results)
        else:
            for index in np.ndindex(*full):
                at = (*index, ...)
                _once([x[at] for x in padded], [r[at] for r in results])
        return [r.astype(s.dtype) for r, s in zip(results, outputs.structs, strict=True)]

    def _once(operands: list[np.ndarray], results: list[np.ndarray]) -> None:
        for x in operands:
            x.flags.writeable = False
        arguments = call.arguments(operands)
        if parameters.wants_out:
            function(*arguments, out=outputs.restore(results), **keywords)
            return
        value = function(*arguments, **keywords)
        try:
            leaves = flatten(outputs.tree, outputs.kept, value)
        except TypeError as error:
            raise _errors.ContractError(f"{label} {error}") from None
        for index, (place, leaf) in enumerate(zip(results, leaves, strict=True)):
            given = np.asarray(leaf)
            if given.shape != place.shape:
                wanted = f"{place.dtype}[{','.join(map(str, place.shape))}]"
                error = _errors.wrong_shape(index, len(results), describe(leaf), wanted)
                raise _errors.ContractError(f"{label} {error}")
            place[...] = given

    return run
