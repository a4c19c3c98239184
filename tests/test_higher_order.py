"""Second and higher derivatives, in every mixture of forward and reverse mode."""

import functools
import itertools

import foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import close, nonlinear, normal, tangents_of
from reference import ANY, COMPLEX, REAL, Case, named

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

TWICE = [c for c in REAL if c.order >= 2]

MODES = {
    "fwd-rev": lambda f, n: jax.jacfwd(jax.grad(f, n), n),
    "rev-rev": lambda f, n: jax.jacrev(jax.grad(f, n), n),
    "rev-fwd": lambda f, n: jax.jacrev(jax.jacfwd(f, n), n),
    "fwd-fwd": lambda f, n: jax.jacfwd(jax.jacfwd(f, n), n),
}


@functools.cache
def twin_hessian(case: Case, seed: int):
    return jax.jit(jax.hessian(nonlinear(case.twin), case.argnums))(*case.of(seed))


# Forward over forward asks for nothing new of functions whose rules JAX differentiates.
EVERY_MODE = {"decay", "matvec", "combine", "blend", "cube", "surface", "quadratic", "solve"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "mode"),
    [(c, m) for c in TWICE for m in MODES if c.name in EVERY_MODE or m.endswith("-rev")],
    ids=str,
)
def test_hessian(case: Case, mode):
    """All second derivatives, mixed ones between arguments included."""
    got = jax.jit(MODES[mode](nonlinear(case.bound), case.argnums))(*case.of())
    close(got, twin_hessian(case, 0), 1e-8)


@pytest.mark.parametrize("case", named("sine", "blend"), ids=str)
def test_eager_hessian(case: Case):
    got = jax.hessian(nonlinear(case.bound), case.argnums)(*case.of())
    close(got, twin_hessian(case, 0), 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", named("decay", "polar", "matvec", "triple", "blend", "surface"), ids=str
)
def test_each_pair_of_arguments(case: Case):
    """Differentiated in one argument, then in another: what is not wanted stays away."""
    args = case.of(2)

    def every(function):
        f = nonlinear(function)
        return [
            mode(i, j)(*args)
            for i, j in itertools.product(case.argnums, repeat=2)
            for mode in (
                lambda i, j: jax.jacfwd(jax.grad(f, i), j),
                lambda i, j: jax.jacrev(jax.grad(f, i), j),
            )
        ]

    got, want = (jax.jit(every, static_argnums=0)(f) for f in (case.bound, case.twin))
    close(got, want, 1e-8)


@pytest.mark.parametrize("case", [c for c in TWICE if c.name in EVERY_MODE], ids=str)
def test_hessian_vector_products(case: Case):
    """Forward over reverse, reverse over forward and reverse over reverse agree."""
    args = case.of(3)
    f = nonlinear(case.bound)
    v = tuple(tangents_of(args[i], i) for i in case.argnums)

    def along(*chosen):
        full = list(args)
        for i, x in zip(case.argnums, chosen, strict=True):
            full[i] = x
        return f(*full)

    def dot(a, b):
        return sum(
            jnp.sum(x * y)
            for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
            if jnp.result_type(y) != jax.dtypes.float0
        )

    gradient = jax.grad(along, range(len(v)), allow_int=True)

    @jax.jit
    def products(*chosen):
        forward_reverse = jax.jvp(gradient, chosen, v)[1]
        reverse_forward = jax.grad(
            lambda *c: jax.jvp(along, c, v)[1], range(len(v)), allow_int=True
        )(*chosen)
        reverse_reverse = jax.grad(lambda *c: dot(gradient(*c), v), range(len(v)), allow_int=True)(
            *chosen
        )
        return forward_reverse, reverse_forward, reverse_reverse

    first, second, third = products(*(args[i] for i in case.argnums))
    close(second, first, 1e-8)
    close(third, first, 1e-8)


# Mapped -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fwd-rev", "rev-rev"])
@pytest.mark.parametrize("case", named("decay", "matvec", "blend", "surface"), ids=str)
def test_hessian_in_a_map(case: Case, mode):
    """vmap of the Hessian, with arguments that are not mapped."""
    single, batch = case.of(4), case.of(5, batch=3)
    axes = (None,) + (0,) * (len(single) - 1)
    args = (single[0], *batch[1:])

    def mapped(function):
        hessian = MODES[mode](nonlinear(function), case.argnums)
        return jax.jit(jax.vmap(hessian, in_axes=axes))(*args)

    close(mapped(case.bound), mapped(case.twin), 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "size"), [("rev-rev", 1), ("fwd-rev", 2)])
@pytest.mark.parametrize(
    "case", named("decay", "matvec", "triple", "blend", "surface", "solve"), ids=str
)
def test_hessian_of_a_map(case: Case, mode, size):
    """The Hessian of a map: what is not mapped is broadcast, and its derivatives are summed."""
    single, batch = case.of(6), case.of(7, batch=size)
    axes = (0,) + (None,) * (len(single) - 1)
    args = (batch[0], *single[1:])

    def of_map(function):
        mapped = nonlinear(jax.vmap(function, in_axes=axes))
        return jax.jit(MODES[mode](mapped, case.argnums))(*args)

    close(of_map(case.bound), of_map(case.twin), 1e-8)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("lengths", [(1, 3), (3, 1), (1, 1), (0, 1)], ids=str)
def test_broadcast_loop_dimensions_twice(lengths, mode):
    """What was broadcast is summed in the Hessian, too."""
    r, t = jnp.linspace(0.5, 1.5, lengths[0]), jnp.linspace(-0.5, 1.0, lengths[1])
    polar = named("polar")[0]
    got = jax.jit(MODES[mode](nonlinear(polar.bound), (0, 1)))(r, t)
    close(got, jax.jit(jax.hessian(nonlinear(polar.twin), (0, 1)))(r, t), 1e-8)


# Third and higher ---------------------------------------------------------------------------------


@functools.cache
def twin_third(case: Case):
    args = case.of(8)
    pairs = list(zip(args, tangents_of(args), strict=True))

    def f(t):
        return nonlinear(case.twin)(*(a + t * d for a, d in pairs))

    return jax.jit(jax.jacfwd(jax.jacfwd(jax.grad(f))))(0.3)


@pytest.mark.slow
@pytest.mark.parametrize("modes", ["fff", "rff", "frf", "rrf"])
@pytest.mark.parametrize("case", named("matvec", "triple", "solve"), ids=str)
def test_third_derivative_along_a_line(case: Case, modes):
    args = case.of(8)
    directions = tangents_of(args)

    def f(t):
        return nonlinear(case.bound)(*(a + t * d for a, d in zip(args, directions, strict=True)))

    for mode in modes:
        f = jax.jacfwd(f) if mode == "f" else jax.grad(f)
    close(jax.jit(f)(0.3), twin_third(case), 1e-7)


def test_sixth_derivative_of_mutual_partials():
    sixth = jnp.sin
    f = foreign.sine
    for k in range(6):
        sixth = jax.grad(sixth)
        f = jax.grad(f) if k % 2 else jax.jacfwd(f)
    close(jax.jit(f)(0.7), sixth(0.7))


def test_multilinear_functions_have_no_more_derivatives_than_arguments():
    a, x = normal(np.random.default_rng(9), (2, 3)), jnp.arange(3.0)
    t = tangents_of((a, x))

    def along(s):
        return foreign.matvec(a + s * t[0], x + s * t[1])

    second = jax.jacfwd(jax.jacfwd(along))
    close(jax.jit(second)(0.5), 2 * t[0] @ t[1])
    assert not np.any(jax.jit(jax.jacfwd(second))(0.5))
    assert not np.any(jax.jit(jax.jacrev(jax.jacrev(jax.jacrev(along))))(0.5))


# Derivatives of derivatives, by hand --------------------------------------------------------------


@jaxbind.bind("(n)->(n)")
def fourth_power(x):
    return x**4


fourth_power.def_jvp(lambda p, t: 4 * p[0] ** 3 * t[0])


@fourth_power.jvp.def_jvp
def second(primals, tangents):
    ((x,), (t,)), ((dx,), nothing) = primals, tangents
    assert nothing is None
    return 12 * x**2 * t * dx


@second.def_jvp
def third(primals, tangents):
    (((x,), (t,)), ((dx,), none)), (((ex,), (et,)), nothing) = primals, tangents
    assert none is None and nothing is None
    return 12 * dx * (2 * x * ex * t + x**2 * et)


def test_a_tower_of_pushforwards():
    f, x = fourth_power, jnp.asarray([0.5, -1.5])
    ones = jnp.ones(2)

    def d(g):
        return lambda x: jax.jvp(g, (x,), (ones,))[1]

    close(jax.jit(d(f))(x), 4 * x**3)
    close(jax.jit(d(d(f)))(x), 12 * x**2)
    close(jax.jit(d(d(d(f))))(x), 24 * x)
    close(jax.jit(jax.vmap(d(d(d(f)))))(jnp.stack([x, 2 * x])), 24 * jnp.stack([x, 2 * x]))


def test_the_tower_called_directly():
    f, x, t = fourth_power, jnp.asarray([0.5, -1.5]), jnp.asarray([2.0, 3.0])
    close(f.jvp.jvp(((x,), (t,)), ((x,), None)), 12 * x**3 * t)
    assert f.jvp is f.jvp and f.jvp.jvp is f.jvp.jvp and f.jvp.jvp.jvp is third


def test_derivatives_of_a_pullback_called_directly():
    x, c, ct = jnp.arange(3.0), jnp.asarray(0.4), jnp.asarray([1.0, -1.0, 2.0])
    want = jax.jvp(
        lambda x: jax.vjp(lambda x, c: x**2 * jnp.sin(c), x, c)[1](ct), (x,), (jnp.ones(3),)
    )[1]
    got = foreign.surface.vjp.jvp(((x, c), ct), ((jnp.ones(3), jnp.zeros(())), None))
    close(tuple(got), want)


def test_gradient_of_a_derivative_called_directly():
    """A derivative is a binding: differentiable in its primals and in its tangents."""
    x, c, t, s = jnp.arange(3.0), jnp.asarray(0.4), jnp.ones(3), jnp.asarray(2.0)

    def twin(x, c, t, s):
        return jax.jvp(lambda x, c: x**2 * jnp.sin(c), (x, c), (t, s))[1]

    def bound(x, c, t, s):
        return foreign.surface.jvp((x, c), (t, s))

    def gradient(f):
        return jax.jit(jax.grad(lambda *a: jnp.sum(jnp.sin(f(*a))), (0, 1, 2, 3)))(x, c, t, s)

    close(gradient(bound), gradient(twin))


def test_gradients_of_derivatives_of_linear_and_partly_linear_functions():
    """Called directly, `f.jvp` and `f.vjp` hold what follows from linearity, to any order."""
    a, x = normal(np.random.default_rng(11), (2, 3)), jnp.arange(3.0)
    c = jnp.asarray(0.4)
    f, g = foreign.matvec, foreign.blend

    def pushed(f):
        return lambda primals, tangents: jax.jvp(f, primals, tangents)[1]

    def pulled(f):
        return lambda primals, ct: tuple(jax.vjp(f, *primals)[1](ct))

    def gradient(function, *args):
        def loss(*args):
            return nonlinear(function)(*args)

        return jax.jit(jax.grad(loss, range(len(args))))(*args)

    for bound, twin, args in (
        (f.jvp, pushed(jnp.matmul), ((a, x), tangents_of((a, x)))),
        (f.vjp, pulled(jnp.matmul), ((a, x), jnp.ones(2))),
        (g.jvp, pushed(foreign.blend_twin), ((x, 2 * x, c), tangents_of((x, x, c)))),
        (g.vjp, pulled(foreign.blend_twin), ((x, 2 * x, c), jnp.ones(3))),
    ):
        close(gradient(bound, *args), gradient(twin, *args))


def test_derivatives_of_derivatives_over_pytrees():
    """Also where only one leaf is differentiated: the other's tangents are zeros or None."""
    f = jaxbind.bind(lambda p: p["a"] * p["b"] ** 2, out=lambda p: p["a"])

    def first(p, ct):
        return {"a": p["b"] ** 2 * ct, "b": 2 * p["a"] * p["b"] * ct}

    def second(p, t, ct):
        a, b = p["a"], p["b"]
        ta, tb = (0 if t[k] is None else t[k] for k in "ab")
        return {"a": 2 * b * tb * ct, "b": 2 * b * ta * ct + 2 * a * tb * ct}

    @f.def_jvp
    def _(primals, tangents):
        gradient = first(primals[0], 1)
        return sum(gradient[k] * tangents[0][k] for k in "ab")

    @f.def_vjp
    def _(primals, ct):
        return (first(primals[0], ct),)

    @f.vjp.def_jvp
    def _(primals, tangents):
        ((p,), ct), ((t,), nothing) = primals, tangents
        assert nothing is None
        return (second(p, t, ct),)

    @f.vjp.def_vjp
    def _(primals, cotangents):
        ((p,), ct), (u,) = primals, cotangents
        return (second(p, u, ct),), None

    def every(function):
        found = []
        x = jnp.asarray([0.5, -1.0])
        for inputs in (
            lambda y: {"a": y, "b": y + 1},
            lambda y: {"a": y, "b": x},
            lambda y: {"a": x, "b": y},
        ):
            loss = nonlinear(lambda y, inputs=inputs: function(inputs(y)))
            found += [jax.hessian(loss)(x), jax.jacrev(jax.grad(loss))(x)]
        return found

    got, want = (jax.jit(every, static_argnums=0)(g) for g in (f, lambda p: p["a"] * p["b"] ** 2))
    close(got, want, 1e-8)


def test_partials_over_numpy_have_partials_of_their_own():
    assert foreign.decay_k.jvp is foreign.decay_k.jvp
    x = jnp.linspace(0.1, 1, 3)
    got = jax.vmap(jax.grad(jax.grad(lambda k, x: foreign.decay(k, x, rate=2.0), 0), 1))(x, x)
    close(got, jax.vmap(jax.grad(jax.grad(lambda k, x: jnp.exp(-2 * k * x), 0), 1))(x, x))


def test_a_jacobian_over_numpy_has_derivatives_of_its_own():
    f = jaxbind.bind(lambda x: np.sin(x), "(n)->(n)")
    first = f.def_jacobian(lambda x: np.diag(np.cos(x)))
    n = 3
    first.def_jacobian(lambda x: -np.sin(x)[:, None, None] * _diagonal(n), traced=False)
    x = jnp.linspace(0.1, 1, n)
    hessian = jax.jit(jax.hessian(lambda x: jnp.sum(f(x) ** 2)))(x)
    close(hessian, jax.hessian(lambda x: jnp.sum(jnp.sin(x) ** 2))(x))

    # a rule of another kind for the same binding
    first.def_jvp(lambda p, t: np.diag(-np.sin(p[0]) * t[0]))
    first.def_vjp(lambda p, ct: -np.sin(p[0]) * np.diagonal(ct))
    close(jax.jit(jax.hessian(lambda x: jnp.sum(f(x) ** 2)))(x), hessian)


def _diagonal(n):
    third_order = np.zeros((n, n, n))
    third_order[range(n), range(n), range(n)] = 1
    return third_order


def test_traced_jvp_beside_a_numpy_vjp():
    """Forward derivatives of any order; reverse ones through the declared pullback."""
    f = jaxbind.bind(lambda x, k: x**k, "(n),()->(n)")
    calls = []

    @f.def_jvp(traced=True)
    def _(primals, tangents):
        (x, k), (dx, dk) = primals, tangents
        assert dk is None
        return k * f(x, k - 1) * dx

    @f.def_vjp
    def pullback(primals, ct):
        calls.append(1)
        x, k = primals
        return k * x ** (k - 1) * ct, None

    x = jnp.asarray([1.0, 2.0])
    close(jax.grad(lambda x: f(x, 3).sum())(x), 3 * x**2)
    assert len(calls) == 1
    forward = jax.jacfwd(jax.jacfwd(lambda x: f(x, 3).sum()))
    close(jax.jit(forward)(x), jnp.diag(6 * x))
    reverse = jax.jacrev(jax.jacfwd(lambda x: f(x, 3).sum()))
    close(jax.jit(reverse)(x), jnp.diag(6 * x))
    pullback.def_jvp(lambda p, t: (6 * p[0][0] * t[0][0] * p[1], None))
    close(jax.hessian(lambda x: f(x, 3).sum())(x), jnp.diag(6 * x))


@pytest.mark.parametrize("how", ["finite-difference", "complex-step"])
def test_made_derivatives_of_made_derivatives(how):
    """What is made from the function is a traced rule, and so differentiated further."""
    f = jaxbind.bind(lambda x: np.exp(2 * x), "(n)->(n)")
    f.def_jvp(how)
    x = jnp.asarray([0.1, 0.3])
    along = jax.jacfwd(lambda t: f(x * t))
    if how == "complex-step":
        with pytest.raises(TypeError, match="real operands"):
            jax.jacfwd(along)(1.0)
    else:
        close(jax.jacfwd(along)(1.0), 4 * x**2 * jnp.exp(2 * x), 1e-4)


def _unused_results(traced):
    """``x**3 y`` with a second pullback that uses both of its cotangents, as it may."""
    f = jaxbind.bind(lambda x, y: x**3 * y, "(),()->()", name="f")
    f.def_vjp(lambda p, c: (3 * p[0] ** 2 * p[1] * c, p[0] ** 3 * c))

    @f.vjp.def_vjp(traced=traced)
    def _(primals, cotangents):
        (x, y), c = primals
        u, v = cotangents
        assert u.shape == v.shape == ()
        return (
            (6 * x * y * c * u + 3 * x**2 * c * v, 3 * x**2 * c * u),
            3 * x**2 * y * u + x**3 * v,
        )

    return f


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize(("i", "j"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_cotangents_of_results_that_nobody_wanted_are_zeros(i, j, traced):
    """A pullback's pullback sees a cotangent of each result, whichever arguments vary."""
    f, args = _unused_results(traced), (2.0, 3.0)
    twin = jax.grad(jax.grad(lambda x, y: x**3 * y, i), j)
    got = jax.grad(jax.grad(f, i), j)
    assert got(*args) == twin(*args)
    xs = jnp.arange(1.0, 4.0)
    close(jax.jit(jax.vmap(got, (0, None)))(xs, 3.0), jax.vmap(twin, (0, None))(xs, 3.0))


def test_forward_over_reverse_over_reverse_in_one_of_two_arguments():
    """The derivative of such a pullback in its cotangents is the pushforward's, with zeros, too."""
    f = jaxbind.bind(lambda x, y: x**2 * y, "(),()->()", name="f")
    f.def_vjp(lambda p, c: (2 * p[0] * p[1] * c, p[0] ** 2 * c))
    second = f.vjp.def_vjp(
        lambda p, w: (
            (2 * p[0][1] * p[1] * w[0] + 2 * p[0][0] * p[1] * w[1], 2 * p[0][0] * p[1] * w[0]),
            2 * p[0][0] * p[0][1] * w[0] + p[0][0] ** 2 * w[1],
        )
    )
    f.def_jvp("from-vjp")
    f.vjp.def_jvp("from-vjp")
    second.def_jvp("finite-difference")
    third = jax.jacfwd(jax.grad(jax.grad(f, 0), 0), 1)
    assert abs(third(3.0, 5.0) - 2.0) < 1e-6
    assert jax.jacfwd(jax.grad(f, 0), 0)(3.0, 5.0) == 10.0


def of_parts(function, args):
    """A function of the real parts of all operands and the imaginary parts of complex ones."""
    count = len(args)

    def f(*parts):
        remaining = iter(parts[count:])
        joined = [
            re + 1j * next(remaining) if jnp.iscomplexobj(x) else re
            for re, x in zip(parts[:count], args, strict=True)
        ]
        return nonlinear(function)(*joined)

    parts = tuple(x.real for x in args) + tuple(x.imag for x in args if jnp.iscomplexobj(x))
    return f, parts, tuple(range(len(parts)))


@functools.cache
def complex_twin_hessian(case: Case):
    f, parts, argnums = of_parts(case.twin, case.of(10))
    return jax.jit(jax.hessian(f, argnums))(*parts)


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in COMPLEX if c.order >= ANY], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_complex_hessian(case: Case, mode):
    f, parts, argnums = of_parts(case.bound, case.of(10))
    got = jax.jit(MODES[mode](f, argnums))(*parts)
    close(got, complex_twin_hessian(case), 1e-8)
