"""How loop dimensions are split over devices: each device loops over its own part of them.

A foreign call is opaque to XLA's partitioner, which would gather all operands on all devices.
`jax.experimental.custom_partitioning` tells it what it may do: a loop dimension of the full size is
split alike in all operands and results that have it; one of size 1 is the same for all; core
dimensions stay whole. A dimension that does not divide evenly stays whole, too: the partitioner
would fill the last part up with rows that nobody gave, and the function would be called with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

from jaxbind import _jax
from jaxbind._call import Call, loop_shape


def may_split(ctx: Any, call: Call) -> bool:
    """Whether this lowering is for several devices, between which there are loops to split."""
    shapes = [a.shape for a in (*ctx.avals_in, *ctx.avals_out)]
    return (
        call.loop > 0
        and call.definition.options.effect is None  # whose calls are made once, on one device
        and _jax.spreads_over_devices(ctx)
        and all(isinstance(size, int) for shape in shapes for size in shape)
    )


def lower(ctx: Any, operands: Sequence[Any], call: Call, shard: Callable, text: str) -> Any:
    """Emit a call that the partitioner may split into ``shard(*parts)`` on each device.

    ``text`` says what is called, to all processes the same.
    """
    split = _Split(call.loop, [a.shape for a in ctx.avals_in], [a.shape for a in ctx.avals_out])

    def whole(*operands: Any) -> tuple:
        return tuple(shard(*operands))

    def partition(mesh: Any, given: Sequence[Any], made: Sequence[Any]) -> tuple:
        spec = split.spec(mesh, [s.sharding for s in (*made, *given)])
        return (
            mesh,
            whole,
            tuple(split.shardings(mesh, spec, split.results)),
            tuple(split.shardings(mesh, spec, split.operands)),
        )

    def infer(mesh: Any, given: Sequence[Any], made: Sequence[Any]) -> tuple:
        del made
        spec = split.spec(mesh, [s.sharding for s in given])
        return tuple(split.shardings(mesh, spec, split.results))

    call_on_parts = custom_partitioning(whole)
    rule, whole_dimensions = split.rule()
    call_on_parts.def_partition(
        partition,
        infer_sharding_from_operands=infer,
        sharding_rule=rule,
        need_replication_factors=whole_dimensions,
    )
    results = _jax.lower_traced(call_on_parts)(ctx, *operands)
    avals = [(a.shape, a.dtype.name) for a in (*ctx.avals_in, *ctx.avals_out)]
    told = repr((text, call.loop, avals, _jax.devices_of(ctx)))
    _jax.name_partitioned_call(ctx, results, f"jaxbind-{sha256(told.encode()).hexdigest()}")
    return results


class _Split:
    """Shapes of operands and results with ``loop`` loop dimensions in front."""

    def __init__(self, loop: int, operands: Sequence[Any], results: Sequence[Any]):
        self.loop = loop
        self.operands = operands
        self.results = results
        self.full = loop_shape(operands, loop)

    def rule(self) -> tuple[str, tuple[str, ...]]:
        """The sharding rule in JAX's notation, and its dimensions that must stay whole."""
        own: list[str] = []

        def factors(shape: Sequence[int]) -> str:
            names = []
            for axis, size in enumerate(shape):
                if axis < self.loop and size == self.full[axis] and size != 1:
                    names.append(f"l{axis}")
                else:
                    own.append(f"c{len(own)}")
                    names.append(own[-1])
            return " ".join(names)

        given = ", ".join([factors(s) for s in self.operands])
        made = ", ".join([factors(s) for s in self.results])
        return f"{given} -> {made}", tuple(own)

    def spec(self, mesh: Any, shardings: Sequence[Any]) -> list[Any]:
        """For each loop dimension the mesh axes over which it is split; the first to ask has it."""
        found: list[Any] = [None] * self.loop
        taken: set[Any] = set()
        for sharding in shardings:
            for axis, names in enumerate(tuple(getattr(sharding, "spec", ()))[: self.loop]):
                several = names if isinstance(names, tuple) else (names,) if names else ()
                parts = math.prod(mesh.shape[name] for name in several)
                if found[axis] is None and parts > 1 and self.full[axis] % parts == 0:
                    if not taken & set(several):
                        found[axis] = names
                        taken |= set(several)
        return found

    def shardings(self, mesh: Any, spec: list[Any], shapes: Sequence[Any]) -> list[NamedSharding]:
        return [
            NamedSharding(
                mesh,
                PartitionSpec(
                    *[
                        names if shape[axis] == self.full[axis] and shape[axis] != 1 else None
                        for axis, names in enumerate(spec)
                    ],
                    *[None] * (len(shape) - self.loop),
                ),
            )
            for shape in shapes
        ]
