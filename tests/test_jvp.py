"""Pushforwards: against JAX's of the twin, NumPy's differences, and their own linearity."""

import functools
import itertools

import foreign
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from amount import every
from comparing import close, normal, split, tangents_of
from hypothesis import given, settings
from hypothesis.extra.numpy import mutually_broadcastable_shapes
from reference import ALL, REAL, Case, named

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

seeds = st.integers(0, 2**32 - 1)
cases = pytest.mark.parametrize("case", every(3, ALL), ids=str)


def pushed(function, argnums):
    """Value and pushforward, with random tangents of the differentiable arguments."""

    def push(*args):
        chosen, around = split(args, argnums)
        return jax.jvp(around(function), chosen, tangents_of(chosen))

    return push


@cases
def test_value_and_pushforward(case: Case):
    args = case.of()
    got = jax.jit(pushed(case.bound, case.argnums))(*args)
    close(got, jax.jit(pushed(case.twin, case.argnums))(*args), case.rtol)


@pytest.mark.parametrize(
    "case",
    named("product", "decay", "polar", "power", "matvec", "combine", "blend", "pick", "mix")
    + named("swirl", "solve", "finite-difference", "complex-step", "from-vjp", "phase"),
    ids=str,
)
def test_eager_equals_compiled(case: Case):
    args = case.of(1)
    push = pushed(case.bound, case.argnums)
    close(push(*args), jax.jit(push)(*args), 1e-12)


@pytest.mark.parametrize("case", [c for c in ALL if len(c.argnums) > 1], ids=str)
def test_every_subset_of_arguments(case: Case):
    """Tangents that are symbolic zeros leave the others as they are."""
    args = case.of(2)
    subsets = [
        subset
        for size in range(1, len(case.argnums))
        for subset in itertools.combinations(case.argnums, size)
    ]

    def every(function):
        return jax.jit(lambda *a: [pushed(function, s)(*a)[1] for s in subsets])(*args)

    close(every(case.bound), every(case.twin), case.rtol)


@cases
def test_pushforward_is_linear(case: Case):
    args, around = split(case.of(3), case.argnums)
    value, push = jax.linearize(around(case.bound), *args)
    s, t = tangents_of(args, 4), tangents_of(args, 5)
    want = jax.jit(lambda *a: jax.jvp(around(case.twin), a, s))(*args)
    close((value, push(*s)), want, case.rtol)

    def combined(a, b):
        return jax.tree.map(lambda x, y: x if x.dtype == jax.dtypes.float0 else 2 * x - 3 * y, a, b)

    close(push(*combined(s, t)), combined(push(*s), push(*t)), max(case.rtol, 1e-8))


@pytest.mark.parametrize("case", named("product", "polar", "blend", "surface", "swirl"), ids=str)
def test_differences_of_the_function_itself(case: Case):
    """Independent of JAX: central differences of what NumPy computes."""
    args = case.of(6)
    tangents = tangents_of(args)
    _, got = jax.jvp(case.bound, args, tangents)
    plus = case.bound(*(np.asarray(a) + 1e-5 * np.asarray(t) for a, t in zip(args, tangents)))
    minus = case.bound(*(np.asarray(a) - 1e-5 * np.asarray(t) for a, t in zip(args, tangents)))
    want = jax.tree.map(lambda p, m: (p - m) / 2e-5, plus, minus)
    close(got, want, 1e-7)


@pytest.mark.parametrize("case", named("product", "blend", "mix", "pick", "phase"), ids=str)
def test_zero_tangents_as_arrays(case: Case):
    """Zeros that JAX does not know to be zeros give a zero, through the rule."""
    args = case.of(7)
    zeros = jax.tree.map(lambda t: np.zeros_like(t), tangents_of(args))
    value, tangent = jax.jvp(case.bound, args, zeros)
    close(value, case.bound(*args))
    for t in jax.tree.leaves(tangent):
        assert t.dtype == jax.dtypes.float0 or not np.any(t)


# Loop dimensions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [c for c in REAL if c.loops and c.name in ("product", "looped", "shifted")], ids=str
)
@settings(max_examples=8)
@given(shapes=mutually_broadcastable_shapes(num_shapes=2, max_dims=2, max_side=3), seed=seeds)
def test_loop_dimensions_broadcast(case: Case, shapes, seed):
    rng = np.random.default_rng(seed)
    args = tuple(normal(rng, s) for s in shapes.input_shapes)
    tangents = tangents_of(args, seed)
    close(jax.jvp(case.bound, args, tangents), jax.jvp(case.twin, args, tangents))


@settings(max_examples=12)
@given(
    shapes=mutually_broadcastable_shapes(
        signature="(m,n),(n)->(m)", max_dims=2, max_side=2, min_side=0
    ),
    seed=seeds,
)
def test_loop_dimensions_of_a_multilinear_function(shapes, seed):
    rng = np.random.default_rng(seed)
    args = tuple(normal(rng, s) for s in shapes.input_shapes)
    tangents = tangents_of(args, seed)
    (a, x), (da, dx) = args, tangents
    value, got = jax.jvp(foreign.matvec, args, tangents)
    close((value, got), (np.matvec(a, x), np.matvec(da, x) + np.matvec(a, dx)))


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("case", named("product", "matvec", "blend", "pick", "solve"), ids=str)
def test_a_fixed_primal_with_mapped_tangents(case: Case, size):
    """jacfwd's own pattern: the primal's loop dimension is 1, the tangent's is not."""
    args, around = split(case.of(8), case.argnums)
    many = jax.tree.map(
        lambda *xs: jnp.stack(xs), *(tangents_of(args, seed) for seed in range(size))
    )

    def mapped(function):
        return jax.jit(jax.vmap(lambda t: jax.jvp(around(function), args, t), out_axes=(None, 0)))(
            many
        )

    def without_float0(result):
        value, tangent = result
        return value, [t for t in jax.tree.leaves(tangent) if t.dtype != jax.dtypes.float0]

    close(without_float0(mapped(case.bound)), without_float0(mapped(case.twin)), case.rtol)


# Derivatives as bindings --------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in ALL if hasattr(c.bound, "jvp") and c.argnums], ids=str)
def test_the_derivative_called_directly(case: Case):
    args = case.of(9)
    tangents = tuple(t if i in case.argnums else None for i, t in enumerate(tangents_of(args)))
    given = jax.tree.map(lambda t: None if t.dtype == jax.dtypes.float0 else t, tangents)
    chosen, around = split(args, case.argnums)
    want = jax.jvp(around(case.twin), chosen, tuple(tangents[i] for i in case.argnums))[1]
    got = jax.tree.leaves(case.bound.jvp(args, given))
    close(got, [w for w in jax.tree.leaves(want) if w.dtype != jax.dtypes.float0], case.rtol)


def test_the_derivative_of_a_partly_linear_function_called_directly():
    args = (x, w, c) = jnp.arange(3.0), jnp.ones(3), jnp.asarray(0.4)
    t = tangents_of(args)
    want = jax.jvp(foreign.blend_twin, args, t)[1]
    close(foreign.blend.jvp(args, t, power=1), want)
    close(foreign.blend.jvp(args, (t[0], None, None)), t[0] * jnp.cos(c))
    close(foreign.blend.jvp(args, (None, None, t[2])), t[2] * (w * jnp.cos(c) - x * jnp.sin(c)))


def partly_linear():
    """``x y`` with a count beside it, linear in x."""
    count = jax.ShapeDtypeStruct((), int)
    f = jaxbind.bind(lambda x, y: (x * y, 3), out=lambda x, y: (x, count), linear="x")
    f.def_transpose(lambda y, cts: cts[0] * y)
    f.def_jvp(lambda primals, tangents: (primals[0] * tangents[1], None))
    f.def_vjp(lambda primals, cts: (None, primals[0] * cts[0]))
    return f


def test_partly_linear_derivatives_are_called_like_others():
    f = partly_linear()
    close(f.jvp((2.0, 3.0), (1.0, 10.0)), (23.0, None))
    close(f.jvp((2.0, 3.0), (1.0, None)), (3.0, None))
    close(f.jvp([2.0, 3.0], [None, None]), (0.0, None))
    small = np.float32(2.0), np.float32(3.0)
    with jax.enable_x64(True):
        tangent, nothing = f.jvp(small, (1.0, 1))
        assert tangent.dtype == np.float32 and nothing is None
    close(jax.jit(lambda x: f.jvp((x, 3.0), (x, None)))(2.0), (6.0, None))
    mapped = jax.vmap(lambda x: f.jvp((x, 3.0), (1.0, x))[0])(jnp.arange(3.0))
    close(mapped, 3.0 + jnp.arange(3.0) ** 2)


def test_partly_linear_derivatives_are_refused_like_others():
    f = partly_linear()
    for tangents, text in {
        (1.0,): "jvp: got 1 tangents for 2 primals; give one per positional argument",
        (1.0, 2.0, 3.0): "jvp: got 3 tangents for 2 primals",
        2.0: "jvp: tangents must be a tuple with an entry per positional argument of",
        (1j, None): "jvp: a tangent is complex128, where float64 is wanted; give its real part",
    }.items():
        with pytest.raises(TypeError, match=text):
            f.jvp((2.0, 3.0), tangents)
    with pytest.raises(TypeError, match="jvp: primals must be a tuple"):
        f.jvp(2.0, (1.0, 1.0))


def test_a_derivative_broadcasts_like_its_function():
    x, y, t = jnp.ones((3, 1)), jnp.arange(4.0), jnp.arange(3.0)[:, None]
    got = foreign.product.jvp((x, y), (t, None))
    close(got, y**2 * t)
    assert got.shape == (3, 4)


def test_a_derivative_takes_static_parameters():
    x = jnp.arange(3.0)
    close(foreign.cube.jvp((x,), (x,), scale=2.0), 6 * x**3)
    close(foreign.cube.jvp((x,), (x,)), 3 * x**3)


# Numbers, dtypes ----------------------------------------------------------------------------------


def test_python_numbers():
    got = jax.jvp(foreign.product, (2.0, 3.0), (1.0, 10.0))
    close(got, jax.jvp(lambda a, b: a * b**2, (2.0, 3.0), (1.0, 10.0)))
    mixed = (jnp.float32(2.0), 3.0), (jnp.float32(1.0), 10.0)
    close(jax.jvp(foreign.product, *mixed), jax.jvp(lambda a, b: a * b**2, *mixed))


@pytest.mark.parametrize(
    "case", named("product", "matvec", "cumulate", "blend", "solve", "wide", "fourier"), ids=str
)
def test_32_bits(case: Case):
    with jax.enable_x64(False):
        args = case.of(10)
        got = jax.jit(pushed(case.bound, case.argnums))(*args)
        close(got, jax.jit(pushed(case.twin, case.argnums))(*args), 3e-5)


def test_half_precision():
    x = jnp.asarray([0.5, 1.5], jnp.bfloat16)
    value, tangent = jax.jvp(lambda x: foreign.product(x, x), (x,), (x,))
    close((value, tangent), (x**3, (3 * x**3).astype(jnp.bfloat16)), 2e-2)


# Derivatives made from others ---------------------------------------------------------------------

X = np.asarray([0.5, -1.0, 2.0])


@pytest.mark.parametrize("traced", [False, True])
def test_from_vjp_of_any_rule(traced):
    """The rule may be traced, return a bare array, ask for `wrt`, and leave out parameters."""
    f = jaxbind.bind(lambda x, *, power=2, label="": x**power, "(n)->(n)")
    f.def_jvp("from-vjp")
    f.def_vjp(lambda p, ct: 2 * p[0] * ct, traced=traced)
    close(jax.jvp(f, (X,), (X,))[1], jnp.asarray(2 * X**2))

    @f.def_vjp(traced=traced)
    def _(primals, ct, *, power, wrt):
        return (power * primals[0] ** (power - 1) * ct if wrt[0] else None,)

    close(jax.jvp(lambda x: f(x, power=3, label="a"), (X,), (X,))[1], jnp.asarray(3 * X**3))
    mapped = jax.vmap(lambda x: jax.jvp(f, (x,), (X,))[1])
    close(mapped(np.stack([X, 2 * X])), jnp.stack([2 * X**2, 4 * X**2]))


@pytest.mark.parametrize("how", ["finite-difference", "complex-step"])
def test_numerical_derivatives_beside_integer_results(how):
    f = jaxbind.bind(
        lambda x: (x**2, np.real(x) > 0, np.asarray(np.real(x), int)),
        out=lambda x: (x, jax.ShapeDtypeStruct(x.shape, bool), jax.ShapeDtypeStruct(x.shape, int)),
    )
    f.def_jvp(how)
    tangent = jax.jvp(f, (X,), (X,))[1]
    close(tangent[0], jnp.asarray(2 * X**2), 1e-8)
    assert {t.dtype for t in tangent[1:]} == {np.dtype(jax.dtypes.float0)}


def test_numerical_derivatives_of_part_of_the_arguments():
    """Integers, nondiff and linear arguments do not move."""
    for how in ("finite-difference", "complex-step"):
        f = jaxbind.bind(
            lambda x, y, k, c: x * y**k * c, "(n),(n),(),(n)->(n)", linear="x", nondiff="c"
        )
        f.def_jvp(how)
        args = X, X + 3, np.asarray(2), np.ones(3)

        def along(g, args=args):
            return jax.jvp(lambda x, y: g(x, y, *args[2:]), args[:2], (X, X))[1]

        close(along(f), along(lambda x, y, k, c: x * y**k * c), 1e-8)


@settings(max_examples=20)
@given(
    x=st.floats(-1e6, 1e6), scale=st.sampled_from([1e-8, 1.0, 1e8]), bits=st.sampled_from([32, 64])
)
def test_finite_differences_for_operands_and_tangents_of_any_size(x, scale, bits):
    """The step follows both: relative error of eps**(2/3) where the function is smooth."""
    f = jaxbind.bind(lambda x: x**2, "()->()", name="squared_for_differences")
    f.def_jvp("finite-difference")
    dtype = np.float64 if bits == 64 else np.float32
    x, t = jnp.asarray(x, dtype), jnp.asarray(scale, dtype)
    got = jax.jvp(f, (x,), (t,))[1] / scale
    assert got.dtype == dtype
    tolerance = 50 * float(jnp.finfo(dtype).eps) ** (2 / 3)
    assert abs(got - 2 * x) <= tolerance * max(1.0, abs(2 * x))


COARSE = {
    "another operand": lambda dtype: (jaxbind.bind(lambda x, y: np.sin(x) * y, "(),()->()"), dtype),
    "the result": lambda dtype: (
        jaxbind.bind(lambda x, y: (np.sin(x) * y).astype(dtype), "(),()->()", dtype=dtype),
        float,
    ),
    "the function": lambda dtype: (
        jaxbind.bind(lambda x, y: np.sin(x) * y, "(),()->()", compute_dtype=dtype),
        float,
    ),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("coarse", COARSE)
def test_finite_differences_follow_the_coarsest_dtype(coarse, dtype):
    """Rounding in it must not drown the difference, whatever else is more precise."""
    f, first = COARSE[coarse](dtype)
    f.def_jvp("finite-difference")
    args = jnp.linspace(0.0, 3.0, 20, dtype=first), jnp.asarray(2.0, float)
    got = jax.jvp(f, args, tuple(map(jnp.ones_like, args)))[1]
    x = np.asarray(args[0], float)
    tolerance = 10 * float(jnp.finfo(dtype).eps) ** (2 / 3)
    np.testing.assert_allclose(got, 2 * np.cos(x) + np.sin(x), rtol=0, atol=tolerance)


@settings(max_examples=20)
@given(
    x=st.floats(-3, 3),
    digits=st.integers(-290, 290),
    how=st.sampled_from(["finite-difference", "complex-step"]),
    dtype=st.sampled_from([np.float64, np.float32]),
)
def test_numerical_derivatives_are_homogeneous(x, digits, how, dtype):
    """The tangent may be as large or as small as its dtype has numbers."""
    f = jaxbind.bind(lambda x: np.exp(x), "()->()", name="exp_for_numerical_derivatives")
    f.def_jvp(how)
    t = jnp.asarray(10.0 ** (digits if dtype == np.float64 else digits // 10), dtype)
    got = jax.jvp(f, (jnp.asarray(x, dtype),), (t,))[1]
    assert got.dtype == dtype
    eps = float(jnp.finfo(dtype).eps)
    tolerance = 100 * eps if how == "complex-step" else 100 * eps ** (2 / 3)
    assert abs(float(got / t) - np.exp(x)) <= tolerance * 30


def test_a_complex_step_in_half_precision():
    f = jaxbind.bind(lambda x: x**3, "()->()", name="half_cube")
    f.def_jvp("complex-step")
    x = jnp.asarray(1.5, jnp.bfloat16)
    tangent = jax.jvp(f, (x,), (x,))[1]
    assert tangent.dtype == jnp.bfloat16
    assert abs(float(tangent) - 3 * 1.5**3) < 0.05


def test_both_from_the_other_is_refused():
    f = jaxbind.bind(lambda x: x**2, "(n)->(n)")
    f.def_jvp("from-vjp")
    with pytest.raises(TypeError, match="from-jvp"):
        f.def_vjp("from-jvp")
    f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    f.def_vjp("from-jvp")
    with pytest.raises(TypeError, match="'from-vjp' cannot be, since its def_vjp is 'from-jvp'"):
        f.def_jvp("from-vjp")
    with pytest.raises(TypeError, match=r"def_jvp\('guess'\) is not known"):
        f.def_jvp("guess")


JACOBIANS = {
    "two results": (lambda x: (x**2, x), lambda x: (2 * x * np.eye(3), np.eye(3))),
    "a dict": (
        lambda x: {"s": x**2, "t": x},
        lambda x: {"s": 2 * x * np.eye(3), "t": np.eye(3)},
    ),
    "one result": (lambda x: x**2, lambda x: 2 * x * np.eye(3)),
}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("of_one", [False, True])
@pytest.mark.parametrize("which", JACOBIANS)
def test_jacobians_for_a_single_argument(which, of_one, traced):
    """For each result a tuple with an array per argument; here the array alone will do."""
    function, slopes = JACOBIANS[which]
    f = jaxbind.bind(function, out=lambda x: jax.tree.map(lambda _: x, function(X)))

    def rule(x):
        return jax.tree.map(lambda j: (j,) if of_one else j, slopes(x))

    f.def_jacobian(rule, traced=traced)
    close(jax.jacfwd(f)(X), jax.tree.map(jnp.asarray, slopes(X)))


def test_jacobians_for_a_single_argument_of_several_arrays():
    f = jaxbind.bind(
        lambda d: {"s": d["a"] * d["b"], "t": d["a"]}, out=lambda d: {"s": d["a"], "t": d["a"]}
    )
    f.def_jacobian(
        lambda d: {
            "s": ({"a": np.diag(d["b"]), "b": np.diag(d["a"])},),
            "t": ({"a": np.eye(3), "b": np.zeros((3, 3))},),
        }
    )
    d = {"a": X, "b": X + 1}
    got = jax.jvp(f, (d,), (d,))[1]
    close(got, {"s": jnp.asarray(2 * X * (X + 1)), "t": jnp.asarray(X)})


def test_partials_are_for_arrays():
    """One partial cannot be right for several leaves."""
    f = jaxbind.bind(lambda p: p["a"] * p["b"] ** 2, out=lambda p: p["a"])
    f.def_partials(lambda p: p["b"] ** 2)
    p = {"a": X, "b": X}
    with pytest.raises(TypeError, match="def_partials"):
        jax.jvp(f, (p,), (p,))


@pytest.mark.parametrize(
    "rules", [{"def_jvp": lambda p, t: 5 * t[0]}, {"def_vjp": lambda p, ct: 5 * ct}], ids=list
)
def test_rules_that_a_linear_function_would_never_use_are_refused(rules):
    f = jaxbind.bind(lambda x: 2 * x, "(n)->(n)", linear=True)
    for name, rule in rules.items():
        with pytest.raises(TypeError, match="def_transpose"):
            getattr(f, name)(rule)


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("def_jvp", "finite-difference"),
        ("def_jvp", "complex-step"),
        ("def_jvp", "from-vjp"),
        ("def_vjp", "from-jvp"),
        ("def_partials", jnp.ones_like),
        ("def_jacobian", lambda x: np.eye(len(x))),
    ],
)
@pytest.mark.parametrize("linear", [{"linear": True}, {"multilinear": "x"}], ids=str)
def test_derivatives_that_a_linear_function_would_never_use_are_refused(linear, name, given):
    f = jaxbind.bind(lambda x: 2 * x, "(n)->(n)", **linear, name="twice")
    with pytest.raises(TypeError, match=f"twice: {name} would never be called.*def_transpose"):
        getattr(f, name)(given)
    assert set(f.definition.rules) == set()


@pytest.mark.parametrize("how", ["finite-difference", "complex-step", "from-vjp"])
def test_symbolic_sizes(how):
    """Of programs for several sizes, in both modes, and mapped."""
    f = jaxbind.bind(lambda x: np.sin(x) * x.sum(), "(n)->(n)", name=f"symbolic {how}")
    f.def_jvp(how)
    if how == "from-vjp":
        f.def_vjp(lambda p, ct: np.cos(p[0]) * p[0].sum() * ct + (np.sin(p[0]) * ct).sum())
    else:
        f.def_vjp("from-jvp")
    uses = {
        ("n",): lambda g, x: jax.grad(lambda x: g(x).sum())(x),
        ("n", None): lambda g, x: jax.jvp(g, (x,), (x,))[1],
        ("m", "n"): lambda g, x: jax.vmap(jax.grad(lambda x: g(x).sum()))(x),
    }
    sizes = dict(zip("mn", jax.export.symbolic_shape("m, n")))
    for names, use in uses.items():
        shape = tuple(sizes[name] for name in names if name)
        struct = jax.ShapeDtypeStruct(shape, float)
        exported = jax.export.export(
            jax.jit(functools.partial(use, f)), disabled_checks=jaxbind.export_checks()
        )(struct)
        x = np.random.default_rng(0).normal(size=(2, 4)[-len(shape) :])
        want = use(lambda x: jnp.sin(x) * x.sum(), x)
        np.testing.assert_allclose(exported.call(x), want, rtol=1e-6, atol=1e-8)
