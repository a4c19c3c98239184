"""The one primitive, and its rules in JAX's own order.

Every call of every binding is one equation ``jaxbind[call=...]`` on flat operands. With
``f(x, y, z)`` linear in x, linear in y (separately), and anything in z, the tangent of the
result is

    t = f(t_x, y, z) + f(x, t_y, z) + f.jvp((x, y, z), t_z)

where each term is bound separately, and left out where its tangent is known to be zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import ad

from jaxbind import _dtypes, _errors, _jax, _missing, _open, _partition, _site
from jaxbind._call import Call, core_struct, fill, loop_shape, over_loops, owners, unbroadcast
from jaxbind._parameters import Parameters
from jaxbind._result import conform, flatten
from jaxbind._roles import GENERAL, NONDIFF
from jaxbind._rules import inline


def bind(call: Call, operands: Sequence[Any]) -> list[Any]:
    """Apply ``call`` to operands whose loop dimensions are 1 or of the full size."""
    if call.definition.inlined:
        return inline(call, operands)
    return foreign_p.bind(*_jax.unify_varying(operands), call=call)


# Evaluation -------------------------------------------------------------------------------------


def _eager(*operands: Any, call: Call) -> list[Any]:
    """Outside jit: compiled functions that live as long as the binding."""
    known = call.definition.eager_calls()
    compiled = known.get(call)
    if compiled is None:
        compiled = known.keep(call, _jax.compiled_alone(foreign_p, call=call))
    try:
        return _jax.call_compiled(compiled, operands)
    except (RuntimeError, ValueError) as error:
        raise _errors.with_cause(error)  # noqa: B904
    except FloatingPointError as error:  # of jax_debug_nans and jax_debug_infs
        raise FloatingPointError(f"{call.definition.label}: {error}") from None


# Abstract evaluation ----------------------------------------------------------------------------


def _abstract(*avals: Any, call: Call) -> tuple[list[Any], set]:
    outputs = call.definition.outputs(call, [core_struct(a, call.loop) for a in avals])
    loops = loop_shape([a.shape for a in avals], call.loop)
    results = [
        _jax.result_aval(avals, loops + s.shape, s.dtype, call.loop) for s in outputs.structs
    ]
    effect = call.definition.options.effect
    return results, set() if effect is None else {_jax.EFFECTS[effect]}


# Forward differentiation ------------------------------------------------------------------------


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], *, call: Call) -> tuple[list, list]:
    definition = call.definition
    _check_effect(call, primals, tangents)
    results = bind(call, primals)
    total: list[Any] = [_jax.tangent_zero(r) for r in results]
    if not any(_has_tangent(zero) for zero in total):
        return results, total
    if definition.traced is not None:  # a pushforward with a traced rule and a vjp rule
        present = [ad.instantiate_zeros(t) for t in tangents]
        return results, jax.jvp(lambda *xs: inline(call, xs), tuple(primals), tuple(present))[1]

    nonzero = [type(t) is not ad.Zero for t in tangents]
    kinds = definition.role.kinds(call, [jax.typeof(p) for p in primals])
    for group in dict.fromkeys(k for k, nz in zip(kinds, nonzero, strict=True) if nz):
        members = [kind == group for kind in kinds]
        if group is NONDIFF:
            raise _missing.not_differentiable(call, next(_both(members, nonzero)))
        if group == GENERAL:
            given = [
                t if m and nz else None for t, m, nz in zip(tangents, members, nonzero, strict=True)
            ]
            pushed = definition.push_general(call, primals, given)
            terms = fill([_has_tangent(z) for z in total], pushed)
        else:
            operands = [
                ad.instantiate_zeros(t) if m else p
                for p, t, m in zip(primals, tangents, members, strict=True)
            ]
            terms = [
                t if _has_tangent(z) else None
                for t, z in zip(bind(call, operands), total, strict=True)
            ]
        total = [
            z if t is None else ad.add_tangents(z, t) for z, t in zip(total, terms, strict=True)
        ]
    return results, total


def _check_effect(call: Call, primals: Sequence[Any], tangents: Sequence[Any]) -> None:
    """Refuse what cannot be differentiated before its effect has happened."""
    definition = call.definition
    if definition.options.effect is None:
        return
    outputs = definition.outputs(call, [core_struct(jax.typeof(p), call.loop) for p in primals])
    if not any(_dtypes.is_inexact(s.dtype) for s in outputs.structs):
        return
    kinds = definition.role.kinds(call, [jax.typeof(p) for p in primals])
    for kind, t in zip(kinds, tangents, strict=True):
        if kind is not NONDIFF and type(t) is not ad.Zero:
            if kind != GENERAL or not definition.has_derivative:
                raise _missing.effect(definition)


def _both(first: Sequence[bool], second: Sequence[bool]):
    return (i for i, (a, b) in enumerate(zip(first, second, strict=True)) if a and b)


def _has_tangent(value: Any) -> bool:
    aval: Any = value.aval if type(value) is ad.Zero else jax.typeof(value)
    return aval.dtype != jax.dtypes.float0


# Transposition ----------------------------------------------------------------------------------


def _transpose(cotangents: Sequence[Any], *operands: Any, call: Call) -> list[Any]:
    undefined = [ad.is_undefined_primal(x) for x in operands]
    if all(type(ct) is ad.Zero for ct in cotangents):
        return [ad.Zero(x.aval) if u else None for x, u in zip(operands, undefined, strict=True)]
    cts = [jnp.asarray(ad.instantiate_zeros(ct)) if _has_tangent(ct) else None for ct in cotangents]
    definition = call.definition
    kinds = definition.role.kinds(call, [_aval(x) for x in operands])
    groups = {k for k, u in zip(kinds, undefined, strict=True) if u}
    if len(groups) != 1 or groups & {GENERAL, NONDIFF}:
        raise _missing.not_linear(call, undefined.index(True))
    members, results = definition.role.transpose(call, groups.pop(), operands, cts)
    transposed: list[Any] = [None] * len(operands)
    for index, result in zip(members, results, strict=True):
        if undefined[index]:  # others in the group are zeros that JAX has made concrete
            aval = _aval(operands[index])
            summed = unbroadcast(result, aval.shape, call.loop)
            transposed[index] = _jax.with_sharding_of(summed, aval)
    return transposed


def _aval(operand: Any) -> Any:
    return operand.aval if ad.is_undefined_primal(operand) else jax.typeof(operand)


# Batching ---------------------------------------------------------------------------------------


def _batch(operands: Sequence[Any], axes: Sequence[int | None], *, call: Call) -> tuple:
    """One more loop dimension, in front; of size 1 where the operand is not mapped."""
    if call.definition.vmap_rule is not None:
        return _batch_by_rule(operands, axes, call)
    stacked = [
        jax.lax.expand_dims(x, (0,)) if axis is None else _jax.move_batch_to_front(x, axis, 1)
        for x, axis in zip(operands, axes, strict=True)
    ]
    results = bind(call.batched(), stacked)
    return results, [0] * len(results)


def _batch_by_rule(operands: Sequence[Any], axes: Sequence[int | None], call: Call) -> tuple:
    definition = call.definition
    assert call.loop == 0, "a vmap rule takes every loop dimension"
    size = next(x.shape[a] for x, a in zip(operands, axes, strict=True) if a is not None)
    moved = [
        x if axis is None else _jax.move_batch_to_front(x, axis, size)
        for x, axis in zip(operands, axes, strict=True)
    ]
    core = [
        core_struct(jax.typeof(x), axis is not None) for x, axis in zip(moved, axes, strict=True)
    ]
    outputs = definition.outputs(call, core)
    batched = call.arguments([axis is not None for axis in axes])
    result, out_batched = definition.vmap_rule(call, size, batched, call.arguments(moved))
    label = f"{definition.label}.def_vmap: the rule"
    if isinstance(out_batched, bool):
        flags = [out_batched] * len(outputs.structs)
    else:
        try:
            flags = [bool(flag) for flag in flatten(outputs.tree, outputs.kept, out_batched)]
        except TypeError as error:
            raise TypeError(f"{label}, for out_batched, {error}") from None
    wanted = outputs._replace(
        structs=tuple(
            jax.ShapeDtypeStruct((size, *s.shape) if flag else s.shape, s.dtype)
            for s, flag in zip(outputs.structs, flags, strict=True)
        )
    )
    return conform(label, wanted, result, exact=True), [0 if flag else None for flag in flags]


# Lowering ---------------------------------------------------------------------------------------


def _lower(ctx: Any, *operands: Any, call: Call) -> Any:
    definition = call.definition
    if definition.traced is not None:
        return _jax.lower_traced(lambda *xs: inline(call, xs))(ctx, *operands)
    if definition.function is None:
        raise _missing.no_jvp(call)
    core = [core_struct(a, call.loop) for a in ctx.avals_in]
    name, site, owner = _site.describe(call, core, _jax.is_exporting(ctx))
    if owner is not None:
        if _jax.is_exporting(ctx):
            _site.refuse_to_export(definition.label, owner)
        _jax.keep_until_compiled(ctx, owner)
    if definition.options.allow_jax and _jax.is_exporting(ctx):
        raise ValueError(
            f"{definition.label} cannot be exported: with allow_jax=True the runtime of this"
            " process has to call it synchronously. Keep JAX out of the function, and leave"
            " allow_jax= out"
        )
    if definition.options.allow_jax:
        _jax.call_synchronously(ctx, definition.label, definition.function)
    if _partition.may_split(ctx, call):
        results = tuple(core_struct(a, call.loop) for a in ctx.avals_out)

        def shard(*parts: Any) -> list[Any]:
            return shard_p.bind(*parts, call=call, results=results, name=name, site=site)

        return _partition.lower(ctx, operands, call, shard, f"{name} {site}")
    return _emit(ctx, *operands, call=call, name=name, site=site)


def _shard(*avals: Any, call: Call, results: Sequence[jax.ShapeDtypeStruct], **_: Any) -> list:
    """One device's part of the results.

    XLA asks for it in the middle of compiling, perhaps outside of the ``jax.enable_x64`` under
    which the program was traced: the dtypes are those found then.
    """
    loops = loop_shape([a.shape for a in avals], call.loop)
    return [_jax.result_aval(avals, loops + s.shape, s.dtype, call.loop) for s in results]


def _emit_shard(ctx: Any, *operands: Any, call: Call, results: Any, name: str, site: str) -> Any:
    del results
    return _emit(ctx, *operands, call=call, name=name, site=site)


def _emit(ctx: Any, *operands: Any, call: Call, name: str, site: str) -> Any:
    """The custom call itself; on several devices, of each for its part."""
    reduction = _jax.reduction_around()
    if reduction is not None:
        raise NotImplementedError(
            f"{call.definition.label} cannot be called by the computation of a {reduction}: XLA"
            " calls nothing foreign from there. Use jax.lax.scan or jax.lax.fori_loop over the"
            " elements, or bind a function that does the whole of it"
        )
    layouts = None
    if call.definition.options.order == "F":
        given, made = (
            [_fortran(a, call.loop) for a in avals] for avals in (ctx.avals_in, ctx.avals_out)
        )
        layouts = (given, made)
    if call.definition.options.effect is not None:
        effect, label = call.definition.options.effect, call.definition.label
        return _jax.lower_effect(
            ctx, operands, TARGET, layouts, effect, label, name=name, site=site
        )
    aliases = _shared(call, ctx.avals_in, ctx.avals_out)
    return _jax.lower_foreign_call(ctx, operands, TARGET, layouts, aliases, name=name, site=site)


def _shared(call: Call, given: Sequence[Any], made: Sequence[Any]) -> dict[int, int]:
    """Which operands may share memory with which results: those of one shape and dtype."""
    if not call.definition.options.aliases:
        return {}
    places = dict(call.definition.options.aliases)
    found = {}
    positions = [position for position, _ in owners(call.tree)]
    for index, position in enumerate(positions):
        result = places.get(position)
        if result is None or positions.count(position) > 1:  # a tree has no one memory to give
            continue
        if (given[index].shape, given[index].dtype) == (made[result].shape, made[result].dtype):
            found[index] = result
    return found


def _fortran(aval: Any, loop: int) -> tuple[int, ...]:
    """Minor-to-major: core dimensions first to last, then loop dimensions last to first.

    What is empty needs no order, and XLA divides by zero where it transposes it (jaxlib 0.12).
    """
    rank = len(aval.shape)
    if any(isinstance(size, int) and size == 0 for size in aval.shape):
        return tuple(reversed(range(rank)))
    return (*range(loop, rank), *range(loop - 1, -1, -1))


def _lower_elsewhere(ctx: Any, *operands: Any, call: Call, platform: str | None = None) -> Any:
    """On another platform than the CPU: what `def_impl` declared for it, or between copies."""
    definition = call.definition
    if definition.traced is not None:
        return _jax.lower_traced(lambda *xs: inline(call, xs))(ctx, *operands)
    platforms = _jax.platforms_of(ctx) if platform is None else (platform,)
    found = {id(made): made for made in map(definition.implementations.get, platforms)}
    if tuple(platforms) == ("cuda",) and None in found.values():
        if definition.options.allow_jax:
            raise _missing.no_implementation(definition, "cuda", "with allow_jax=True ")
        return _lower(ctx, *operands, call=call)
    if not found or None in found.values():
        raise _missing.no_implementation(definition, ", ".join(platforms))
    if len(found) > 1:  # of plugins that JAX does not know by itself
        raise NotImplementedError(
            f"{definition.label}: its implementations for {', '.join(platforms)} differ, and JAX"
            " lowers them as one. Lower or export the program for one platform at a time"
        )
    (implementation,) = found.values()
    assert implementation is not None
    parameters = Parameters.of(implementation).behind(len(call.tree.children()))
    keywords = parameters.accepted(call.static.values)
    outputs = definition.outputs(call, [core_struct(a, call.loop) for a in ctx.avals_in])
    label = f"{definition.label}.def_impl: the implementation"

    def core(*leaves: Any) -> list[Any]:
        value = implementation(*call.arguments(leaves), **keywords)
        return conform(label, outputs, value, exact=True)

    return _jax.lower_traced(lambda *xs: over_loops(core, call.loop, xs))(ctx, *operands)


TARGET = _open.register_target()

#: the call on one device's part: made while a program is partitioned
shard_p = _jax.make_lowered_primitive("jaxbind_shard", _shard, _emit_shard)

foreign_p = _jax.make_primitive(
    "jaxbind",
    eager=_eager,
    abstract=_abstract,
    jvp=_jvp,
    transpose=_transpose,
    batch=_batch,
    lower=_lower,
    lower_elsewhere=_lower_elsewhere,
)
