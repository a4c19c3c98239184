"""The only file that touches JAX interfaces that are private or differ between versions.

Each use says since or until when, and why. ``tests/test_jax_interfaces.py`` looks for each of them
alone, so that a new JAX release that moves one fails there first.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial, wraps
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.interpreters import ad, batching, mlir

MINIMUM = (0, 9, 1)


def require_supported_version(version: str) -> None:
    """Refuse a JAX whose FFI lays out its state arguments differently (API below 0.3).

    Raises:
      ImportError: naming the version found and the oldest that works.
    """
    numbers = tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
    if numbers < MINIMUM:
        oldest = ".".join(map(str, MINIMUM))
        raise ImportError(
            f"jaxbind needs jax >= {oldest} (XLA FFI 0.3); found jax {version}, whose runtime"
            f" would crash. Remedy: pip install --upgrade 'jax>={oldest}'"
        )


require_supported_version(jax.__version__)


# Values and abstract values -------------------------------------------------------------------


def count_as_own(folders: Iterable[str]) -> None:
    """Have JAX treat a package as part of itself.

    Its frames are left out of tracebacks, unless ``JAX_TRACEBACK_FILTERING=off``, and programs name
    the user's line that made a call.
    """
    try:
        from jax._src import source_info_util, traceback_util
    except ImportError:  # private (jax 0.9 to 0.12): tracebacks are longer without it
        return
    for register in (source_info_util, traceback_util):
        for folder in folders:
            getattr(register, "register_exclusion", lambda _: None)(folder + os.sep)


def is_tracer(value: Any) -> bool:
    return isinstance(value, jax.core.Tracer)


def result_aval(operand_avals: Sequence[Any], shape: tuple, dtype: Any, loop: int = 0) -> Any:
    """The abstract value of a result with ``loop`` loop dimensions in front.

    Built from an operand's, because a plain ``ShapedArray`` would lose the manual axes over
    which the operands vary (``shard_map`` with ``check_vma``).
    """
    if not operand_avals:
        return jax.core.ShapedArray(shape, dtype)
    like = next((a for a in operand_avals if not a.sharding.mesh.empty), operand_avals[0])
    if like.sharding.mesh.empty:
        return like.update(shape=shape, dtype=dtype, weak_type=False)
    loops = _split_loops(operand_avals, loop)
    spec = jax.sharding.PartitionSpec(*loops, *[None] * (len(shape) - loop))
    sharding = like.sharding.update(spec=spec)
    return like.update(shape=shape, dtype=dtype, weak_type=False, sharding=sharding)


def _split_loops(avals: Sequence[Any], loop: int) -> list[Any]:
    """On a mesh with explicit axes: over which of them a result's loop dimensions are split.

    As JAX's elementwise functions have it: like those operands that are split there. Where
    these disagree, or an axis of the mesh splits another dimension already, JAX refuses; here the
    dimension stays whole.
    """
    loops: list[Any] = [None] * loop
    taken: set[Any] = set()
    for axis in range(loop):
        found: set[tuple[Any, ...]] = {
            names if isinstance(names, tuple) else (names,)
            for aval in avals
            for names in tuple(aval.sharding.spec)[axis : axis + 1]
            if names is not None
        }
        names = found.pop() if len(found) == 1 else None
        if names is not None and not taken & set(names):
            loops[axis] = names[0] if len(names) == 1 else names
            taken |= set(names)
    return loops


def _varying(aval: Any) -> frozenset:
    # jax 0.10 renamed ``aval.vma`` to ``aval.manual_axis_type.varying``.
    manual = getattr(aval, "manual_axis_type", None)
    return manual.varying if manual is not None else getattr(aval, "vma", frozenset())


def unify_varying(operands: Sequence[Any]) -> list[Any]:
    """Make all operands vary over the same manual axes.

    Inside ``shard_map`` operands with mixed axes would give silently wrong gradients: JAX
    inserts the sum over an axis where it sees the cast, not inside a foreign primitive.
    """
    varying = [_varying(jax.typeof(x)) for x in operands]
    if all(v == varying[0] for v in varying):
        return list(operands)
    union = frozenset().union(*varying)
    return [
        jax.lax.pcast(x, tuple(sorted(union - v, key=str)), to="varying") if union - v else x
        for x, v in zip(operands, varying, strict=True)
    ]


def uses_x64() -> bool:
    return bool(jax.config.jax_enable_x64)  # pyright: ignore[reportAttributeAccessIssue]


@cache
def concrete_array() -> type:
    """The type of concrete arrays (``isinstance`` with ``jax.Array`` also takes tracers)."""
    with jax.ensure_compile_time_eval():  # the first call may come while tracing
        return type(jnp.zeros(()))


def computing() -> AbstractContextManager[None]:
    """Compute at once with what is concrete, also in an abstract rule.

    There jax 0.12 has no current trace at all, and ``jax.ensure_compile_time_eval`` brings none.
    """
    return jax.core.eval_context()


def with_sharding_of(value: Any, aval: Any) -> Any:
    """Give a cotangent the sharding of its operand, where the mesh makes that part of types."""
    if aval.sharding.mesh.empty or jax.typeof(value).sharding == aval.sharding:
        return value
    return jax.sharding.reshard(value, aval.sharding)


def tangent_zero(primal_out: Any) -> ad.Zero:
    """The symbolic zero tangent of a result (of dtype float0 for an integer result)."""
    return ad.Zero(jax.typeof(primal_out).to_tangent_aval())


# Registration ---------------------------------------------------------------------------------


def make_primitive(
    name: str,
    *,
    eager: Callable,
    abstract: Callable,
    jvp: Callable,
    transpose: Callable,
    batch: Callable,
    lower: Callable,
    lower_elsewhere: Callable,
) -> Primitive:
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_impl(eager)
    primitive.def_effectful_abstract_eval(abstract)
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    _register_batcher(primitive, batch)
    mlir.register_lowering(primitive, lower, platform="cpu")
    mlir.register_lowering(primitive, lower_elsewhere)
    # Of several platforms in one program those that share a rule share what it emits, and what a
    # call is on each of them may differ: a rule for each.
    for platform in ("cuda", "rocm", "tpu"):
        rule = partial(lower_elsewhere, platform=platform)
        mlir.register_lowering(primitive, rule, platform=platform)
    # `custom_partitioning` asks for the devices (private; jax 0.9 to 0.12)
    from jax._src import dispatch

    getattr(dispatch, "prim_requires_devices_during_lowering", set()).add(primitive)
    return primitive


def make_lowered_primitive(name: str, abstract: Callable, lower: Callable) -> Primitive:
    """A primitive that is bound only where it is lowered at once."""
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_abstract_eval(abstract)
    for platform in ("cpu", "cuda"):
        mlir.register_lowering(primitive, lower, platform=platform)
    return primitive


def spreads_over_devices(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether the partitioner will split this program (private; jax 0.9 to 0.12)."""
    context = ctx.module_context.axis_context
    devices = getattr(context, "device_assignment", None)
    return devices is not None and len(devices) > 1 and not is_exporting(ctx)


def devices_of(ctx: mlir.LoweringRuleContext) -> tuple[Any, ...]:
    """The devices of a program and the meshes that they may form, as numbers and names."""
    from jax._src import mesh

    context: Any = ctx.module_context.axis_context
    current = mesh.thread_resources.env.physical_mesh
    meshes = [getattr(context, "abstract_mesh", None), None if current.empty else current]
    return (
        tuple(device.id for device in context.device_assignment),
        tuple(None if m is None else tuple(m.shape.items()) for m in meshes),
    )


def name_partitioned_call(ctx: mlir.LoweringRuleContext, results: Sequence[Any], name: str) -> None:
    """Call what ``results`` of `custom_partitioning` are partitioned by ``name`` in the program.

    JAX writes its address there, with which no program of another process is the same, so that the
    persistent cache would never hit. Two calls of one name must be partitioned alike. The table of
    names is private (jax 0.9 to 0.12); without it, programs are compiled again.
    """
    from jax._src import custom_partitioning

    known = getattr(custom_partitioning, "_sharding_callbacks", {})
    operation = getattr(results[0], "owner", None)
    written = getattr(operation, "attributes", {})
    if "backend_config" not in written or not hasattr(written["backend_config"], "value"):
        return
    made = known.get(written["backend_config"].value.encode())
    if made is None:
        return  # another call: on one device, or under `shard_map`
    # Held weakly there, and by the program that is being made: the first of a name serves until
    # the last program with it is compiled.
    made = known.setdefault(name.encode(), made)
    ctx.module_context.add_keepalive(made)
    written["backend_config"] = ir.StringAttr.get(name)


def _register_batcher(primitive: Primitive, batch: Callable) -> None:
    # ``primitive_batchers`` is a shim marked for deletion; the other table hands over the
    # axis data and also calls the rule where nothing is batched.
    table = getattr(batching, "primitive_batchers", None)
    if table is not None:
        table[primitive] = batch
        return

    def fancy(axis_data, args, dims, **params):
        del axis_data
        if all(d is None for d in dims):
            return primitive.bind(*args, **params), [None] * len(args)
        return batch(args, dims, **params)

    batching.fancy_primitive_batchers[primitive] = fancy


def move_batch_to_front(operand: Any, axis: int | None, size: int) -> Any:
    return batching.bdim_at_front(operand, axis, size)


# Evaluation outside jit -----------------------------------------------------------------------


def compiled_alone(primitive: Primitive, **params: Any) -> Callable:
    """One equation as a compiled function.

    ``jax.interpreters.xla.apply_primitive`` does the same, but keeps the parameters, and with
    them the functions of users, in a cache of its own.
    """

    def run(*operands: Any) -> Any:
        return primitive.bind(*operands, **params)

    run.__name__ = run.__qualname__ = primitive.name
    # With ``debug_nans`` JAX evaluates a compiled function that gave NaN once more, equation by
    # equation, but for this mark (jax 0.9 to 0.12), without which that would never end.
    run._apply_primitive = True  # pyright: ignore[reportFunctionMemberAccess]
    return jax.jit(run)


def call_compiled(compiled: Callable, operands: Sequence[Any]) -> Any:
    """Call it compiled, also under ``jax.disable_jit``: there is no function to step into."""
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        with jax.disable_jit(False):
            return compiled(*operands)
    return compiled(*operands)


def runtime_has_started() -> bool:
    """Whether JAX has made its backends, with their threads (private; jax 0.9 to 0.12)."""
    from jax._src import xla_bridge

    started = getattr(xla_bridge, "backends_are_initialized", None)
    return bool(started and started())


# Calls of JAX inside a foreign function -------------------------------------------------------


class CalledJax(RuntimeError):
    """A foreign function called JAX, whose runtime may then wait for itself."""


class _Refusing(jax.core.Trace):
    """The current trace while a foreign function runs: nothing can be computed with it."""

    def _refuse(self, primitive: Any, *args: Any, **kwargs: Any) -> Any:
        del args, kwargs
        raise CalledJax(
            f"a foreign function called JAX ({primitive}), which can block the runtime for ever."
            " Compute with NumPy inside it, or bind it with allow_jax=True (a rule that is a JAX"
            " function is declared with traced=True)"
        )

    process_primitive = _refuse
    process_custom_jvp_call = _refuse
    process_custom_vjp_call = _refuse
    process_custom_transpose = _refuse
    process_call = _refuse
    process_map = _refuse

    def stage_value(self, *args: Any, **kwargs: Any) -> Any:  # since jax 0.10: jnp.asarray
        return self._refuse("making an array", *args, **kwargs)


def _guard() -> tuple[Callable[[], Any], Callable[[Any], None]] | tuple[()]:
    """Functions that set a thread's guard against calls of JAX, and take it away.

    The context of the current trace is private (jax 0.9 to 0.12); without it nothing is guarded.
    """
    from jax._src import core

    context = getattr(core, "trace_ctx", None)
    if context is None or not hasattr(context, "set_trace"):
        return ()
    refusing = _Refusing()

    def enter() -> Any:
        before = context.trace
        context.set_trace(refusing)
        return before

    return enter, context.set_trace


GUARD = _guard()


def call_synchronously(ctx: mlir.LoweringRuleContext, label: str, owner: Any) -> None:
    """Have the runtime call the program synchronously, so that a function may call JAX.

    Raises:
      NotImplementedError: on several devices, where that would not be enough.
    """
    context = ctx.module_context
    devices = getattr(context.axis_context, "num_devices", None)
    mesh = getattr(context.axis_context, "mesh", None)
    if devices is None and mesh is not None:
        devices = mesh.size
    if devices is not None and devices > 1:
        raise NotImplementedError(
            f"{label}: allow_jax=True works on one device, and this program runs on {devices}. Keep"
            " JAX out of the function, or call it outside the sharded program"
        )
    context.add_host_callback(owner)
    context.add_keepalive(_SYNCHRONOUS)
    _wait_for_operands()


class _Synchronous:
    """Marks programs, among what they keep alive, that JAX calls synchronously."""

    def __reduce__(self) -> str:
        return "_SYNCHRONOUS"


_SYNCHRONOUS = _Synchronous()


@cache
def _wait_for_operands() -> None:
    """Have marked programs start only when their operands are there.

    The runtime calls a program synchronously only then. Otherwise it goes on to the next ones, up
    to 32 of them, which may wait for the function, while the function waits until it may run a
    program itself: for ever. Here JAX calls programs from Python, and always those that it takes
    to have unordered effects (private; jax 0.9 to 0.12).
    """
    from jax._src.interpreters import pxla

    execute = pxla.ExecuteReplicated.__call__

    @wraps(execute)
    def wait_and_execute(self: Any, *operands: Any) -> Any:
        if not (self.has_host_callbacks and any(x is _SYNCHRONOUS for x in self.keepalive)):
            return execute(self, *operands)
        self.has_unordered_effects = True
        jax.block_until_ready(operands)
        return jax.block_until_ready(execute(self, *operands))

    pxla.ExecuteReplicated.__call__ = wait_and_execute


# Lowering -------------------------------------------------------------------------------------


#: JAX's lowerings (private, jax 0.9 to 0.12) of operations whose computation XLA compiles into a
#: loop of its own, from which it cannot call out
_REDUCTIONS = {
    "_reduce_lower": "reduction",
    "_generic_reduce_window_lower": "windowed reduction",
    "_select_and_scatter_lower": "windowed selection",
    "_scatter_lower": "scatter",
}


def reduction_around() -> str | None:
    """The reduction whose computation is being lowered, if one is.

    The lowering is told nothing about it, but is called by that of the reduction.
    """
    frame = sys._getframe(1)
    while frame is not None:
        found = _REDUCTIONS.get(frame.f_code.co_name)
        if found is not None and frame.f_globals.get("__name__", "").startswith("jax."):
            return found
        frame = frame.f_back
    return None


def lower_foreign_call(
    ctx: mlir.LoweringRuleContext,
    operands: Sequence[Any],
    target: str,
    layouts: tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]] | None,
    aliases: dict[int, int],
    **attributes: Any,
) -> Any:
    """Emit the custom call; layouts of operands and results are minor-to-major."""
    given, made = layouts or (None, None)
    lowering = jax.ffi.ffi_lowering(
        target, operand_layouts=given, result_layouts=made, operand_output_aliases=aliases
    )
    return lowering(ctx, *operands, **attributes)


def _effects() -> dict[str, Any]:
    """Effects of our own, which to JAX are those of its host calls (private; jax 0.9 to 0.12).

    So the same token orders both; JAX lowers them and lets them into control flow, but for a `vmap`
    that would turn a branch into a selection, with calls for what is not taken; `jax.checkpoint`,
    which would repeat the call, refuses them. JAX asks by type at some places and by
    equality at others. Only what can be made anew, equal to what it was, can be exported.
    """
    from jax._src import callback, effects

    class Foreign(callback.IOEffect):
        """A call of a foreign function with an effect."""

        def __eq__(self, other: object) -> bool:
            return isinstance(other, callback.IOEffect)

        def __hash__(self) -> int:
            return hash(callback._IOEffect)

        def __repr__(self) -> str:
            return "the effect of a foreign function"

        __str__ = __repr__  # pyright: ignore[reportAssignmentType]

    class OrderedForeign(callback.OrderedIOEffect):
        """One that happens in the program's order."""

        def __eq__(self, other: object) -> bool:
            return isinstance(other, callback.OrderedIOEffect)

        def __hash__(self) -> int:
            return hash(callback._OrderedIOEffect)

        def __repr__(self) -> str:
            return "the ordered effect of a foreign function"

        __str__ = __repr__  # pyright: ignore[reportAssignmentType]

    for kind in (Foreign, OrderedForeign):  # a process that loads an exported program looks here
        effects.lowerable_effects.add_type(kind)
    return {"unordered": Foreign(), "ordered": OrderedForeign()}


EFFECTS = _effects()


def lower_effect(
    ctx: mlir.LoweringRuleContext,
    operands: Sequence[Any],
    target: str,
    layouts: tuple[list, list] | None,
    effect: str,
    label: str,
    **attributes: Any,
) -> Any:
    """Emit a custom call that XLA neither removes nor merges.

    One that is ordered has a token as its last operand and its last result.

    Raises:
      NotImplementedError: where XLA would split the program over several devices, or could not
        load it again.
    """
    from jax._src import callback, core, ffi
    from jax._src.interpreters import mlir as private

    inner = ctx
    symbolic = not all(isinstance(n, int) for a in ctx.avals_out for n in a.shape)
    if effect == "ordered" and symbolic:  # a token has no shape that could be refined
        raise NotImplementedError(
            f"{label} cannot be exported with results of symbolic shapes: it has an ordered effect,"
            " and the program could not be loaded again. Export it for given sizes, or declare"
            " effect='unordered'"
        )
    context = ctx.module_context.axis_context
    devices = getattr(context, "num_devices", None) or 1
    mesh = getattr(context, "mesh", None)
    if effect == "ordered" and mesh is not None and mesh.size > 1:
        raise NotImplementedError(
            f"{label}: effect='ordered' works on one device, and this program runs on {mesh.size},"
            " between which there is no order. Call it outside of jax.shard_map, or bind it with"
            " effect='unordered'"
        )
    if devices > 1:  # XLA would drop the annotation, but for callbacks of JAX's own
        raise NotImplementedError(
            f"{label}: an effect happens once, on one device, and this program is split over"
            f" {devices} of them. Call it outside of the sharded program, or under jax.shard_map,"
            " where it happens on each device (effect='unordered')"
        )
    shardings: Any = None
    if hasattr(context, "manual_axes"):  # shard_map
        shardings = callback._callback_op_sharding(context, None, ctx.avals_out)
    if effect == "ordered":
        token = ctx.tokens_in.get(EFFECTS[effect])
        inner = dataclasses.replace(
            ctx,
            avals_in=[*ctx.avals_in, core.abstract_token],
            avals_out=[*ctx.avals_out, core.abstract_token],
        )
        operands = [*operands, token]
        if layouts is not None:
            layouts = ([*layouts[0], ()], [*layouts[1], ()])
        if ctx.avals_out and hasattr(shardings, "shardings"):  # one for each result
            several = shardings.shardings
            shardings = type(shardings)(type(several)([*several, several[0]]))
    given, made = layouts or (None, None)
    lower = ffi.build_ffi_lowering_function(
        target, operand_layouts=given, result_layouts=made, has_side_effect=True
    )
    operation = lower(inner, *operands, **attributes)
    if shardings is not None:
        arguments: Any = (operation, shardings)
        if len(inspect.signature(private.set_sharding).parameters) > 2:  # since jax 0.11
            arguments = (ctx.module_context, *arguments)
        private.set_sharding(*arguments)
    results = list(operation.results)
    if effect == "ordered":
        made_token = mlir.TokenSet({EFFECTS[effect]: results.pop()})
        ctx.set_tokens_out(ctx.tokens_in.update_tokens(made_token))
    return results


def keep_until_compiled(ctx: mlir.LoweringRuleContext, thing: Any) -> None:
    """Keep ``thing`` alive between lowering and compiling, when the call site takes over."""
    ctx.module_context.add_keepalive(thing)


def platforms_of(ctx: mlir.LoweringRuleContext) -> tuple[str, ...]:
    """The platforms for which this rule lowers."""
    return tuple(getattr(ctx, "platforms", None) or ctx.module_context.platforms)


def is_exporting(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether `jax.export` lowers (jax 0.9 to 0.12; otherwise the loading process complains)."""
    parameters = getattr(ctx.module_context, "lowering_parameters", None)
    return bool(getattr(parameters, "for_export", False))


def lower_traced(function: Callable) -> Callable:
    """A lowering rule from a JAX function returning a sequence."""
    return mlir.lower_fun(function, multiple_results=True)


def cached_weakly(kind: type) -> type:
    """Have JAX's caches hold primitives' parameters of this type weakly.

    Otherwise they keep the last few thousand of them, and so the functions of users, alive. The
    set of such types is private (jax 0.9 to 0.12); without it, only memory is lost.
    """
    from jax._src import util

    getattr(util, "weakref_cache_key_types", set()).add(kind)
    return kind


def forget_traces() -> None:
    """Drop every trace and compilation that JAX has cached, after a rule has changed."""
    jax.clear_caches()


def as_jax_array(x: Any) -> Any:
    """An operand of a primitive as an array of JAX's.

    JAX hands literals of programs on as a kind of Python number, and a user's tangents as they are.
    """
    return x if isinstance(x, jax.Array) else jnp.asarray(x, jax.typeof(x).dtype)
