"""How rules are found, replaced and called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbind
from jaxbind import get_linear_call, load_kwargs

pytestmark = pytest.mark.usefixtures("x64")


def square():
    return jaxbind.bind(lambda x: x**2, "(n)->(n)", name="square")


def total(f):
    return lambda x: jnp.sum(f(x))


x = np.arange(3.0)


def test_a_rule_added_after_use_is_found():
    f = square()
    f.def_vjp(lambda p, ct: 2 * p[0] * ct)
    compiled = jax.jit(f)
    np.testing.assert_array_equal(jax.grad(total(compiled))(x), 2 * x)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(compiled, (x,), (x,))
    f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    np.testing.assert_array_equal(jax.jvp(compiled, (x,), (x,))[1], 2 * x * x)


def test_a_rule_replaced_after_use_is_used():
    f = square()
    f.def_vjp(lambda p, ct: 0 * ct)
    compiled = jax.jit(jax.grad(total(jax.jit(f))))
    np.testing.assert_array_equal(compiled(x), 0 * x)
    early = jax.jit(jax.grad(total(f))).lower(x).compile()
    f.def_vjp(lambda p, ct: 2 * p[0] * ct)
    np.testing.assert_array_equal(compiled(x), 2 * x)
    np.testing.assert_array_equal(jax.grad(total(f))(x), 2 * x)
    np.testing.assert_array_equal(early(x), 0 * x)  # what is compiled stays as it was


def test_second_derivatives_may_be_declared_first():
    f = square()
    f.def_vjp(lambda p, ct: 2 * p[0] * ct)
    f.jvp.def_jvp(lambda p, t: 2 * t[0][0] * p[1][0])
    f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    np.testing.assert_array_equal(jax.jacfwd(jax.jacfwd(f))(x)[1, 1, 1], 2.0)


def test_what_declarations_return():
    f = square()
    pushforward = f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    assert isinstance(pushforward, jaxbind.Binding) and pushforward is f.jvp is f.jvp
    np.testing.assert_array_equal(f.jvp((x,), (x,)), 2 * x * x)

    def rule(p, ct):
        return (2 * p[0] * ct,)

    assert f.def_vjp(rule, traced=True) is rule and f.vjp is rule
    assert f.function(3.0) == 9.0
    assert repr(f) == "<jaxbind.Binding square>"
    linear = jaxbind.bind(lambda v: 2 * v, "(n)->(n)", linear=True)
    transposed = linear.def_transpose(lambda ct: 2 * ct)
    assert linear.transpose is transposed
    np.testing.assert_array_equal(linear.transpose(x), 2 * x)
    np.testing.assert_array_equal(linear.jvp((x,), (3 * x,)), 6 * x)
    np.testing.assert_array_equal(linear.vjp((x,), 3 * x)[0], 6 * x)


@pytest.mark.parametrize("name", ["finite-difference", "complex-step"])
def test_numerical_derivatives(name):
    f = jaxbind.bind(lambda x, a: np.sin(a * x), "(n),()->(n)", name="f")
    twin = lambda x, a: jnp.sin(a * x)
    assert callable(f.def_jvp(name))
    with pytest.raises(TypeError, match=r"f: reverse-mode .* needs f.def_vjp\(rule\)"):
        jax.grad(lambda x: f(x, 2.0).sum())(x)
    f.def_vjp("from-jvp")
    for mode in (jax.jacfwd, jax.jacrev):
        got = mode(f, (0, 1))(x, 2.0)
        jax.tree.map(
            lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-8, atol=1e-8),
            got,
            mode(twin, (0, 1))(x, 2.0),
        )
    batch = jax.vmap(jax.grad(lambda a, x: f(x, a).sum()), (0, None))(np.arange(4.0), x)
    want = jax.vmap(jax.grad(lambda a, x: twin(x, a).sum()), (0, None))(np.arange(4.0), x)
    np.testing.assert_allclose(batch, want, rtol=1e-8, atol=1e-8)


def test_forward_from_reverse():
    f = square()
    f.def_vjp(lambda p, ct: 2 * p[0] * ct)
    f.def_jvp("from-vjp")
    np.testing.assert_array_equal(jax.jacfwd(f)(x), np.diag(2 * x))
    with pytest.raises(TypeError, match="def_jvp\\('guess'\\) is not known"):
        f.def_jvp("guess")


def test_rules_are_called_only_where_tangents_are():
    calls = []

    @jaxbind.bind("(),()->()")
    def f(a, b):
        return a * b

    @f.def_vjp
    def _(primals, ct, *, wrt):
        calls.append((tuple(wrt), "a" in wrt, 1 in wrt))
        a, b = primals
        return b * ct if wrt[0] else None, a * ct if wrt[1] else None

    jax.grad(f, 0)(2.0, 3.0), jax.grad(f, 1)(2.0, 3.0), jax.grad(f, (0, 1))(2.0, 3.0)
    assert calls == [
        ((True, False), True, False),
        ((False, True), False, True),
        ((True, True), True, True),
    ]
    calls.clear()
    jax.grad(lambda a: f(jax.lax.stop_gradient(a), 3.0) + a)(2.0)
    jax.grad(lambda a: f(2.0, 3.0) * a)(2.0)
    assert calls == []


def test_jacobians_over_numpy_have_derivatives_of_their_own():
    f = jaxbind.bind(lambda v: v**3, "(n)->(n)", name="f")
    jacobian = f.def_jacobian(lambda v: np.diag(3 * v**2))
    jacobian.def_jvp(lambda p, t: np.diag(6 * p[0] * t[0]))
    jacobian.def_vjp(lambda p, ct: 6 * p[0] * np.diagonal(ct))
    v = x + 1
    for mode in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(mode(mode(f))(v), jax.jacfwd(jax.jacfwd(lambda v: v**3))(v))


@pytest.mark.parametrize("batched", [(True, True), (True, False), (False, True)])
def test_vmap_rules(batched):
    seen = []
    f = jaxbind.bind(lambda a, b: a + b, "(n),(n)->(n)", name="f")

    @f.def_vmap
    def _(axis_size, in_batched, a, b):
        seen.append((axis_size, tuple(in_batched)))
        return 10 * (a + b), True

    a = np.ones((4, 3)) if batched[0] else np.ones(3)
    b = np.ones((4, 3)) if batched[1] else np.ones(3)
    axes = tuple(0 if flag else None for flag in batched)
    np.testing.assert_array_equal(jax.vmap(f, axes)(a, b), np.full((4, 3), 20.0))
    np.testing.assert_array_equal(f(a, b), np.full((4, 3), 20.0))  # broadcasting, too
    assert seen == [(4, batched)] * 2
    np.testing.assert_array_equal(f(np.ones(3), np.ones(3)), np.full(3, 2.0))


def test_an_abstract_function_gets_the_keywords_of_the_call_and_no_others():
    def scale(out, args, kwargs_dump):
        out[0][()] = load_kwargs(kwargs_dump)["factor"] * args[0]

    def shape(v, *, factor):
        return ((v.shape, v.dtype),)

    f = get_linear_call(scale, scale, shape, shape)
    np.testing.assert_array_equal(f(x, factor=2.0)[0], 2 * x)
    np.testing.assert_array_equal(jax.grad(lambda v: f(v, factor=2.0)[0].sum())(x), [2, 2, 2])


def test_a_traced_static_parameter_says_so():
    f = jaxbind.bind(lambda v, *, k: v * k, "(n)->(n)", name="f")
    with pytest.raises(TypeError, match=r"jax.jit\(..., static_argnames='k'\)"):
        jax.jit(f)(x, k=2)
    np.testing.assert_array_equal(jax.jit(f, static_argnames="k")(x, k=2.0), 2 * x)


def close(got, want):
    jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-7, atol=1e-9), got, want)


def complex_functions():
    energy = jaxbind.bind(lambda z: np.sum(np.abs(z) ** 2), "(n)->()", dtype=float, name="energy")
    conj = jaxbind.bind(lambda z: z.conj(), "(n)->(n)", name="conj")
    wave = jaxbind.bind(lambda v: np.exp(1j * v.real) + v, "(n)->(n)", dtype=complex, name="wave")
    return [
        (
            energy,
            lambda z: jnp.sum(jnp.abs(z) ** 2),
            lambda p, t: np.sum(2 * (p[0].conj() * t[0]).real),
            lambda p, ct: 2 * p[0].conj() * ct,
        ),
        (conj, jnp.conj, lambda p, t: t[0].conj(), lambda p, ct: ct.conj()),
        (
            wave,
            lambda v: jnp.exp(1j * v.real) + v,
            lambda p, t: 1j * np.exp(1j * p[0].real) * t[0].real + t[0],
            lambda p, ct: (1j * np.exp(1j * p[0].real) * ct).real + ct,
        ),
    ]


@pytest.mark.parametrize("which", range(3))
def test_numerical_derivatives_of_complex_functions_that_are_not_holomorphic(which):
    rng = np.random.default_rng(0)
    z, dz = rng.standard_normal((2, 3)) + 1j * rng.standard_normal((2, 3))
    f, twin, jvp, vjp = complex_functions()[which]
    ct = rng.standard_normal(3) + 1j * rng.standard_normal(3) if twin(z).ndim else 1.7
    for forward, backward in [
        (jvp, "from-jvp"),
        ("from-vjp", vjp),
        ("finite-difference", "from-jvp"),
    ]:
        f = complex_functions()[which][0]
        f.def_jvp(forward)
        f.def_vjp(backward)
        close(jax.jvp(f, (z,), (dz,)), jax.jvp(twin, (z,), (dz,)))
        close(jax.vjp(f, z)[1](ct), jax.vjp(twin, z)[1](ct))


def test_numerical_derivatives_on_top_of_traced_rules():
    f = jaxbind.bind(lambda v, c, *, k: v**2 * c * k, "(n),(n)->(n)", nondiff="c", name="f")

    @f.def_vjp(traced=True)
    def _(p, ct, *, wrt):
        return (2 * p[0] * ct * p[1] * 3, None) if wrt[0] else (None, None)

    f.def_jvp("from-vjp")
    v = x + 1
    np.testing.assert_allclose(jax.jvp(lambda v: f(v, x, k=3), (v,), (v,))[1], 6 * v * v * x)

    @f.def_jvp(traced=True)
    def _(p, t):
        assert t[1] is None
        return 2 * p[0] * t[0] * p[1] * 3

    f.def_vjp("from-jvp")
    np.testing.assert_allclose(jax.grad(lambda v: f(v, x, k=3).sum())(v), 6 * v * x)
    with pytest.raises(TypeError, match="f: 'from-vjp' cannot be, since its def_vjp is 'from-jvp'"):
        f.def_jvp("from-vjp")


def test_numerical_derivatives_beside_integer_results():
    f = jaxbind.bind(lambda v: (v**2, v > 1), "(n)->(n),(n)", dtype=(float, bool), name="f")
    f.def_jvp("finite-difference")
    np.testing.assert_allclose(jax.jvp(f, (x,), (x,))[1][0], 2 * x * x, atol=1e-8)


def test_partials_of_pytrees_are_refused():
    f = jaxbind.bind(lambda p: p["a"] * p["b"], out=lambda p: p["a"], name="f")
    f.def_partials(lambda p: p["b"])
    with pytest.raises(TypeError, match="f: def_partials takes one rule per argument, which must"):
        jax.grad(lambda p: f(p).sum())({"a": x, "b": x})


def test_derivatives_called_directly_where_linearity_gives_a_part():
    import twins

    a, v = np.arange(12.0).reshape(3, 4), np.arange(4.0)
    np.testing.assert_allclose(twins.matvec.jvp((a, v), (a, 2 * v)), 3 * a @ v)
    close(twins.matvec.vjp((a, v), np.ones(3)), (np.outer(np.ones(3), v), a.sum(0)))
    tilt = lambda x, a: x * jnp.exp(a)
    close(twins.tilt.jvp((v, 0.5), (v, 2.0)), jax.jvp(tilt, (v, 0.5), (v, 2.0))[1])
    close(twins.tilt.vjp((v, 0.5), v), jax.vjp(tilt, v, 0.5)[1](v))
    close(twins.sine.vjp((0.5,), 2.0), (2 * np.cos(0.5),))


def test_programs_traced_with_a_replaced_rule_keep_it():
    f = square()
    f.def_jvp(lambda p, t: 2 * p[0] * t[0])
    _, push = jax.linearize(f, x)
    lowered = jax.jit(lambda v: jax.jvp(f, (v,), (v,))[1]).lower(x)
    f.def_jvp(lambda p, t: 20 * p[0] * t[0])
    np.testing.assert_array_equal(push(x), 2 * x * x)
    np.testing.assert_array_equal(lowered.compile()(x), 2 * x * x)
    np.testing.assert_array_equal(jax.jvp(f, (x,), (x,))[1], 20 * x * x)
