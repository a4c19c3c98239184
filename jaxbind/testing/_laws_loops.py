"""Laws about loops: mapping, broadcasting and splitting, each against a plain Python loop."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.tree_util import tree_unflatten

from jaxbind.testing._case import Case
from jaxbind.testing._compare import difference, is_inexact
from jaxbind.testing._law import Broken, law
from jaxbind.testing._packing import packed
from jaxbind.testing._rounding import nudged, scatter
from jaxbind.testing._subject import (
    UserError,
    apply_only_if,
    errors_told_apart,
    raises_here,
    skipping_where_it_raises,
)
from jaxbind.testing._violation import Skip

Arrays = list[np.ndarray]

COLLECTIVE = re.compile(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")


@dataclass(frozen=True)
class Operation:
    """A function of a list of arrays, with rows of operands: f, J v, or Jᵀ w."""

    name: str
    function: Callable
    rows: list[Arrays]
    key: tuple

    def mapped(self, case: Case, key: Any, make: Callable[[Callable], Callable]) -> Callable:
        return case.subject.compiled((key, self.key), lambda: make(self.function))


def operation_of(case: Case, target: str) -> Operation | None:
    rows = [jax.tree.leaves(row) for row in case.variants(4)]
    tree = case.tree
    if target == "f":

        def value(arrays: Sequence[Any]) -> list[Any]:
            return jax.tree.leaves(
                case.subject.function(*tree_unflatten(tree, arrays), **case.static)
            )

        return Operation("f", value, rows, ("f", tree, case.key))
    if not case.results:
        return None
    wrt = case.subject.available(target, case.args, case.static)
    if not any(wrt):
        return None
    make = case.subject.linearised if target == "jvp" else case.subject.transposed
    apply, count = make(case.args, case.static, wrt), len(case.leaves)

    def derivative(arrays: Sequence[Any]) -> list[Any]:
        return list(apply(list(arrays[:count]), list(arrays[count:])))

    draw = (lambda: case.directions(wrt)) if target == "jvp" else case.cotangents
    name = "J v" if target == "jvp" else "Jᵀ w"
    rows = [[*row, *draw()] for row in rows]
    return Operation(name, derivative, rows, (target, tree, case.key, wrt))


@law("mapping equals looping, for the function and for its derivatives", cost=30, batch=3)
def vmap(case: Case) -> None:
    """Any ``in_axes``, nested maps, batches of 0, 1, 2 and 3; of f, J v, and Jᵀ w."""
    apply_only_if(bool(case.leaves), "no operand")
    _ = case.value
    rng = case.rng
    targets = ["f", "jvp", "vjp"]
    target = targets[rng.integers(3)]
    operation = operation_of(case, target) or operation_of(case, "f")
    assert operation is not None
    rows = operation.rows
    size = int(rng.choice([0, 1, 2, 3], p=[0.1, 0.15, 0.4, 0.35]))
    nested = bool(rng.integers(3) == 0) and size > 0
    shape = (2, size) if nested else (size,)
    axes = [_axes(rng, x.ndim, len(shape)) for x in rows[0]]
    for level in range(len(shape)):
        if all(a[level] is None for a in axes):
            axes[rng.integers(len(axes))][level] = 0
    out_axis = int(rng.choice([0, -1]))
    stacked = [_stack([row[i] for row in rows], a, shape) for i, a in enumerate(axes)]

    # the innermost map is over the last of the shape, whose axis is counted without the others
    def mapped(function: Callable) -> Callable:
        for level in reversed(range(len(shape))):
            function = jax.vmap(function, in_axes=([a[level] for a in axes],), out_axes=out_axis)
        return function

    described = (
        f"vmap of {operation.name} with in_axes {_described(axes, nested)}, batch {_batch(shape)}"
    )
    run = operation.mapped(case, ("vmap", str(axes), out_axis), mapped)
    got = _together(case, operation, run, stacked)
    for level in range(len(shape)):
        got = [np.moveaxis(x, out_axis, level) for x in got] if out_axis else got
    if 0 in shape:
        wants = [np.asarray(x) for x in _alone(case, operation, rows[0])]
        for g, w in zip(got, wants, strict=True):
            if g.shape != shape + w.shape or g.dtype != w.dtype:
                raise Broken(f"got  {g.dtype}{list(g.shape)} from {described}", loop=True)
        return
    for index in np.ndindex(*shape):
        row = [_pick(x, a, index) for x, a in zip(stacked, axes, strict=True)]
        _compare(case, operation, row, [g[index] for g in got], f"{described}, at {list(index)}")


def _together(
    case: Case, operation: Operation, run: Callable, operands: Sequence[Any]
) -> list[np.ndarray]:
    """A batch; skipped if a row raises alone, too."""
    try:
        with errors_told_apart():
            return [np.asarray(x) for x in run(operands)]
    except UserError:
        for row in operation.rows:
            _alone(case, operation, row)
        raise


def _axes(rng: np.random.Generator, rank: int, levels: int) -> list[int | None]:
    """An axis for each map, outermost first."""
    choices: list[int | None] = [0, 0, -1, None]
    if rank:
        choices.append(1)
    return [choices[rng.integers(len(choices))] for _ in range(levels)]


def _stack(values: Sequence[np.ndarray], axes: Sequence[int | None], shape: Sequence[int]) -> Any:
    """One operand with its mapped axes, which nested maps take off from the outside."""
    first = values[0]
    if not axes:
        return first
    axis, inner = axes[0], axes[1:]
    if axis is None:
        return _stack(values, inner, shape[1:])
    shift = [
        _stack([*values[k % len(values) :], *values[: k % len(values)]], inner, shape[1:])
        for k in range(shape[0])
    ]
    if not shift:
        shift = [_stack(values, inner, shape[1:])]
        return np.take(np.stack(shift, axis), np.zeros(0, int), axis)
    return np.stack(shift, axis)


def _pick(x: np.ndarray, axes: Sequence[int | None], index: Sequence[int]) -> np.ndarray:
    for axis, i in zip(axes, index, strict=True):
        if axis is not None:
            x = np.take(x, i, axis)
    return x


def _described(axes: Sequence[Sequence[int | None]], nested: bool) -> str:
    if not nested:
        return str(tuple(a[0] for a in axes))
    return f"{tuple(a[0] for a in axes)} around {tuple(a[1] for a in axes)}"


def _batch(shape: Sequence[int]) -> str:
    return " of ".join(map(str, shape))


def _alone(case: Case, operation: Operation, row: Sequence[Any]) -> list[np.ndarray]:
    with skipping_where_it_raises():
        run = operation.mapped(case, "alone", lambda function: function)
        return [np.asarray(x) for x in run(list(row))]


def _compare(
    case: Case,
    operation: Operation,
    row: Sequence[Any],
    got: Sequence[np.ndarray],
    described: str,
) -> None:
    want = _alone(case, operation, row)
    wrong = difference(list(got), want, case.tolerance(), atol=case.slack)
    if wrong is None:
        return
    # algorithms for batches may round differently: as much as operands rounded otherwise
    moved = [
        packed(_alone(case, operation, beside)) - packed(want)
        for beside in nudged(case, [is_inexact(x) for x in row], leaves=row)
    ]
    with np.errstate(all="ignore"):
        slack = 8 * float(np.max(np.nan_to_num(np.abs(moved), nan=0.0), initial=0.0)) + case.slack
    noise = scatter(case, lambda row: packed(_alone(case, operation, row)), row, case.eps)
    slack += 16 * float(np.max(noise, initial=0.0))
    wrong = difference(list(got), want, case.tolerance(), [np.full(w.shape, slack) for w in want])
    if wrong is not None:
        raise Broken(f"got  {wrong} from {described}, and alone", loop=True)


@law("broadcasting equals numpy.vectorize with the same signature", cost=30, batch=3)
def loop_dims(case: Case) -> None:
    """Dimensions in front of the core dimensions broadcast, as in NumPy's gufuncs."""
    signature = case.subject.signature
    apply_only_if(signature is not None, "no signature")
    _ = case.value
    rng = case.rng
    cores = [len(core) for core in signature.inputs]
    if [x.ndim for x in case.leaves] != cores:
        raise Skip("these operands have loop dimensions, or lack optional core dimensions")
    full = [(), (2,), (3,), (2, 3), (3, 1, 2), (0,), (2, 0)][rng.integers(1, 7)]
    rows = [jax.tree.leaves(row) for row in case.variants(4)]
    operands, loops = [], []
    for i in range(len(cores)):
        loop = tuple(1 if rng.integers(4) == 0 else n for n in full)
        loop = loop[int(rng.integers(len(full) + 1)) if rng.integers(3) == 0 else 0 :]
        count = int(np.prod(loop))
        drawn = [rows[int(rng.integers(len(rows)))][i] for _ in range(count)]
        core = rows[0][i]
        flat = np.stack(drawn) if drawn else np.zeros((0, *core.shape), core.dtype)
        operands.append(flat.reshape(loop + core.shape))
        loops.append(loop)
    target = ["f", "jvp", "vjp"][rng.integers(3)] if 0 not in full else "f"
    operation = operation_of(case, "f")
    assert operation is not None
    expected = np.broadcast_shapes(*loops)
    described = f"loop dimensions {', '.join(map(str, loops))}"
    run = operation.mapped(case, "alone", lambda function: function)
    got = _together(case, operation, run, operands)
    wants = _alone(case, operation, rows[0])
    for g, w in zip(got, wants, strict=True):
        if g.shape != expected + w.shape:
            raise Broken(f"got  a result of shape {list(g.shape)} from {described}", loop=True)
    broadcast = [
        np.broadcast_to(x, expected + x.shape[len(loop) :])
        for x, loop in zip(operands, loops, strict=True)
    ]
    for index in np.ndindex(*expected):
        row = [np.array(x[index], order="C") for x in broadcast]
        at = f"{described}, at {list(index)}"
        _compare(case, operation, row, [g[index] for g in got], at)
    if target == "vjp" and expected:
        _check_summed(case, operands, loops, expected)


def _check_summed(case: Case, operands: Arrays, loops: Sequence[tuple], full: tuple) -> None:
    """The cotangent of an operand that was broadcast is summed over where it was."""
    wrt = case.subject.available("vjp", case.args, case.static)
    if not any(wrt) or not case.results:
        return
    apply = case.subject.transposed(case.args, case.static, wrt)
    cotangents = [
        case.fractions(np.zeros(full + r.shape, r.dtype)).astype(r.dtype) for r in case.results
    ]
    try:
        with errors_told_apart():
            got = [np.asarray(x) for x in apply(operands, cotangents)]
            broadcast = [
                np.broadcast_to(x, full + x.shape[len(loop) :])
                for x, loop in zip(operands, loops, strict=True)
            ]
            wants = [np.zeros_like(g) for g in got]
            sizes = [np.zeros(g.shape) for g in got]
            positions = [i for i, keep in enumerate(wrt) if keep]
            for index in np.ndindex(*full):
                row = [np.array(x[index], order="C") for x in broadcast]
                alone = apply(row, [c[index] for c in cotangents])
                for want, size, one, i in zip(wants, sizes, alone, positions, strict=True):
                    loop = loops[i]
                    place = index[len(full) - len(loop) :]
                    chosen = tuple(0 if n == 1 else k for n, k in zip(loop, place, strict=True))
                    want[chosen] += np.asarray(one)
                    size[chosen] += np.abs(np.asarray(one))
    except UserError as error:
        raise raises_here(error) from None
    slack = [1e3 * case.eps * size + case.underflow + case.slack for size in sizes]
    wrong = difference(got, wants, case.tolerance(1e3), slack)
    if wrong is not None and all(np.all(np.isfinite(w)) for w in wants):
        raise Broken(
            f"got  {wrong}: Jᵀ w over loop dimensions {', '.join(map(str, loops))}, and summed over"
            " those that were broadcast",
            loop=True,
        )


@law("split over devices equals unsplit, without communication", cost=5, batch=3)
def sharded(case: Case) -> None:
    """With the first loop dimension split over the devices, the same comes out."""
    devices = np.array(jax.devices())
    remedy = "XLA_FLAGS=--xla_force_host_platform_device_count=4"
    apply_only_if(len(devices) > 1, f"there is one device ({remedy})")
    definition = getattr(case.subject.binding, "definition", None)
    effect = case.subject.options.effect
    apply_only_if(effect is None, "JAX keeps functions with effects on one device")
    apply_only_if(bool(case.leaves), "no operand")
    _ = case.value
    operation = operation_of(case, "f")
    assert operation is not None
    rows = operation.rows
    count = len(devices)
    stacked = [
        np.stack([rows[k % len(rows)][i] for k in range(count)]) for i in range(len(rows[0]))
    ]
    mesh = jax.sharding.Mesh(devices, ("devices",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("devices"))
    placed = [jax.device_put(x, split) for x in stacked]
    with errors_told_apart():
        compiled = jax.jit(jax.vmap(operation.function)).lower(placed).compile()
        got = [np.asarray(x) for x in compiled(placed)]
    found = set(COLLECTIVE.findall(compiled.as_text() or ""))
    if found and getattr(definition, "vmap_rule", None) is None:
        raise Broken(
            f"got  communication between devices ({', '.join(sorted(found))}) in a loop whose"
            " iterations need nothing of each other"
        )
    for k in range(count):
        at = f"device {k} of {count}"
        _compare(case, operation, [x[k] for x in stacked], [g[k] for g in got], at)
