"""Programs over several devices: what is split, and what every device has."""

import contextlib
import gc
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from comparing import close, nonlinear, split, tangents_of
from jax.sharding import AxisType, NamedSharding, PartitionSpec
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


# Loop dimensions over devices ---------------------------------------------------------------------

COLLECTIVE = re.compile(r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")


def twin(a, x):
    return jnp.cumsum(a * x, -1)


def bound(vectorized, order="C"):
    f = jaxbind.bind(
        lambda a, x: np.cumsum(a * x, -1), "(n),(n)->(n)", vectorized=vectorized, order=order
    )
    f.def_jvp(lambda p, t: jnp.cumsum(p[0] * t[1] + t[0] * p[1], -1), traced=True)

    @f.def_vjp
    def _(primals, ct):
        a, x = primals
        back = np.cumsum(ct[..., ::-1], -1)[..., ::-1]
        return back * x, back * a

    return f


def scanned(f):
    return lambda a, x: jax.lax.scan(lambda c, _: (f(c, x) / 2, None), a, None, length=3)[0]


SPLIT = {
    # name: (program of f, specs of the operands, whether all devices must add up)
    "both": (lambda f: f, ("a", "b"), ("a", "b"), False),
    "one operand": (lambda f: f, ("a", "b"), None, False),
    "two axes of the mesh": (lambda f: f, (("a", "b"),), (("a", "b"),), False),
    "unlike": (lambda f: f, ("a",), ("b",), None),
    "inner loop": (lambda f: f, (None, "b"), (None, "b"), False),
    "vmap": (lambda f: jax.vmap(f, (1, None), 1), ("b", "a"), None, False),
    "jvp": (lambda f: lambda a, x: jax.jvp(f, (a, x), (x * a, a))[1], ("a", "b"), ("a", "b"), False),
    "gradient": (
        lambda f: jax.grad(lambda a, x: jnp.sum(f(a, x) ** 2)), ("a", "b"), ("a", "b"), False),
    "gradient in what is common": (
        lambda f: jax.grad(lambda a, x: jnp.sum(f(a, x) ** 2), 1), ("a", "b"), None, True),
    "checkpoint": (
        lambda f: jax.grad(lambda a, x: jnp.sum(jax.checkpoint(f)(a, x) ** 2)),
        ("a", "b"), ("a", "b"), False),
    "scan": (scanned, ("a", "b"), ("a", "b"), False),
}  # fmt: skip


@pytest.mark.parametrize("shardy", [True, False], ids=["shardy", "gspmd"])
@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("name", SPLIT)
def test_loops_are_split_without_communication(name, vectorized, shardy, x64):
    program, *specs, adds = SPLIT[name]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape(2, 2), ("a", "b"))
    rng = np.random.default_rng(0)
    shapes = [(8, 4, 5) if spec else (5,) for spec in specs]
    arrays = [
        jax.device_put(rng.normal(size=shape), NamedSharding(mesh, PartitionSpec(*(spec or ()))))
        for shape, spec in zip(shapes, specs)
    ]
    before = jax.config.jax_use_shardy_partitioner
    jax.config.update("jax_use_shardy_partitioner", shardy)
    try:
        compiled = jax.jit(program(bound(vectorized))).lower(*arrays).compile()
        got = compiled(*arrays)
    finally:
        jax.config.update("jax_use_shardy_partitioner", before)
    np.testing.assert_allclose(got, jax.jit(program(twin))(*arrays), rtol=1e-12)
    if adds is not None:
        found = set(COLLECTIVE.findall(compiled.as_text()))
        assert found == ({"all-reduce"} if adds else set())


def test_each_device_calls_the_function_on_its_part(x64):
    shapes = set()

    def note(a, x):
        shapes.add((a.shape, x.shape))
        return a * x

    f = jaxbind.bind(note, "(n),(n)->(n)", vectorized=True)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("i",))
    a = np.random.default_rng(0).normal(size=(8, 6, 3))
    placed = jax.device_put(a, NamedSharding(mesh, PartitionSpec("i")))
    np.testing.assert_array_equal(jax.jit(f)(placed, a[0]), a * a[0])
    assert shapes == {((2, 6, 3), (1, 6, 3))}


@pytest.mark.parametrize("order", ["C", "F"])
def test_closures_and_objects_on_several_devices(order, x64):
    """What has no name of its own lives as long as the program."""

    class Scale:
        def __call__(self, x):
            return 3 * x

    def made(placed):
        f = jaxbind.bind(lambda a, *, by: by(a), "(m,n)->(m,n)", order=order)
        scale = Scale()
        return jax.jit(lambda a: f(a, by=scale)).lower(placed).compile()

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("i",))
    a = np.random.default_rng(0).normal(size=(4, 2, 3))
    placed = jax.device_put(a, NamedSharding(mesh, PartitionSpec("i")))
    compiled = made(placed)
    gc.collect()
    np.testing.assert_array_equal(compiled(placed), 3 * a)


def test_compiled_loops_are_split(x64):
    f = jaxbind.bind(scipy.special.jv)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("i",))
    x = np.random.default_rng(0).uniform(0, 9, (8, 50))
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("i")))
    compiled = jax.jit(f).lower(1.5, placed).compile()
    np.testing.assert_array_equal(compiled(1.5, placed), scipy.special.jv(1.5, x))
    assert not COLLECTIVE.search(compiled.as_text())


def test_programs_that_are_split_alike_need_each_other_not(x64):
    """Their calls have one name in the table of what is to be split."""
    f = jaxbind.bind(lambda x: x**2, "(n)->(n)", name="test_devices.square")
    devices = np.array(jax.devices()[:4])
    rows = NamedSharding(jax.sharding.Mesh(devices, ("d",)), PartitionSpec("d"))
    operand = jax.device_put(np.arange(8.0).reshape(4, 2), rows)
    lowered = [jax.jit(lambda v, k=k: f(v) + k).lower(operand) for k in range(3)]
    names = [set(re.findall("jaxbind-[0-9a-f]{64}", program.as_text())) for program in lowered]
    assert len(names[0]) == 1 and names[0] == names[1] == names[2]
    other = jax.sharding.Mesh(devices[[1, 0, 3, 2]], ("d",))
    moved = jax.device_put(operand, NamedSharding(other, PartitionSpec("d")))
    text = jax.jit(f).lower(moved).as_text()
    assert set(re.findall("jaxbind-[0-9a-f]{64}", text)).isdisjoint(names[0])
    for k in (1, 0, 2):
        program, lowered[k] = lowered[k], None
        compiled = program.compile()
        np.testing.assert_array_equal(compiled(operand), np.arange(8.0).reshape(4, 2) ** 2 + k)
        assert "all-gather" not in compiled.as_text()
        del program, compiled
        gc.collect()


# Meshes with explicit axes ------------------------------------------------------------------------


def on_mesh(kind, *arrays):
    """A mesh of four devices, and arrays whose first dimension is split over it."""
    mesh = jax.make_mesh((4,), ("i",), axis_types=(kind,))
    place = NamedSharding(mesh, PartitionSpec("i"))
    return mesh, *[jax.device_put(array, place) for array in arrays]


def without_communication(program, *operands):
    compiled = jax.jit(program).lower(*operands).compile()
    assert not COLLECTIVE.search(compiled.as_text())
    return compiled(*operands)


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("name", [name for name in SPLIT if name != "unlike"])
def test_explicit_axes(name, vectorized, x64):
    """Types tell how loop dimensions are split, as those of JAX's own functions do."""
    program, *specs, adds = SPLIT[name]
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    rng = np.random.default_rng(0)
    arrays = [
        jax.device_put(
            rng.normal(size=(8, 4, 5) if spec else (5,)),
            NamedSharding(mesh, PartitionSpec(*(spec or ()))),
        )
        for spec in specs
    ]
    compiled = jax.jit(program(bound(vectorized))).lower(*arrays).compile()
    got, want = compiled(*arrays), jax.jit(program(twin))(*arrays)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert jax.typeof(got) == jax.typeof(want)
    assert set(COLLECTIVE.findall(compiled.as_text())) == ({"all-reduce"} if adds else set())


@pytest.mark.parametrize("kind", [AxisType.Explicit, AxisType.Auto])
@pytest.mark.parametrize("entered", [False, True])
def test_both_kinds_of_axes(kind, entered, x64):
    rng = np.random.default_rng(0)
    mesh, x, a = on_mesh(kind, rng.normal(size=(8, 4)), rng.normal(size=(8, 3, 4)))
    ordered = jaxbind.bind(np.sort, "(n)->(n)")
    matvec = jaxbind.bind(lambda a, x: a @ x, "(m,n),(n)->(m)", multilinear=("a", "x"))
    matvec.def_transpose("a")(lambda x, ct: np.outer(ct, x))
    matvec.def_transpose("x")(lambda a, ct: a.T @ ct)
    split = jax.shard_map(
        ordered, mesh=mesh, in_specs=PartitionSpec("i"), out_specs=PartitionSpec("i")
    )

    def backward(a, x):
        return jax.linear_transpose(lambda x: matvec(a, x), x)(matvec(a, x))[0]

    def both(a, x):
        return jax.jvp(matvec, (a, x), (2 * a, x))[1]

    rows = np.sort(x)
    there = np.einsum("bij,bj->bi", a, x)
    back = np.einsum("bij,bi->bj", a, there)
    with jax.set_mesh(mesh) if entered else contextlib.nullcontext():
        for program, operands, want in (
            (ordered, (x,), rows),
            (jax.vmap(ordered), (x,), rows),
            (jax.vmap(ordered, spmd_axis_name="i"), (x,), rows),
            (jax.vmap(ordered, out_axes=1), (x,), rows.T),
            (lambda x: split(ordered(x)), (x,), rows),
            (lambda x: ordered(split(x)), (x,), rows),
            (jaxbind.bind(scipy.special.expit), (x,), scipy.special.expit(x)),
            (jax.vmap(matvec, (None, 0)), (np.ones((3, 4)), x), x @ np.ones((4, 3))),
            (matvec, (a, x), there),
            (both, (a, x), 3 * there),
            (backward, (a, x), back),
            (jax.vmap(backward), (a, x), back),
        ):
            got = without_communication(program, *operands)
            np.testing.assert_allclose(got, want, rtol=1e-12)
            np.testing.assert_allclose(jax.jit(program)(*operands), want, rtol=1e-12)
            spec = PartitionSpec(*["i" if size == 8 else None for size in got.shape])
            assert got.sharding.is_equivalent_to(NamedSharding(mesh, spec), got.ndim)


def test_explicit_axes_on_which_operands_disagree(x64):
    """Such a loop dimension stays whole; so does one whose axis splits another already."""
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    values = np.random.default_rng(0).normal(size=(4, 4, 3))
    product = jaxbind.bind(lambda x, y: x * y, "(n),(n)->(n)")
    for first, second, want in (
        (("a",), ("b",), (None, None)),
        (("a",), (None, "a"), ("a", None)),
        (("a",), (("a", "b"),), (None, None)),
        (("a",), (None, "b"), ("a", "b")),
    ):
        operands = [
            jax.device_put(values, NamedSharding(mesh, PartitionSpec(*spec)))
            for spec in (first, second)
        ]
        got = jax.jit(product)(*operands)
        np.testing.assert_array_equal(got, values**2)
        assert jax.typeof(got).sharding.spec == PartitionSpec(*want, None)
