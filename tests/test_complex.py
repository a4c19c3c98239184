"""Complex operands and results: JAX's transpose has no conjugation, its pairing is Re(sum a b)."""

import itertools

import foreign
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparing import close, inner, nonlinear, normal, split, tangents_of
from reference import COMPLEX, Case, named

import jaxbind

pytestmark = pytest.mark.usefixtures("x64")

cases = pytest.mark.parametrize("case", COMPLEX, ids=str)

Z = np.asarray([1 + 2j, 3 - 1j, -0.5 + 0.25j])
W = np.asarray([0.5 - 1j, 2 + 1j, 1j])


@cases
def test_pairing(case: Case):
    """``Re(sum ct dy) = Re(sum ct_x dx)`` for every kind of complex function."""
    args, around = split(case.of(), case.argnums)
    tangents = tangents_of(args)
    value, tangent = jax.jvp(around(case.bound), args, tangents)
    cotangents = tangents_of(value, 2)
    pulled = jax.vjp(around(case.bound), *args)[1](cotangents)
    np.testing.assert_allclose(inner(cotangents, tangent), inner(pulled, tangents), rtol=1e-9)


@cases
def test_real_differences(case: Case):
    """Independent of JAX: differences of what NumPy computes, along real and imaginary parts."""
    args = case.of(1)
    for factor in (1 + 0j, 1j):
        tangents = tuple(
            normal(np.random.default_rng(3), x.shape) * (factor if jnp.iscomplexobj(x) else 1)
            for x in args
        )
        chosen, around = split(args, case.argnums)
        moving = tuple(tangents[i] for i in case.argnums)
        got = jax.jvp(around(case.bound), chosen, moving)[1]
        h = 1e-5
        plus, minus = (
            case.bound(*(np.asarray(x + s * h * t) for x, t in zip(args, tangents, strict=True)))
            for s in (1, -1)
        )
        close(got, jax.tree.map(lambda p, m: (p - m) / (2 * h), plus, minus), 1e-7)


@pytest.mark.parametrize("case", named("fourier", "analytic"), ids=str)
def test_holomorphic_gradient(case: Case):
    args = case.of(2)

    def first(function):
        return jax.grad(lambda *a: jnp.sum(function(*a) ** 2), case.argnums, holomorphic=True)(
            *args
        )

    close(first(case.bound), first(case.twin))


@cases
def test_gradient_of_a_real_loss(case: Case):
    args = case.of(3)

    def gradient(function):
        loss = nonlinear(function)
        return jax.jit(jax.grad(loss, case.argnums))(*args)

    close(gradient(case.bound), gradient(case.twin))


# Real beside complex ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "x"), list(itertools.permutations([float, complex])) + [(complex, complex)], ids=str
)
def test_a_real_and_a_complex_argument_of_a_multilinear_function(a, x):
    rng = np.random.default_rng(5)
    args = normal(rng, (2, 3), a), normal(rng, (3,), x)

    def every(function):
        value, back = jax.vjp(function, *args)
        return value, back(tangents_of(value)), jax.jvp(function, args, tangents_of(args))[1]

    close(every(foreign.matvec), every(lambda a, x: a @ x))


@pytest.mark.parametrize("kinds", [(float, complex), (complex, float)], ids=str)
def test_a_real_and_a_complex_operand_of_partials(kinds):
    """Partials are holomorphic factors; for a real operand JAX takes the real part."""
    rng = np.random.default_rng(6)
    args = tuple(normal(rng, (3,), kind) for kind in kinds)

    def every(function):
        value, back = jax.vjp(function, *args)
        return value, back(tangents_of(value)), jax.jvp(function, args, tangents_of(args))[1]

    close(every(foreign.analytic), every(lambda z, w: z**2 * jnp.exp(w)))


def test_a_complex_jacobian_beside_a_real_operand():
    f = jaxbind.bind(lambda x, z: np.exp(1j * x) * z, "(n),(n)->(n)", dtype=complex)
    f.def_jacobian(lambda x, z: (np.diag(1j * np.exp(1j * x) * z), np.diag(np.exp(1j * x) + 0 * z)))
    args = jnp.arange(3.0), Z

    def every(function):
        value, back = jax.vjp(function, *args)
        return value, back(tangents_of(value)), jax.jvp(function, args, tangents_of(args))[1]

    close(every(f), every(lambda x, z: jnp.exp(1j * x) * z))


def test_a_traced_rule_for_a_real_and_a_complex_operand():
    f = jaxbind.bind(lambda x, z: x * z, "(n),(n)->(n)")
    f.def_jvp(lambda p, t: t[0] * p[1] + p[0] * t[1], traced=True)
    args = jnp.arange(3.0), Z

    def every(function):
        value, back = jax.vjp(function, *args)
        return value, back(W), jax.jvp(function, args, tangents_of(args))[1]

    close(every(f), every(lambda x, z: x * z))


def test_a_complex_rule_for_a_real_operand_says_so():
    """Partial derivatives of a real function of complex operands do not exist."""
    f = jaxbind.bind(lambda z: np.abs(z), "()->()", dtype=float)
    f.def_partials(lambda z: z.conj() / jnp.abs(z))
    with pytest.raises(TypeError, match="complex"):
        jax.jvp(f, (Z,), (W,))


def test_a_real_number_beside_complex_operands():
    """A Python number, which has no precision of its own, as a differentiable operand."""
    got = jax.grad(lambda c, z: jnp.sum(foreign.analytic(z, c).real), (0, 1))(0.5, Z)
    close(got, jax.grad(lambda c, z: jnp.sum((z**2 * jnp.exp(c)).real), (0, 1))(0.5, Z))


# Derivatives made from others ---------------------------------------------------------------------

FUNCTIONS = {
    # name: (NumPy, twin, pushforward, pullback, real operand?, real result?)
    "conjugate": (
        lambda z: z.conj(),
        jnp.conj,
        lambda p, t: t[0].conj(),
        lambda p, ct: ct.conj(),
        complex,
        complex,
    ),
    "energies": (
        lambda z: np.abs(z) ** 2,
        lambda z: jnp.abs(z) ** 2,
        lambda p, t: 2 * (p[0].conj() * t[0]).real,
        lambda p, ct: 2 * p[0].conj() * ct,
        complex,
        float,
    ),
    "turn": (
        lambda x: np.exp(1j * x),
        lambda x: jnp.exp(1j * x),
        lambda p, t: 1j * np.exp(1j * p[0]) * t[0],
        lambda p, ct: (1j * np.exp(1j * p[0]) * ct).real,
        float,
        complex,
    ),
    "square": (
        lambda z: z**2,
        lambda z: z**2,
        lambda p, t: 2 * p[0] * t[0],
        lambda p, ct: 2 * p[0] * ct,
        complex,
        complex,
    ),
    "stretch": (
        foreign.stretch.function,
        lambda z: z * jnp.abs(z),
        foreign.stretch.jvp.function,
        foreign.stretch.vjp.function,
        complex,
        complex,
    ),
}


@pytest.mark.parametrize("how", ["from-jvp", "from-vjp", "finite-difference", "both"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_made_derivatives(name, how):
    """Holomorphic or not, between real and complex numbers in either direction."""
    function, twin, push, pull, given, made = FUNCTIONS[name]
    f = jaxbind.bind(lambda z: function(z), "(n)->(n)", dtype=made)
    f.def_jvp(how if how in ("from-vjp", "finite-difference") else push)
    if how == "both":
        f.def_vjp(pull)
    else:
        f.def_vjp(pull if how == "from-vjp" else "from-jvp")
    x = Z if given is complex else Z.real
    tolerance = 1e-7 if how == "finite-difference" else 1e-9

    def every(function):
        value, back = jax.vjp(function, x)
        tangents = jax.jvp(function, (x,), (tangents_of(x),))
        return tangents, back(tangents_of(value))

    close(jax.jit(every, static_argnums=0)(f), jax.jit(every, static_argnums=0)(twin), tolerance)


def test_complex_step_needs_real_operands():
    f = jaxbind.bind(lambda z: z**2, "(n)->(n)")
    f.def_jvp("complex-step")
    with pytest.raises(TypeError, match="real operands"):
        jax.jvp(f, (Z,), (W,))


# dtypes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", named("fourier", "real-fourier", "analytic", "energy", "stretch", "conjugate"), ids=str
)
def test_single_precision(case: Case):
    with jax.enable_x64(False):
        args = case.of(7)
        chosen, around = split(args, case.argnums)

        def every(function):
            value, back = jax.vjp(around(function), *chosen)
            return (
                value,
                back(tangents_of(value)),
                jax.jvp(around(function), chosen, tangents_of(chosen)),
            )

        got, want = (jax.jit(every, static_argnums=0)(f) for f in (case.bound, case.twin))
        close(got, want, 3e-5)


def test_computing_in_double_precision():
    f = jaxbind.bind(
        lambda z: z**2, "(n)->(n)", compute_dtype=np.float64, name="double_complex_square"
    )

    @f.def_jvp
    def _(primals, tangents):
        assert primals[0].dtype == tangents[0].dtype == np.complex128
        return 2 * primals[0] * tangents[0]

    @f.def_vjp
    def _(primals, cotangent):
        assert primals[0].dtype == cotangent.dtype == np.complex128
        return 2 * primals[0] * cotangent

    z = Z.astype(np.complex64)
    value, back = jax.vjp(f, z)
    close((value, back(jnp.asarray(z))), (z**2, (2 * z * z,)), 1e-6)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("case", named("analytic", "phase", "stretch", "real-fourier"), ids=str)
def test_pullback_of_a_map(case: Case, size):
    single, batch = case.of(8), case.of(9, batch=size)
    choices = [
        axes
        for axes in itertools.product([None, 0], repeat=len(single))
        if any(a == 0 for a in axes)
    ]

    def every(function):
        found = []
        for axes in choices:
            args = tuple(s if a is None else b for s, b, a in zip(single, batch, axes, strict=True))
            value, back = jax.vjp(jax.vmap(function, in_axes=axes), *args)
            found.append(back(tangents_of(value)))
        return found

    got, want = (jax.jit(every, static_argnums=0)(f) for f in (case.bound, case.twin))
    close(got, want)


def test_the_usual_mistake_is_visible():
    """The adjoint given for the transpose fails the pairing (the ancestor's demonstration)."""
    wrong = jaxbind.bind(lambda x: np.fft.fft(x), "(n)->(n)", linear=True)
    wrong.def_transpose(lambda ct: len(ct) * np.fft.ifft(ct))
    pulled = jax.vjp(wrong, Z)[1](W)
    assert abs(inner(W, wrong(Z)) - inner(pulled, (Z,))) > 0.1
