"""Every transformation of a binding equals the same transformation of its jax.numpy twin."""

import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from hypothesis import given, settings
from twins import COMPLEX, REAL

pytestmark = pytest.mark.usefixtures("x64")

ALL = REAL + COMPLEX
seeds = st.integers(0, 2**32 - 1)


def close(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == w.dtype and g.shape == w.shape
        np.testing.assert_allclose(g, w, rtol=1e-9, atol=1e-9)


def operands(case, seed=0, batch=None):
    rng = np.random.default_rng(seed)
    if batch is None:
        return case.operands(rng)
    return jax.tree.map(lambda *xs: jnp.stack(xs), *(case.operands(rng) for _ in range(batch)))


def scalar(function):
    """A real number from any result, nonlinear in all of it."""

    def total(*args):
        leaves = jax.tree.leaves(function(*args))
        return sum(jnp.sum(jnp.sin(x.real) + jnp.cos(x.imag)) for x in leaves)

    return total


def in_scan(function):
    def scanned(*args):
        def body(carry, _):
            return jax.tree.map(lambda c: 0.9 * c, carry), function(*carry)

        return jax.lax.scan(body, args, None, length=3)[1]

    return scanned


def in_cond(function):
    return lambda *args: jax.lax.cond(
        jax.tree.leaves(args)[0].real.sum() > -1e9, function, function, *args
    )


def in_fori(function):
    """The last of three results, differentiable forwards (a while loop) and backwards (static)."""

    def looped(*args):
        first = function(*args)

        def body(i, carry):
            scaled = jax.tree.map(lambda a: a * (1 + 0.1 * i), args)
            return jax.tree.map(lambda c, f: c + f, carry, function(*scaled))

        return jax.lax.fori_loop(0, 3, body, first)

    return looped


WRAPPERS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "jit-jit": lambda f: jax.jit(lambda *a: jax.jit(f)(*a)),
    "checkpoint": jax.checkpoint,
    "checkpoint-policy": lambda f: jax.checkpoint(
        f, policy=jax.checkpoint_policies.everything_saveable
    ),
    "scan": in_scan,
    "cond": in_cond,
    "fori_loop": in_fori,
}


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("case", ALL, ids=str)
def test_value_and_first_derivatives(case, wrap):
    if wrap == "checkpoint-policy" and case in COMPLEX:
        pytest.skip("JAX itself cannot save complex residuals under a policy")
    bound, twin = WRAPPERS[wrap](case.bound), WRAPPERS[wrap](case.twin)
    args = operands(case)
    close(bound(*args), twin(*args))
    close(jax.jvp(bound, args, args)[1], jax.jvp(twin, args, args)[1])
    close(jax.grad(scalar(bound), case.argnums)(*args), jax.grad(scalar(twin), case.argnums)(*args))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_every_subset_of_arguments(case):
    args = operands(case, 1)
    for size in range(1, len(case.argnums) + 1):
        for subset in itertools.combinations(case.argnums, size):
            got = jax.jit(jax.grad(scalar(case.bound), subset))(*args)
            close(got, jax.grad(scalar(case.twin), subset)(*args))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_linearize_and_vjp_with_some_cotangents_zero(case):
    args = operands(case, 2)
    value, push = jax.linearize(case.bound, *args)
    close((value, push(*args)), jax.jvp(case.twin, args, args))
    leaves, tree = jax.tree.flatten(value)
    _, pull = jax.vjp(case.bound, *args)
    _, twin_pull = jax.vjp(case.twin, *args)
    for kept in itertools.product([0.0, 1.0], repeat=len(leaves)):
        cotangents = jax.tree.unflatten(tree, [k * x for k, x in zip(kept, leaves, strict=True)])
        close(pull(cotangents), twin_pull(cotangents))


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("case", ALL, ids=str)
def test_both_linearizations(case, direct):
    args = operands(case, 3)
    try:
        context = jax._src.config.use_direct_linearize(direct)
    except AttributeError:
        pytest.skip("this JAX has one way to linearize")
    with context:
        got = jax.jit(jax.grad(scalar(case.bound), case.argnums))(*args)
    close(got, jax.grad(scalar(case.twin), case.argnums)(*args))


TWICE = {
    "fwd-rev": lambda f, argnums: jax.jacfwd(jax.grad(f, argnums), argnums),
    "rev-rev": lambda f, argnums: jax.jacrev(jax.grad(f, argnums), argnums),
    "rev-fwd": lambda f, argnums: jax.jacrev(jax.jacfwd(f, argnums), argnums),
    "fwd-fwd": lambda f, argnums: jax.jacfwd(jax.jacfwd(f, argnums), argnums),
}


def of_reals(function):
    return lambda *parts: function(*(x + 1j * x for x in parts))


@pytest.mark.parametrize("mode", TWICE)
@pytest.mark.parametrize("case", [c for c in ALL if c.order >= 2], ids=str)
def test_second_derivatives(case, mode):
    if case in COMPLEX:  # jacfwd and jacrev want real operands
        bound, twin = of_reals(case.bound), of_reals(case.twin)
        args = jax.tree.map(jnp.real, operands(case, 4))
    else:
        bound, twin, args = case.bound, case.twin, operands(case, 4)
    twice = TWICE[mode]
    close(twice(scalar(bound), case.argnums)(*args), twice(scalar(twin), case.argnums)(*args))


@pytest.mark.parametrize("case", [c for c in REAL if c.order > 2], ids=str)
def test_third_derivative_along_a_line(case):
    args = operands(case, 5)

    def along(function):
        return lambda t: scalar(function)(*jax.tree.map(lambda x: x * t, args))

    def third(f):
        return jax.grad(jax.jacfwd(jax.grad(f)))

    close(jax.jit(third(along(case.bound)))(1.0), third(along(case.twin))(1.0))


# vmap ---------------------------------------------------------------------------------------------

DERIVED = {
    "value": lambda f, argnums: f,
    "grad": lambda f, argnums: jax.grad(scalar(f), argnums),
    "jvp": lambda f, argnums: lambda *args: jax.jvp(f, args, args)[1],
    "vjp": lambda f, argnums: lambda *args: jax.vjp(f, *args)[1](f(*args)),
}


@pytest.mark.parametrize("derived", DERIVED)
@pytest.mark.parametrize("case", ALL, ids=str)
@settings(max_examples=6)
@given(data=st.data(), seed=seeds, size=st.integers(0, 3))
def test_vmap_with_any_in_axes(case, derived, data, seed, size):
    single = operands(case, seed)
    stacked = operands(case, seed, batch=max(size, 1))
    stacked = jax.tree.map(lambda x: x[:size], stacked)
    flat, tree = jax.tree.flatten(single)
    axes, mixed = [], []
    for one, many in zip(flat, jax.tree.leaves(stacked), strict=True):
        axis = data.draw(st.one_of(st.none(), st.integers(-one.ndim - 1, one.ndim)))
        axes.append(axis)
        mixed.append(one if axis is None else jnp.moveaxis(many, 0, axis))
    if all(a is None for a in axes):
        axes[0], mixed[0] = 0, jax.tree.leaves(stacked)[0]
    make = DERIVED[derived]

    def flattened(f):
        return lambda *leaves: make(f, case.argnums)(*jax.tree.unflatten(tree, leaves))

    got = jax.vmap(flattened(case.bound), in_axes=tuple(axes))(*mixed)
    close(got, jax.vmap(flattened(case.twin), in_axes=tuple(axes))(*mixed))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_gradient_of_a_map_sums_over_what_is_not_mapped(case):
    batch = operands(case, 6, batch=3)
    single = operands(case, 7)
    for i in range(len(single)):
        mixed = tuple(single[j] if j == i else batch[j] for j in range(len(single)))
        axes = tuple(None if j == i else 0 for j in range(len(single)))
        if all(a is None for a in axes):
            continue

        def mapped(f, axes=axes):
            return scalar(jax.vmap(f, in_axes=axes))

        close(
            jax.jit(jax.grad(mapped(case.bound), case.argnums))(*mixed),
            jax.grad(mapped(case.twin), case.argnums)(*mixed),
        )


@pytest.mark.parametrize("case", ALL, ids=str)
def test_nested_maps(case):
    batch = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), operands(case, 8, batch=3))

    def nested(f):
        return jax.vmap(jax.vmap(jax.grad(scalar(f), case.argnums)), out_axes=1)

    close(jax.jit(nested(case.bound))(*batch), nested(case.twin)(*batch))


# Everything around a binding ----------------------------------------------------------------------


def test_custom_rules_around_a_binding():
    @jax.custom_vjp
    def outer(x):
        return twins.sine(x)

    outer.defvjp(lambda x: (twins.sine(x), x), lambda x, ct: (3 * twins.cosine(x) * ct,))
    np.testing.assert_allclose(jax.grad(outer)(0.3), 3 * np.cos(0.3))
    np.testing.assert_allclose(jax.grad(jax.grad(outer))(0.3), -3 * np.sin(0.3))

    @jax.custom_jvp
    def forward(x):
        return twins.sine(x)

    forward.defjvp(lambda p, t: (twins.sine(*p), 5 * twins.cosine(*p) * t[0]))
    np.testing.assert_allclose(jax.grad(forward)(0.3), 5 * np.cos(0.3))


def test_while_loop_forward():
    def count(f):
        def run(x):
            return jax.lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, f(c[1])), (0, x))[1]

        return run

    close(jax.jvp(count(twins.sine), (0.7,), (1.0,)), jax.jvp(count(jnp.sin), (0.7,), (1.0,)))


@pytest.mark.parametrize("case", ALL, ids=str)
def test_ahead_of_time_eval_shape_and_disabled_jit(case):
    args = operands(case, 9)
    want = case.twin(*args)
    compiled = jax.jit(case.bound).lower(*args).compile()
    close(compiled(*args), want)
    shapes = jax.eval_shape(case.bound, *args)
    assert jax.tree.map(lambda s: (s.shape, s.dtype), shapes) == jax.tree.map(
        lambda a: (a.shape, a.dtype), want
    )
    with jax.disable_jit():
        close(case.bound(*args), want)
        close(
            jax.grad(scalar(case.bound), case.argnums)(*args),
            jax.grad(scalar(case.twin), case.argnums)(*args),
        )


@pytest.mark.parametrize("case", ALL, ids=str)
def test_debug_nans_and_strict_promotion(case):
    args = operands(case, 10)
    with jax.debug_nans(True), jax.numpy_dtype_promotion("strict"):
        case.bound(*args)
        jax.jit(jax.grad(lambda *a: jax.tree.leaves(case.bound(*a))[0].real.sum()))(*args)


@pytest.mark.parametrize("check_vma", [False, True])
@pytest.mark.parametrize("case", REAL, ids=str)
def test_shard_map_gradients(case, check_vma):
    """Operands with mixed varying axes: the first argument is split, the others are not."""
    batch, single = operands(case, 11, batch=4), operands(case, 12)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("i",))
    spec = jax.sharding.PartitionSpec("i")
    mixed = (batch[0], *single[1:])
    axes = (0,) + (None,) * (len(single) - 1)

    def split(f):
        def body(*args):
            return jax.lax.psum(scalar(jax.vmap(f, in_axes=axes))(*args), "i")

        in_specs = (spec,) + (jax.sharding.PartitionSpec(),) * (len(single) - 1)
        return jax.shard_map(
            body,
            mesh=mesh,
            in_specs=in_specs,
            out_specs=jax.sharding.PartitionSpec(),
            check_vma=check_vma,
        )

    whole = scalar(jax.vmap(case.twin, in_axes=axes))
    close(
        jax.jit(jax.grad(split(case.bound), case.argnums))(*mixed),
        jax.grad(whole, case.argnums)(*mixed),
    )


@pytest.mark.parametrize("case", [c for c in ALL if c.order == 9], ids=str)
def test_32_bits(case):
    with jax.enable_x64(False):
        args = operands(case, 13)  # converted by JAX on the way in
        got = jax.jit(jax.grad(scalar(case.bound), case.argnums))(*args)
        want = jax.grad(scalar(case.twin), case.argnums)(*args)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert g.dtype == w.dtype
            np.testing.assert_allclose(g, w, rtol=2e-4, atol=2e-4)
