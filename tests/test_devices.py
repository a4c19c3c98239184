"""Programs over several devices: what is split, and what every device has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import close, nonlinear, split, tangents_of
from jax.sharding import NamedSharding, PartitionSpec
from reference import Case, named

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("case", named("product", "matvec", "blend", "pick"), ids=str)
def test_shard_map(case: Case, check_vma, devices):
    """The first argument is split, the others are not: their cotangents are summed over devices."""
    batch, single = case.of(18, batch=2 * devices), case.of(19)
    args = (batch[0], *single[1:])
    axes = (0,) + (None,) * (len(single) - 1)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("i",))
    specs = (PartitionSpec("i"),) + (PartitionSpec(),) * (len(single) - 1)

    def total(function):
        return nonlinear(jax.vmap(function, in_axes=axes))

    def sharded(function):
        return jax.shard_map(
            lambda *a: jax.lax.psum(total(function)(*a), "i"),
            mesh=mesh,
            in_specs=specs,
            out_specs=PartitionSpec(),
            check_vma=check_vma,
        )

    def every(f):
        chosen, around = split(args, case.argnums)
        return (
            jax.jit(jax.grad(f, case.argnums))(*args),
            jax.jit(lambda *c: jax.jvp(around(f), c, tangents_of(c)))(*chosen),
        )

    got, want = every(sharded(case.bound)), every(total(case.twin))
    close(jax.device_get(got), jax.device_get(want), 1e-8)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("case", named("triple", "blend"), ids=str)
def test_gradient_inside_shard_map(case: Case, last, check_vma):
    """Of a part of the arguments, by each device; with checks on, JAX sums over devices itself."""
    single, batch = case.of(25), case.of(26, batch=2)
    args = (single[0], batch[1], single[2])
    axes = (None, 0, None)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("i",))
    argnums = (2,) if last else (0, 1)

    def sharded(function):
        def body(*args):
            gradient = jax.grad(nonlinear(jax.vmap(function, in_axes=axes)), argnums)(*args)
            return [jax.lax.psum(jnp.sum(g**2), "i") for g in gradient]

        return jax.shard_map(
            body,
            mesh=mesh,
            in_specs=(PartitionSpec(), PartitionSpec("i"), PartitionSpec()),
            out_specs=PartitionSpec(),
            check_vma=check_vma,
        )

    got, want = (jax.jit(sharded(f))(*args) for f in (case.bound, case.twin))
    close(jax.device_get(got), jax.device_get(want), 1e-8)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("case", named("matvec", "blend"), ids=str)
def test_hessian_inside_shard_map(case: Case, check_vma):
    batch, single = case.of(20, batch=2), case.of(21)
    args = (single[0], *batch[1:])
    axes = (None,) + (0,) * (len(single) - 1)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("i",))

    def hessian(function):
        return jax.vmap(jax.hessian(nonlinear(function), case.argnums), in_axes=axes)

    sharded = jax.shard_map(
        hessian(case.bound),
        mesh=mesh,
        in_specs=(PartitionSpec(),) + (PartitionSpec("i"),) * (len(single) - 1),
        out_specs=PartitionSpec("i"),
        check_vma=check_vma,
    )
    close(jax.jit(sharded)(*args), jax.jit(hessian(case.twin))(*args), 1e-8)


def test_operands_that_are_spread_over_devices():
    """What the function needs as a whole is gathered: it sees the whole array."""
    shapes = []

    @jaxbind.bind("(n)->(n)")
    def ordered(v):
        shapes.append(v.shape)
        return np.sort(v)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("i",))
    v = np.random.default_rng(0).standard_normal((2, 8))
    for spec in (PartitionSpec(None, "i"), PartitionSpec("i"), PartitionSpec()):
        if spec == PartitionSpec("i"):
            v = np.random.default_rng(0).standard_normal((4, 8))
        operand = jax.device_put(v, NamedSharding(mesh, spec))
        np.testing.assert_array_equal(jax.jit(ordered)(operand), np.sort(v))
    assert set(shapes) == {(8,)}
