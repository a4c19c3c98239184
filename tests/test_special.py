"""`jaxbind.contrib.special`: SciPy's bits, and derivatives by the laws where they are listed."""

import re
from pathlib import Path
from types import SimpleNamespace

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy
import scipy.special
from amount import every
from hypothesis import given, settings
from hypothesis.extra import numpy as hnp

import jaxbind
from jaxbind import testing
from jaxbind.contrib import special
from jaxbind.contrib.special import _table
from jaxbind.contrib.special.__main__ import table

ENTRIES = special.FUNCTIONS.values()


def operand(place, shape):
    if place.integer:
        return hnp.arrays(int, shape, elements=st.integers(int(place.low), int(place.high)))
    numbers = st.floats(place.low, place.high).filter(lambda x: x == 0 or abs(x) > 1e-6)
    return hnp.arrays(float, shape, elements=numbers)


def operands(entry, shape=()):
    return st.tuples(*[operand(place, shape) for place in entry.domain])


def off_the_real_line(entry):
    """The differentiable arguments with an imaginary part."""
    imaginary = operand(special.Range(0.1, 1.5), ())
    return st.tuples(
        *[
            st.builds(lambda x, y: x + 1j * y, operand(place, ()), imaginary)
            if differentiable
            else operand(place, ())
            for place, differentiable in zip(entry.domain, entry.differentiable)
        ]
    )


def by_name(entries, often=1):
    return pytest.mark.parametrize("entry", every(often, entries), ids=lambda e: e.name)


def obeys(entry, inputs, *laws):
    testing.check(entry.binding, laws=laws, inputs=inputs, max_examples=10, seed=0, rtol=entry.rtol)


HIGHER = (
    "jv kve hankel1 i0 airy gamma rgamma betaln erf wofz hyp2f1 ellipk ellipe ellipkinc elliprf"
)
HIGHER += " eval_legendre gammainc ndtri boxcox spence expn sph_harm_y lambertw"


@pytest.mark.slow
@by_name([special.FUNCTIONS[name] for name in HIGHER.split()])
def test_derivatives_of_derivatives(entry):
    testing.check(entry.binding, laws=["higher"], inputs=operands(entry), max_examples=5, seed=0)


@by_name(ENTRIES, often=3)
def test_values_are_scipys(entry, x64):
    @settings(max_examples=5)
    @given(operands(entry, (3,)))
    def check(args):
        got, want = entry.binding(*args), getattr(scipy.special, entry.name)(*args)
        jax.tree.map(np.testing.assert_array_equal, got, want)

    check()


@by_name([e for e in ENTRIES if any(e.differentiable)], often=6)
def test_derivatives(entry):
    """Forward; reverse mode is made of the same partial derivatives."""
    obeys(entry, operands(entry), "jvp")


@pytest.mark.slow
@by_name([e for e in ENTRIES if any(e.differentiable)])
def test_reverse_derivatives(entry):
    obeys(entry, operands(entry), "adjoint")


@pytest.mark.slow
@by_name([e for e in ENTRIES if e.analytic])
def test_complex_derivatives(entry):
    obeys(entry, off_the_real_line(entry), "jvp", "adjoint")


@pytest.mark.slow
@pytest.mark.parametrize("m", [0.0, 1e-9, -1e-4, 0.4999, 0.5001])
def test_elliptic_integrals_where_closed_forms_cancel(m, x64):
    """All orders against the power series in m (DLMF 19.5.1 and 19.5.2)."""
    n = np.arange(150)
    half = scipy.special.poch(0.5, n) / scipy.special.factorial(n)
    for f, terms in ((special.ellipk, half**2), (special.ellipe, -(half**2) / (2 * n - 1))):
        series = np.polynomial.Polynomial(np.pi / 2 * terms)
        for order in range(4):
            np.testing.assert_allclose(f(m), series.deriv(order)(m), rtol=1e-12)
            f = jax.grad(f)


GUARDED = [e for e in ENTRIES if re.match("(pro|obl)_|mathieu_.*m", e.name)]


@by_name(GUARDED)
def test_parameters_beyond_scipys_memory_give_nan(entry, x64):
    """SciPy crashes at these."""
    place = len(entry.domain) - 1 - any(entry.differentiable)
    orders = [3.0] if entry.name.startswith("mathieu") else [3.0, 5.0]
    x = 1.5 if entry.name == "pro_rad1" else 0.5
    at = [np.array(x) for x in [*orders, 1.0, x]][: len(entry.domain)]
    for beyond in (np.nan, np.inf, -np.inf, 1e10, 1e300):
        at[place] = np.array([1.0, beyond])
        for result in jax.tree.leaves(entry.binding(*at)):
            assert np.isfinite(result[0]) and np.isnan(result[1])


@settings(max_examples=10)
@given(st.data())
def test_large_parameters_are_scipys(data):
    """Up to where SciPy has memory for them."""
    entry = data.draw(st.sampled_from(GUARDED))
    args = list(data.draw(operands(entry)))
    place = len(args) - 1 - any(entry.differentiable)
    args[place] = np.array(data.draw(st.floats(0.1, 80)))
    with jax.enable_x64(True):
        got = entry.binding(*args)
    jax.tree.map(np.testing.assert_array_equal, got, getattr(scipy.special, entry.name)(*args))


def test_what_has_no_closed_form_says_so(x64):
    with pytest.raises(TypeError, match=r"jv: not differentiable with respect to argument 0 \(v\)"):
        jax.grad(special.jv)(1.0, 2.0)
    with pytest.raises(TypeError, match="ive: not differentiable at complex arguments"):
        jax.jvp(lambda z: special.ive(1.0, z), (1 + 1j,), (1 + 0j,))
    with pytest.raises(TypeError, match="no closed form"):
        jax.jvp(special.psi, (1 + 1j,), (1 + 0j,))


def test_names_mean_the_same_in_other_processes(x64):
    text = jax.jit(jax.grad(lambda x: special.jv(1.0, x))).lower(2.0).as_text()
    assert 'name = "jaxbind.contrib.special:jv"' in text
    exported = jax.export.export(
        jax.jit(lambda x: special.kv(1.5, x)), disabled_checks=jaxbind.export_checks()
    )(2.0)
    again = jax.export.deserialize(exported.serialize())
    assert again.call(2.0) == scipy.special.kv(1.5, 2.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32, np.int8])
@pytest.mark.parametrize("name", ["jv", "kn", "yn", "spherical_jn", "eval_legendre"])
def test_orders_of_few_bits(name, dtype, x64):
    function = getattr(special, name)
    for order in (0, 1, 5):
        got = jax.grad(function, 1)(dtype(order), 0.7)
        np.testing.assert_allclose(got, jax.grad(function, 1)(order, 0.7), rtol=1e-12)


@pytest.mark.parametrize("x", [-1e3, -1e8, -1e20])
def test_derivatives_far_left(x, x64):
    """log Φ(x) = -x²/2 - log(-x √(2π)) + log(1 - 1/x² + ...) (DLMF 7.12.1)."""
    want = -x - 1 / x + 2 / x**3
    np.testing.assert_allclose(jax.grad(special.log_ndtr)(x), want, rtol=1e-12)
    np.testing.assert_allclose(jax.grad(special.ndtri_exp)(special.log_ndtr(x)), 1 / want)


@pytest.mark.parametrize("x", [60.0, 1e3, 1e9])
def test_derivatives_far_right(x, x64):
    """erfcx(x) = (1 - 1/(2x²) + 3/(4x⁴) - ...) / (x √π), Dawson's with + (DLMF 7.12.1)."""
    u = 1 / (2 * x**2)
    erfcx = -2 / np.sqrt(np.pi) * (u - 3 * u**2 + 15 * u**3 - 105 * u**4)
    np.testing.assert_allclose(jax.grad(special.erfcx)(x), erfcx, rtol=1e-11)
    dawsn = -(u + 3 * u**2 + 15 * u**3 + 105 * u**4)
    np.testing.assert_allclose(jax.grad(special.dawsn)(x), dawsn, rtol=1e-11)
    narrow = jax.grad(special.voigt_profile, (0, 2))(x, 1e-9, 2.0)
    lorentz = jax.grad(lambda x, g: g / (x**2 + g**2) / np.pi, (0, 1))(x, 2.0)
    np.testing.assert_allclose(narrow, lorentz, rtol=1e-9)


def test_polynomials_of_negative_degree(x64):
    for name, kin in (
        ("eval_chebyu", lambda n: (-1, -n - 2)),
        ("eval_legendre", lambda n: (1, -n - 1)),
    ):
        slope = jax.grad(getattr(special, name), 1)
        for n in (-2, -3, -6):
            sign, other = kin(n)
            want = sign * slope(other, 0.3) if other >= 0 else 0
            np.testing.assert_allclose(slope(n, 0.3), want, rtol=1e-12)


def test_the_documented_table_is_that_of_the_code():
    page = (Path(__file__).parent.parent / "docs" / "special.md").read_text()
    if f"SciPy {minor(scipy)} and JAX {minor(jax)}." in page:
        assert table() in page
    else:  # names of arguments are SciPy's own, and JAX has ever more functions
        assert functions(table()) == functions(page)


def minor(package):
    return ".".join(package.__version__.split(".")[:2])


def functions(text):
    return re.findall(r"^\| `(\w+)\(", text, re.MULTILINE)


def test_defaults_of_scipy(x64):
    """``k=0`` of `lambertw` and ``q=1`` of `zeta`, which is Riemann's, also below 1."""
    z, x = np.linspace(-2, 5, 30), np.array([-3.5, -1.0, 0.5, 2.0, 30.0])
    np.testing.assert_array_equal(special.lambertw(z), scipy.special.lambertw(z))
    np.testing.assert_allclose(special.zeta(x), scipy.special.zeta(x), rtol=1e-14)
    slope = jax.grad(lambda z: special.lambertw(z).real)(2.0)
    np.testing.assert_allclose(slope, jax.grad(lambda z: special.lambertw(z, 0).real)(2.0))


def slope(function, x, order=1):
    for _ in range(order):
        function = jax.grad(function)
    return float(function(x))


EDGES = {  # a derivative where a closed form is 0/0 or cancels, and what it is
    "ellipkinc at m=1": (lambda m: special.ellipkinc(0.7, m), 1.0, 1,
                         (np.tan(0.7) / np.cos(0.7) - np.arctanh(np.sin(0.7))) / 4),
    "ellipeinc at m=1": (lambda m: special.ellipeinc(0.7, m), 1.0, 1,
                         (np.sin(0.7) - np.arctanh(np.sin(0.7))) / 2),
    "sn at m=1": (lambda m: special.ellipj(0.7, m)[0], 1.0, 1,
                  (np.sinh(0.7) * np.cosh(0.7) - 0.7) / (-4 * np.cosh(0.7) ** 2)),
    "R_C at x=0": (lambda y: special.elliprc(0.0, y), 2.0, 1, -np.pi / 4 * 2**-1.5),
    "R_J at equal arguments": (lambda p: special.elliprj(1.0, 1.0, 1.0, p), 1.0, 1, -0.6),
    "R_J in x": (lambda x: special.elliprj(x, 2.0, 2.0, 2.0), 2.0, 1, -0.3 * 2**-2.5),
    "gammainc, a=1": (lambda x: special.gammainc(1.0, x), 0.0, 3, 1.0),
    "gammainc, a=2": (lambda x: special.gammainc(2.0, x), 0.0, 2, 1.0),
    "gammainc, a=3": (lambda x: special.gammainc(3.0, x), 0.0, 2, 0.0),
    "gammainc, a=3, third": (lambda x: special.gammainc(3.0, x), 0.0, 3, 1.0),
    "gammainc, a=1e14": (lambda x: special.gammainc(1e14, x), 1e14, 1, 1 / np.sqrt(2e14 * np.pi)),
    "betainc at 0": (lambda x: special.betainc(2.0, 3.0, x), 0.0, 2, 12.0),
    "betainc at 1": (lambda x: special.betainc(3.0, 2.0, x), 1.0, 2, -12.0),
    "betainc, a=b=1e12": (lambda x: special.betainc(1e12, 1e12, x), 0.5, 1, 2e6 / np.sqrt(np.pi)),
    "i0e": (special.i0e, 1e15, 1, -0.5e-15 / np.sqrt(2e15 * np.pi)),
    "i0e left": (special.i0e, -1e15, 1, 0.5e-15 / np.sqrt(2e15 * np.pi)),
    "i1e": (special.i1e, 1e15, 1, -0.5e-15 / np.sqrt(2e15 * np.pi)),
    "ive": (lambda x: special.ive(0.5, x), 1e8, 1, -0.5e-8 * np.sqrt(2 / np.pi / 1e8) / 2),
    "k1e": (special.k1e, 1e15, 1, -0.5e-15 * np.sqrt(np.pi / 2e15)),
    "kve": (lambda x: special.kve(0.5, x), 400.0, 2, 0.75 * np.sqrt(np.pi / 2) * 400.0**-2.5),
    "bei at 0": (special.bei, 0.0, 2, 0.5),
    "ber at 0": (special.ber, 0.0, 4, -6 / 16),
    "poch at a pole": (lambda z: special.poch(z, 3.0), -2.0, 1, 2.0),
    "poch between poles": (lambda z: special.poch(z, 2.0), -5.0, 1, -9.0),
    "binom in n": (lambda n: special.binom(n, 3.0), 1.0, 1, -1 / 6),
    "binom in k": (lambda k: special.binom(5.0, k), 7.0, 1, 1 / 42),
    "P at 1": (lambda x: special.lpmv(0.0, 3.0, x), 1.0, 1, 6.0),
    "P at -1": (lambda x: special.lpmv(0.0, 3.0, x), -1.0, 1, 6.0),
    "P of order 2": (lambda x: special.lpmv(2.0, 4.0, x), -1.0, 1, 90.0),
    "P of order 4": (lambda x: special.lpmv(4.0, 5.0, x), 1.0, 1, 0.0),
    "a Lorentzian": (lambda x: special.voigt_profile(x, 0.0, 1.0), 1.0, 1, -0.5 / np.pi),
    "a Lorentzian in sigma": (lambda s: special.voigt_profile(0.5, s, 1.0), 0.0, 2,
                              (2j / (0.5 + 1j) ** 3).real / np.pi),
    "central chi-squared": (lambda x: special.chndtr(x, 4.0, 0.0), 3.0, 1, 0.75 * np.exp(-1.5)),
    "powm1 in y": (lambda y: special.powm1(0.0, y), 2.0, 1, 0.0),
    "powm1 in y, twice": (lambda y: special.powm1(0.0, y), 2.0, 2, 0.0),
    "powm1 in x": (lambda x: special.powm1(x, 0.0), 0.0, 1, 0.0),
    "boxcox of 0": (lambda lmbda: special.boxcox(0.0, lmbda), 2.0, 1, 0.25),
    "boxcox of 0, twice": (lambda lmbda: special.boxcox(0.0, lmbda), 2.0, 2, -0.25),
    "boxcox1p of -1": (lambda lmbda: special.boxcox1p(-1.0, lmbda), 0.5, 1, 4.0),
    "pseudo_huber far out": (lambda delta: special.pseudo_huber(delta, 1e80), 1.0, 1, 1e80),
    "pseudo_huber at 0": (lambda r: special.pseudo_huber(0.0, r), 0.0, 1, 0.0),
    "pseudo_huber in delta at 0": (lambda delta: special.pseudo_huber(delta, 0.0), 0.0, 1, 0.0),
    "F far out": (lambda x: special.fdtrc(1.0, 1.0, x), 1e17, 1, -1e-17**1.5 / np.pi),
    "F of 1, 1": (lambda x: special.fdtr(1.0, 1.0, x), 1e14, 1, 1e-14**1.5 / np.pi),
    "int (1 - J0)/t": (lambda x: special.it2j0y0(x)[0], 1e-7, 1, 0.25e-7),
    "int (1 - J0)/t at 0": (lambda x: special.it2j0y0(x)[0], 0.0, 2, 0.25),
    "int (I0 - 1)/t": (lambda x: special.it2i0k0(x)[0], 1e-7, 1, 0.25e-7),
    "int (I0 - 1)/t, fourth": (lambda x: special.it2i0k0(x)[0], 0.0, 4, 6 / 64),
    "int H0/t": (special.it2struve0, 0.0, 1, -2 / np.pi),
    "int H0/t, third": (special.it2struve0, 0.0, 3, 4 / (9 * np.pi)),
    "hankel1e": (lambda x: special.hankel1e(0.5, x).imag, 1e15, 1, 0.5e-15 * np.sqrt(2e-15 / np.pi)),
    "hankel2e": (lambda x: special.hankel2e(0.5, x).imag, 1e13, 1,
                 -0.5e-13 * np.sqrt(2e-13 / np.pi)),
    "betaln of large numbers": (lambda a: special.betaln(a, 0.5), 1e15, 1, -0.5e-15),
    "betaln of small ones": (lambda a: special.betaln(a, 1e-9), 2.0, 1, -1e-9 * (np.pi**2 / 6 - 1)),
    "beta": (lambda a: special.beta(a, 1.0), 1e9, 1, -1e-18),
    "poch of large numbers": (lambda z: special.poch(z, 2.0), 1e15, 1, 2e15),
    "binom of large numbers": (lambda n: special.binom(n, 2.0), 1e12, 1, 1e12 - 0.5),
    "Poisson": (lambda m: special.pdtr(1e12, m), 1e12, 1, -1e-6 / np.sqrt(2 * np.pi)),
    "rel_entr": (lambda x: special.rel_entr(x, 1e200), 1e-200, 1, 1 - 400 * np.log(10)),
    "kl_div": (lambda x: special.kl_div(x, 1e-200), 1e200, 1, 400 * np.log(10)),
    "normal as Student's": (lambda t: special.stdtr(np.inf, t), 0.7, 1,
                            np.exp(-0.245) / np.sqrt(2 * np.pi)),
    "chi-squared in nc": (lambda nc: special.chndtr(3.0, 2.0, nc), 0.0, 1,
                          -0.75 * np.exp(-1.5)),
    "K near m=1": (special.ellipkm1, 1e-20, 2, 0.5e40),
    "R_G at x=0": (lambda x: special.elliprg(x, 1.0, 1.0), 0.0, 1, np.pi / 8),
    "J0 far out": (special.j0, 1e100, 2, -scipy.special.j0(1e100)),
    "E_4 at 0": (lambda x: special.expn(4, x), 0.0, 2, 1.0),
    "spence near 0": (special.spence, 1e-13, 2, 1e13 + 1 + np.log(1e-13)),
    "spence nearer": (special.spence, 1e-20, 1, np.log(1e-20)),
    "wrightomega far out": (special.wrightomega, 1e14, 2, 1e-28),
    "pseudo_huber in r, twice": (lambda r: special.pseudo_huber(2.0, r), 1e9, 2, 8e-27),
    "pseudo_huber of large delta": (
        lambda delta: jax.grad(special.pseudo_huber, 1)(delta, 2.0), 1e9, 1, 8e-27),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("edge", EDGES)
def test_derivatives_at_edges(edge, x64):
    function, x, order, want = EDGES[edge]
    for _ in range(order):
        function = jax.grad(function)
    at, beside = jax.vmap(function)(jnp.array([x, x * (1 - 1e-9) + 1e-9 * (x == 0)]))
    np.testing.assert_allclose(at, want, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(beside, want, rtol=1e-4, atol=1e-5)


NONCENTRAL = {  # ordinary parameters of large size: the density is that of SciPy's `stats`
    "chi-squared": (lambda x: special.chndtr(x, 1000.0, 5.0), 1003.0, 1e-3),
    "chi-squared in nc": (lambda nc: special.chndtr(1003.0, 1000.0, nc), 5.0, 1e-3),
    "chi-squared of large nc": (lambda x: special.chndtr(x, 4.0, 2000.0), 2000.0, 1e-3),
    "t of many degrees": (lambda t: special.nctdtr(340.0, 0.5, t), 0.7, 1e-5),
    "t of more": (lambda t: special.nctdtr(1e4, 0.5, t), 0.7, 1e-5),
    "t of large nc": (lambda t: special.nctdtr(5.0, 44.0, t), 45.0, 1e-4),
    "F of large nc": (lambda f: special.ncfdtr(5.0, 10.0, 1400.0, f), 280.0, 1e-2),
    "F in large nc": (lambda nc: special.ncfdtr(5.0, 10.0, nc, 280.0), 1400.0, 1e-1),
    "F in nc": (lambda nc: special.ncfdtr(5.0, 10.0, nc, 70.0), 300.0, 1e-1),
}


@pytest.mark.parametrize("name", NONCENTRAL)
def test_noncentral_distributions(name, x64):
    """First and second derivatives against differences."""
    function, x, h = NONCENTRAL[name]
    for f in (function, jax.grad(function)):
        want = (f(x + h) - f(x - h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(f)(x), want, rtol=1e-4, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("x", [0.3, 1.5, 4.0])
def test_second_derivatives_of_noncentral_distributions(x, x64):
    """In both arguments at once, and near 0, where densities are by series."""
    for function in (
        lambda x: special.chndtr(x, 3.0, x),
        lambda x: special.nctdtr(4.0, 1.5, x - 1.5),
        lambda x: special.ncfdtr(4.0, 5.0, x, x),
        lambda x: special.ncfdtr(4.0, 5.0, 90 * x, 9 * x),
    ):
        f, h = jax.grad(function), 1e-4
        want = (f(x + h) - f(x - h)) / (2 * h)
        np.testing.assert_allclose(jax.grad(f)(x), want, rtol=1e-5, atol=1e-10)


def test_second_derivatives_in_forward_mode_at_the_ends(x64):
    forward = lambda f: jax.jacfwd(jax.jacfwd(f))
    np.testing.assert_allclose(forward(lambda x: special.gammainc(1.0, x))(0.0), -1.0)
    np.testing.assert_allclose(forward(lambda x: special.betainc(1.0, 8.0, x))(0.0), -56.0)


def test_derivatives_at_infinity(x64):
    assert jax.grad(special.gammainc, 1)(2.0, np.inf) == 0
    assert slope(lambda x: special.gammainc(2.0, x), np.inf, 2) == 0
    assert slope(lambda x: special.chdtrc(3.0, x), np.inf, 2) == 0
    assert jax.grad(special.gammaincinv, 1)(2.0, 1.0) == np.inf
    assert jax.grad(special.wrightomega)(np.inf) == 1
    np.testing.assert_allclose(  # -1/Q' with Q = 2/(π √x), of which SciPy's own is that exact
        jax.grad(special.fdtri, 2)(1.0, 1.0, 1 - 1e-9), 8 / np.pi**2 * 1e27, rtol=1e-6
    )


def test_scaled_hankel_functions_where_the_series_begins(x64):
    for f in (special.hankel1e, special.hankel2e):
        for z in (75.0, 75 + 30j, 60 - 60j):
            slope = jax.grad(lambda z: f(3.2, z), holomorphic=True)(complex(z))
            h = 1e-3
            want = (f.function(3.2, z + h) - f.function(3.2, z - h)) / (2 * h)
            np.testing.assert_allclose(slope, want, rtol=1e-8)


def test_mixed_derivatives_of_powers(x64):
    """d/dy of y x^(y-1) at y = 0."""
    mixed = jax.grad(jax.grad(special.powm1, 0), 1)
    np.testing.assert_allclose(mixed(3.0, 0.0), 1 / 3, rtol=1e-12)


@given(x=st.floats(-2, 2), lmbda=st.floats(0.2, 3))
def test_tukeys_distribution_ends(x, lmbda):
    """It is constant beyond ±1/λ; within, the slope is what differences of SciPy's give."""
    with jax.enable_x64(True):
        slope = jax.grad(special.tklmbda)(x, lmbda)
        edge = abs(abs(x) * lmbda - 1)
        if edge > 0 and abs(x) * lmbda > 1:
            assert slope == 0
        elif edge > 1e-2:
            h = 1e-5
            ends = scipy.special.tklmbda([x - h, x + h], lmbda)
            np.testing.assert_allclose(slope, np.diff(ends)[0] / (2 * h), rtol=1e-3)


@pytest.mark.slow
@given(a=st.floats(50, 1e13), shift=st.floats(-3, 3))
def test_densities_of_large_shapes(a, shift):
    """Against the ratio of gamma functions in long arithmetic: the recurrence in the shape."""
    with jax.enable_x64(True):
        x = a + shift * np.sqrt(a)
        density = jax.jit(jax.vmap(jax.grad(special.gammainc, 1)))
        here, above = density(np.array([a, a + 1]), np.array([x, x]))
        np.testing.assert_allclose(above / here, x / a, rtol=1e-7)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["_ncx2_pdf", "_nct_pdf", "_ncf_pdf"])
def test_densities_where_scipy_has_renamed_them(monkeypatch, name):
    rules = [None] * getattr(scipy.special._ufuncs, name).nin
    compiled = _table.density(name, *rules)
    monkeypatch.setattr(_table.scipy.special, "_ufuncs", SimpleNamespace())
    other = _table.density(name, *rules)
    monkeypatch.undo()
    arguments = np.linspace(0.2, 3.0, 5), *np.full(len(rules) - 1, 4.5)
    np.testing.assert_allclose(other(*arguments), compiled(*arguments), rtol=1e-12)


@pytest.mark.parametrize("theta", [-1.0, -0.3, 1.0, 4.0])
@pytest.mark.parametrize(("n", "m"), [(2, 1), (2, 2), (3, 0), (3, -1), (3, -2)])
def test_spherical_harmonics_beyond_the_sphere(n, m, theta, x64):
    """SciPy goes on with |sin θ|; slopes are those of its values."""
    h = 1e-5
    higher, lower = (scipy.special.sph_harm_y(n, m, theta + s * h, 0.3) for s in (1, -1))
    slope = jax.jvp(lambda t: special.sph_harm_y(n, m, t, 0.3), (theta,), (1.0,))[1]
    np.testing.assert_allclose(slope, (higher - lower) / (2 * h), rtol=1e-8, atol=1e-8)


def test_struve_far_out(x64):
    """By its differential equation (DLMF 11.2.7), in which nothing cancels for small orders."""
    v, x = 1.2, 5e3
    value, slope = special.struve(v, x), jax.grad(special.struve, 1)(v, x)
    curve = jax.grad(jax.grad(special.struve, 1), 1)(v, x)
    power = 4 * (x / 2) ** (v + 1) / (np.sqrt(np.pi) * scipy.special.gamma(v + 0.5))
    wanted = (power - x * slope - (x**2 - v**2) * value) / x**2
    np.testing.assert_allclose(curve, wanted, rtol=1e-6)


def test_scaled_airy_functions_below_zero(x64):
    """Bi is not scaled there: Bi'' = z Bi (DLMF 9.2.1)."""
    for z in (-1.0, -4.5):
        curve = jax.grad(jax.grad(lambda z: special.airye(z)[2]))(z)
        np.testing.assert_allclose(curve, z * scipy.special.airy(z)[2], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("b", [1e-6, 1e-10, 1e-20, 1e-100])
def test_means_of_unequal_numbers(b, x64):
    """M(a, b) = π a / (2 log(4a/b)) (1 + O(b²/a²)) (DLMF 19.8.5 and 19.12.1)."""
    a = 2.0
    log = np.log(4 * a / b)
    slopes = np.pi / 2 * np.array([1 / log - 1 / log**2, a / b / log**2])
    in_b = np.pi / 2 * a / b**2 * (2 / log**3 - 1 / log**2)
    curves = np.array([[(b / a) ** 2, -b / a], [-b / a, 1]]) * in_b  # from homogeneity
    for first, second in ((jax.grad, jax.grad), (jax.jacfwd, jax.jacrev)):
        gradient = first(special.agm, (0, 1))
        np.testing.assert_allclose(gradient(a, b), slopes, rtol=1e-10)
        np.testing.assert_allclose(gradient(b, a), slopes[::-1], rtol=1e-10)
        for x, y, want in ((a, b, curves), (b, a, curves[::-1, ::-1])):
            got = [[second(first(special.agm, i), j)(x, y) for j in (0, 1)] for i in (0, 1)]
            np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.slow
def test_means_of_equal_numbers_and_of_zero(x64):
    hessian = jax.hessian(special.agm, (0, 1))(2.0, 2.0)
    np.testing.assert_allclose(hessian, [[-1 / 16, 1 / 16], [1 / 16, -1 / 16]], rtol=1e-12)
    np.testing.assert_array_equal(jax.grad(special.agm, (0, 1))(2.0, 0.0), (0, np.inf))
    assert slope(lambda b: special.agm(2.0, b), 0.0, 2) == -np.inf
    assert np.isnan(jax.grad(special.agm, (0, 1))(0.0, 0.0)).all()


@pytest.mark.slow
@pytest.mark.parametrize("x", [60.0, 1e3, 1e5, 1e8, 1e10])
def test_modified_fresnel_integrals_far_out(x, x64):
    """K is i (1/z + 1/(2 z³) + 3/(4 z⁵) + ...) / (2 √π) with z = exp(i π/4) x (DLMF 7.12.1)."""
    n, turn = np.arange(1, 14, 2), np.exp(1j * np.pi / 4)
    terms = 0.5j / np.sqrt(np.pi) * scipy.special.factorial2(n - 2) / 2.0 ** ((n - 1) // 2)
    terms[0] = 0.5j / np.sqrt(np.pi)
    wanted = [np.sum(terms * -n * (turn * x) ** -(n + 1.0)) * turn]
    wanted += [np.sum(terms * n * (n + 1) * (turn * x) ** -(n + 2.0)) * turn**2]
    for function, sign in ((special.modfresnelp, 1), (special.modfresnelm, -1)):
        for order, want in enumerate(wanted, 1):
            real, imaginary = (
                slope(lambda x: part(function(x)[1]), x, order)
                for part in (jax.numpy.real, jax.numpy.imag)
            )
            np.testing.assert_allclose(real + sign * 1j * imaginary, want, rtol=1e-10)


@pytest.mark.parametrize("x", [-2.0, -1e2, -1e3])
def test_modified_fresnel_integrals_far_left(x, x64):
    """K(-x) = exp(-i x²) - K(x), from that of the complementary error function."""
    value, other = special.modfresnelp(x)[1], special.modfresnelp(-x)[1]
    np.testing.assert_allclose(value, np.exp(-1j * x**2) - other, rtol=1e-9)
    tangent = lambda x: jax.jvp(lambda x: special.modfresnelp(x)[1], (x,), (1.0,))[1]
    want = -2j * x * np.exp(-1j * x**2) + tangent(-x)
    np.testing.assert_allclose(tangent(x), want, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("z", [20.0, 50.0, 1e3, 1e5, 1e6])
def test_scaled_airy_functions_far_out(z, x64):
    """By their asymptotic series (DLMF 9.7.5 to 9.7.8)."""
    k = np.arange(9)
    u = scipy.special.poch(1 / 6, k) * scipy.special.poch(5 / 6, k) / scipy.special.factorial(k)
    u /= 2.0**k
    v = -(6 * k + 1) / (6 * k - 1) * u
    series = [(u, -1, -0.25, 0.5), (v, -1, 0.25, -0.5), (u, 1, -0.25, 1), (v, 1, 0.25, 1)]
    for i, (terms, sign, power, factor) in enumerate(series):
        terms = factor / np.sqrt(np.pi) * terms * (1.5 * sign) ** k
        power = power - 1.5 * k
        f = lambda z: special.airye(z)[i]
        first, second = terms * power, terms * power * (power - 1)
        np.testing.assert_allclose(slope(f, z), np.sum(first * z ** (power - 1)), rtol=1e-9)
        np.testing.assert_allclose(slope(f, z, 2), np.sum(second * z ** (power - 2)), rtol=1e-9)


POLES = {
    "y0": special.y0,
    "y1": special.y1,
    "k0": special.k0,
    "k1": special.k1,
    "k0e": special.k0e,
    "k1e": special.k1e,
}
POLES |= {
    f"{name}, {order}": lambda x, name=name, order=order: getattr(special, name)(order, x)
    for name in ("yv", "yn", "kv", "kn", "kve", "spherical_yn", "spherical_kn")
    for order in (0, 1, 2, 3)
}
POLES |= {
    f"{name}, {order}": lambda x, name=name, order=order: getattr(special, name)(order, x)
    for name in ("yv", "kv", "kve")
    for order in (-1.0, 0.5, 1.5)
}


@pytest.mark.slow
@pytest.mark.parametrize("name", POLES)
def test_poles_at_zero(name, x64):
    """Value and derivatives are infinite there, with the signs of those beside it."""
    function, beside = POLES[name], 1e-8
    forward = (
        jax.jacfwd(function),
        jax.jacfwd(jax.jacfwd(function)),
        jax.jacfwd(jax.jacrev(function)),
    )
    reverse = jax.grad(function), jax.grad(jax.grad(function))
    for f in (function, *forward, *reverse):
        at, near = jax.vmap(f)(jnp.array([0.0, beside]))
        assert np.isinf(at) and np.sign(at) == np.sign(near)


@pytest.mark.parametrize("a", [0.5, 1.0, 3.0])
def test_integrals_of_bessel_functions_of_half_orders(a, x64):
    """The integral of sqrt(x) J_1/2(2 a x) from 0 to 1 is elementary (DLMF 10.16.1)."""
    closed = lambda a: jax.numpy.sin(a) ** 2 / (a * jax.numpy.sqrt(np.pi * a))
    for order in (0, 1, 2):
        got = slope(lambda a: special.besselpoly(a, 0.5, 0.5), a, order)
        np.testing.assert_allclose(got, slope(closed, a, order), rtol=1e-10)


@given(n=st.integers(0, 6), y=st.integers(1, 7))
def test_second_derivatives_at_the_zeros_of_polynomials(n, y):
    """binom(x, y) and poch(z, m) are polynomials for whole y and m; at their zeros 1/Γ has one."""
    with jax.enable_x64(True):
        second = jax.grad(jax.grad(special.binom))
        roots = np.polynomial.Polynomial.fromroots(np.arange(y)) / scipy.special.factorial(y)
        np.testing.assert_allclose(second(float(n), y), roots.deriv(2)(n), rtol=1e-9, atol=1e-12)
        second = jax.grad(jax.grad(special.poch))
        roots = np.polynomial.Polynomial.fromroots(-np.arange(y))
        np.testing.assert_allclose(second(float(-n), y), roots.deriv(2)(-n), rtol=1e-9, atol=1e-8)


@given(a=st.integers(-4, 4), b=st.integers(0, 4))
def test_beta_where_its_sum_has_a_pole(a, b):
    """B(a, b) = Γ(a) Γ(b) / Γ(a + b) there, by differences of SciPy's values."""
    a, b, h = a - 0.5, -b - a + 0.5, 1e-5
    with jax.enable_x64(True):
        for k, (first, second) in enumerate((((h, 0), (-h, 0)), ((0, h), (0, -h)))):
            ends = [scipy.special.beta(a + u, b + v) for u, v in (first, second)]
            got = jax.grad(special.beta, k)(a, b)
            np.testing.assert_allclose(got, (ends[0] - ends[1]) / (2 * h), rtol=1e-5)


@given(n=st.floats(-1.9, -0.1), x=st.floats(-0.9, 0.9))
def test_chebyshev_functions_of_negative_degree(n, x):
    """U_n(cos θ) = sin((n + 1) θ) / sin θ (DLMF 18.5.2)."""

    def truth(x):
        theta = jnp.arccos(x)
        return jnp.sin((n + 1) * theta) / jnp.sin(theta)

    with jax.enable_x64(True):
        for order, rtol in ((jax.grad, 1e-9), (lambda f: jax.grad(jax.grad(f)), 1e-7)):
            got = order(lambda x: special.eval_chebyu(n, x))(x)
            np.testing.assert_allclose(got, order(truth)(x), rtol=rtol, atol=1e-9)


@given(m=st.integers(1, 3), x=st.floats(-0.95, 0.95))
def test_legendre_functions_of_the_lowest_negative_order(m, x):
    """P_m^(-m)(x) = (1 - x²)^(m/2) / (2^m m!) (DLMF 14.9.3 and 14.7.10)."""
    scale = 2.0**m * scipy.special.factorial(m)
    with jax.enable_x64(True):
        f, g = (lambda x: special.lpmv(-m, m, x)), lambda x: (1 - x * x) ** (m / 2) / scale
        for _ in range(2):
            f, g = jax.grad(f), jax.grad(g)
            np.testing.assert_allclose(f(x), g(x), rtol=1e-8, atol=1e-10)


@by_name([e for e in ENTRIES if any(e.differentiable)], often=6)
def test_derivatives_in_32_bits(entry):
    """They can be computed, and are those of 64 bits."""
    middle = [(p.low + p.high) // 2 if p.integer else (p.low + p.high) / 2 for p in entry.domain]

    def slopes(wide):
        with jax.enable_x64(wide):
            args = [jnp.asarray(x) for x in middle]
            wrt = [i for i, d in enumerate(entry.differentiable) if d]
            return jax.tree.leaves(jax.jacfwd(entry.binding, wrt)(*args))

    for got, want in zip(slopes(False), slopes(True), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=1e-4)
