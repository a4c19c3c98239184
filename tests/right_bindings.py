"""Bindings whose declarations are all true: `jaxbind.testing` must not complain about any of them.

Each is a `Right`: a name, a recipe that binds the function afresh, and what `testing.check` has to
be told about its operands. Domains are those of the functions, nothing narrower.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import scipy.fft
import scipy.linalg
import scipy.special
from jax import ShapeDtypeStruct

import jaxbind

# The form of the table ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Right:
    """A binding without fault.

    Attributes:
      name: of the binding, in test ids.
      make: builds it afresh on each call.
      check: keywords for ``testing.check``.
    """

    name: str
    make: Callable[[], jaxbind.Binding]
    check: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Recipe:
    """What is given to `jaxbind.bind`, and the rules, by the names of their ``def_``.

    ``vjp_jvp`` is the rule of ``f.vjp.def_jvp``; a tuple holds the rules of several arguments, a
    dict those of ``def_transpose`` by the argument's name, `Declared` the options of ``def_``.
    """

    function: Any
    signature: str | None
    options: Mapping[str, Any]
    rules: Mapping[str, Any]

    def __call__(self) -> jaxbind.Binding:
        f = jaxbind.bind(self.function, self.signature, **self.options)
        for name, rule in self.rules.items():
            *derivatives, last = name.split("_")
            of = f
            for step in derivatives:
                of = getattr(of, step)
            define = getattr(of, f"def_{last}")
            if isinstance(rule, Itself):
                rule = rule.rules(f)
            if isinstance(rule, Declared):
                define(*rule.rules, **rule.options)
            elif isinstance(rule, dict):
                for argument, each in rule.items():
                    define(argument)(each)
            elif isinstance(rule, tuple):
                define(*rule)
            else:
                define(rule)
        return f


@dataclass(frozen=True)
class Declared:
    """Rules with options of the ``def_`` that declares them."""

    rules: tuple
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Itself:
    """Rules in terms of the binding itself."""

    rules: Callable[[jaxbind.Binding], Any]


RULES = {"jvp", "vjp", "transpose", "partials", "jacobian", "vmap"}


def recipe(function: Any, signature: str | None = None, **given: Any) -> Recipe:
    rules = {name: given.pop(name) for name in list(given) if name.split("_")[0] in RULES}
    return Recipe(function, signature, given, rules)


def right(name: str, function: Any, signature: str | None = None, **given: Any) -> Right:
    check = given.pop("check", {})
    return Right(name, recipe(function, signature, **given), check)


def but(entry: Right, **changes: Any) -> Right:
    """The same checked otherwise."""
    return replace(entry, **changes)


def traced(rule: Callable) -> Declared:
    """A rule that is a JAX function."""
    return Declared((rule,), {"traced": True})


def over_numpy(*rules: Callable | None) -> Declared:
    """Partial derivatives over NumPy arrays."""
    return Declared(rules, {"traced": False})


# Operands -----------------------------------------------------------------------------------------

REAL = [np.float32, np.float64]
COMPLEX = [np.complex64, np.complex128]
DOUBLE = np.float64

disc = st.complex_numbers(max_magnitude=3, allow_nan=False, allow_infinity=False)


def uniform(shape, dtype, bound=1.0):
    """Arrays with elements in [-bound, bound], or in that disc."""
    kind = np.dtype(dtype)
    bound = float(np.finfo(kind).dtype.type(bound))  # Hypothesis wants what the dtype can hold
    if kind.kind == "c":
        limits = {"max_magnitude": bound}
    else:
        limits = {"min_value": -bound, "max_value": bound}
    elements = hnp.from_dtype(kind, allow_nan=False, allow_infinity=False, **limits)
    return hnp.arrays(kind, shape, elements=elements)


def invertible(shape, dtype):
    """Matrices with a dominant diagonal, not symmetric."""
    n = shape[-1]
    return uniform(shape, dtype).map(lambda a: (a + 2 * n * np.eye(n)).astype(dtype))


def positive_definite(shape, dtype):
    n = shape[-1]
    return uniform(shape, dtype).map(
        lambda a: (a @ np.swapaxes(a, -1, -2) + n * np.eye(n)).astype(dtype)
    )


def distinct_eigenvalues(shape, dtype):
    """Symmetric matrices whose eigenvalues are at least 1 apart, by Gershgorin's circles."""
    n = shape[-1]
    return uniform(shape, dtype, 1 / (2 * max(n, 1))).map(
        lambda a: ((a + np.swapaxes(a, -1, -2)) / 2 + np.diag(3.0 * np.arange(n))).astype(dtype)
    )


def distinct(shape, dtype):
    """Arrays whose elements are at least 1/2 apart."""
    size = int(np.prod(shape))
    order = st.permutations(range(size)).map(lambda p: np.asarray(p, dtype).reshape(shape))
    return st.builds(lambda p, noise: (p + noise).astype(dtype), order, uniform(shape, dtype, 0.25))


def increasing(shape, dtype):
    return uniform(shape, dtype).map(lambda a: np.cumsum(a / 2 + 1, axis=-1, dtype=dtype))


def vectors(*sizes, dtype=DOUBLE, bound=1e3):
    """Tuples of vectors, each with a size of its own between 1 and a bound."""
    return st.tuples(
        *(st.integers(1, size).flatmap(lambda n: uniform((n,), dtype, bound)) for size in sizes)
    )


@st.composite
def with_index(draw, count=3):
    """A vector, and integers that are places in it."""
    (x,) = draw(vectors(4))
    places = st.integers(0, x.size - 1)
    return x, draw(hnp.arrays(np.int64, draw(st.integers(0, count)), elements=places))


# Elementwise --------------------------------------------------------------------------------------

square = right(
    "square",
    lambda x: x * x,
    "()->()",
    vectorized=True,
    jvp=lambda p, t: 2 * p[0] * t[0],
    vjp=lambda p, ct: 2 * p[0] * ct,
)
sine = right("sine", np.sin, partials=jnp.cos, check={"dtypes": REAL})
oscillating = right(
    "oscillating",
    lambda x: np.sin(30 * x),
    "()->()",
    jvp=lambda p, t: 30 * np.cos(30 * p[0]) * t[0],
    vjp=lambda p, ct: 30 * np.cos(30 * p[0]) * ct,
    check={"dtypes": REAL},
)
wave = right(
    "wave",
    lambda x: np.sin(2 * np.pi * x),
    "()->()",
    vectorized=True,
    jvp=lambda p, t: 2 * np.pi * np.cos(2 * np.pi * p[0]) * t[0],
    vjp=lambda p, ct: 2 * np.pi * np.cos(2 * np.pi * p[0]) * ct,
    check={"elements": st.floats(-3, 3), "dtypes": REAL},
)
steep = right(
    "steep",
    lambda x: np.exp(50 * x),
    "()->()",
    vectorized=True,
    jvp=lambda p, t: 50 * np.exp(50 * p[0]) * t[0],
    vjp=lambda p, ct: 50 * np.exp(50 * p[0]) * ct,
    check={"elements": st.floats(-1.5, 1.5)},
)
reciprocal = right(
    "reciprocal",
    np.reciprocal,
    partials=lambda x: -1 / x**2,
    check={"elements": st.floats(1e-3, 1e3) | st.floats(-1e3, -1e-3)},
)
sqrt = right(
    "sqrt",
    np.sqrt,
    partials=lambda x: 0.5 / jnp.sqrt(x),
    check={"elements": st.floats(1e-3, 1e6), "dtypes": REAL},
)
log = right(
    "log",
    lambda x: np.log(x),
    "()->()",
    jvp=lambda p, t: t[0] / p[0],
    vjp=lambda p, ct: ct / p[0],
    check={"elements": st.floats(1e-6, 1e6), "dtypes": REAL},
)
erf = right(
    "erf",
    scipy.special.erf,
    partials=lambda x: 2 / np.sqrt(np.pi).item() * jnp.exp(-(x**2)),
    check={"dtypes": REAL},
)
tanh = right("tanh", np.tanh, partials=Itself(lambda f: lambda x: 1 - f(x) ** 2))
expit = right("expit", scipy.special.expit, partials=Itself(lambda f: lambda x: f(x) * f(-x)))
constant = right(
    "constant",
    lambda x: np.full_like(x, 3),
    "()->()",
    vectorized=True,
    jvp=lambda p, t: np.zeros_like(t[0]),
    vjp=lambda p, ct: np.zeros_like(ct),
)
absolute = right("absolute", np.abs, partials=jnp.sign, check={"dtypes": REAL})
relu = right(
    "relu",
    lambda x: np.maximum(x, 0),
    "()->()",
    vectorized=True,
    jvp=lambda p, t: np.where(p[0] > 0, t[0], 0),
    vjp=lambda p, ct: np.where(p[0] > 0, ct, 0),
    check={"dtypes": REAL},
)
floor = right("floor", np.floor, partials=jnp.zeros_like)
rounding = right("round", np.rint, partials=jnp.zeros_like, check={"dtypes": REAL})
sign = right("sign", np.sign, partials=jnp.zeros_like, check={"dtypes": REAL})
clip = right(
    "clip",
    lambda x, *, low, high: np.clip(x, low, high),
    "()->()",
    vectorized=True,
    jvp=lambda p, t, *, low, high: np.where((low < p[0]) & (p[0] < high), t[0], 0),
    vjp=lambda p, ct, *, low, high: np.where((low < p[0]) & (p[0] < high), ct, 0),
    check={"static": [{"low": -1, "high": 1}, {"low": 0, "high": 5}], "dtypes": REAL},
)

# Elementwise, several arguments -------------------------------------------------------------------

positive = st.floats(0.1, 10)

product = right(
    "product",
    lambda x, y: x * y**2,
    "(),()->()",
    vectorized=True,
    jvp=lambda p, t: p[1] ** 2 * t[0] + 2 * p[0] * p[1] * t[1],
    vjp=lambda p, ct: (p[1] ** 2 * ct, 2 * p[0] * p[1] * ct),
)
fused = right(
    "fused-multiply-add",
    lambda x, y, z: x * y + z,
    "(),(),()->()",
    vectorized=True,
    jvp=lambda p, t: t[0] * p[1] + p[0] * t[1] + t[2],
    vjp=lambda p, ct: (ct * p[1], p[0] * ct, ct),
)
maximum = right(
    "maximum",
    np.maximum,
    partials=(lambda x, y: jnp.where(x >= y, 1.0, 0.0), lambda x, y: jnp.where(x < y, 1.0, 0.0)),
    check={"dtypes": REAL},
)
arctan2 = right(
    "arctan2",
    np.arctan2,
    partials=(lambda y, x: x / (x**2 + y**2), lambda y, x: -y / (x**2 + y**2)),
    check={"elements": {"x2": positive}},
)
hypot = right(
    "hypot",
    lambda x, y: np.hypot(x, y),
    "(),()->()",
    jvp=lambda p, t: p[0] / _not0(np.hypot(*p)) * t[0] + p[1] / _not0(np.hypot(*p)) * t[1],
    vjp=lambda p, ct: (p[0] / _not0(np.hypot(*p)) * ct, p[1] / _not0(np.hypot(*p)) * ct),
)
power = right(
    "power",
    np.power,
    partials=(lambda x, p: p * x ** (p - 1), lambda x, p: jnp.log(x) * x**p),
    check={"elements": {"x1": positive, "x2": st.floats(-3, 3)}, "dtypes": REAL},
)
logaddexp = right(
    "logaddexp",
    np.logaddexp,
    partials=Itself(
        lambda f: (lambda x, y: jnp.exp(x - f(x, y)), lambda x, y: jnp.exp(y - f(x, y)))
    ),
)
gaussian = right(
    "gaussian",
    lambda x, mean, width: np.exp(-(((x - mean) / width) ** 2) / 2),
    "(),(),()->()",
    vectorized=True,
    partials=over_numpy(
        lambda x, m, w: -(x - m) / w**2 * np.exp(-(((x - m) / w) ** 2) / 2),
        lambda x, m, w: (x - m) / w**2 * np.exp(-(((x - m) / w) ** 2) / 2),
        lambda x, m, w: (x - m) ** 2 / w**3 * np.exp(-(((x - m) / w) ** 2) / 2),
    ),
    check={"elements": {"width": positive}, "dtypes": REAL},
)
xlogy = right(
    "xlogy",
    scipy.special.xlogy,
    partials=(lambda x, y: jnp.log(y), lambda x, y: x / y),
    check={"elements": {"x2": positive}, "dtypes": REAL},
)


def _not0(x):
    """x, and 1 where it is 0."""
    return np.where(x == 0, np.ones_like(x), x)


def kepler_anomaly(mean, e):
    """E with E - e sin E = mean, by Newton's method from Danby's starting point."""
    turns = np.round(mean / (2 * np.pi)) * (2 * np.pi)
    m = mean - turns
    anomaly = m + np.sign(np.sin(m)) * 0.85 * e
    for _ in range(30):
        anomaly = anomaly - (anomaly - e * np.sin(anomaly) - m) / (1 - e * np.cos(anomaly))
    return (anomaly + turns).astype(mean.dtype)


kepler = right(
    "kepler",
    kepler_anomaly,
    "(),()->()",
    vectorized=True,
    compute_dtype=np.float64,
    partials=Itself(
        lambda f: (
            lambda m, e: 1 / (1 - e * jnp.cos(f(m, e))),
            lambda m, e: jnp.sin(f(m, e)) / (1 - e * jnp.cos(f(m, e))),
        )
    ),
    check={"elements": {"mean": st.floats(-20, 20), "e": st.floats(0, 0.8)}, "dtypes": REAL},
)

# SciPy's special functions ------------------------------------------------------------------------

bessel = right(
    "bessel-j",
    scipy.special.jv,
    nondiff="x1",
    partials=Itself(lambda jv: (None, lambda v, x: (jv(v - 1, x) - jv(v + 1, x)) / 2)),
    check={
        "elements": {"x1": st.sampled_from([0.0, 1.0, 2.0, 5.0]), "x2": st.floats(-50, 50)},
        "dtypes": REAL,
    },
)
bessel_k = right(
    "bessel-k",
    scipy.special.kv,
    partials=Itself(lambda kv: (None, lambda v, x: -(kv(v - 1, x) + kv(v + 1, x)) / 2)),
    check={"elements": {"x1": st.floats(0, 3), "x2": st.floats(0.1, 20)}, "dtypes": REAL},
)
spherical_bessel = right(
    "spherical-bessel",
    lambda x, *, n: scipy.special.spherical_jn(n, x),
    "()->()",
    vectorized=True,
    compute_dtype=np.float64,
    jvp=lambda p, t, *, n: scipy.special.spherical_jn(n, p[0], derivative=True) * t[0],
    vjp=lambda p, ct, *, n: scipy.special.spherical_jn(n, p[0], derivative=True) * ct,
    check={
        "elements": st.floats(0.1, 30),
        "static": [{"n": 0}, {"n": 1}, {"n": 3}],
        "dtypes": REAL,
    },
)
gammaln = right(
    "gammaln",
    scipy.special.gammaln,
    partials=jaxbind.bind(scipy.special.digamma),
    check={"elements": st.floats(0.01, 100)},
)
erfcx = right(
    "erfcx",
    scipy.special.erfcx,
    partials=Itself(lambda f: lambda x: 2 * x * f(x) - 2 / np.sqrt(np.pi).item()),
    check={"elements": st.floats(-3, 10), "dtypes": REAL},
)
ndtri = right(
    "ndtri",
    scipy.special.ndtri,
    partials=Itself(lambda f: lambda p: np.sqrt(2 * np.pi).item() * jnp.exp(f(p) ** 2 / 2)),
    check={"elements": st.floats(1e-3, 1 - 1e-3)},
)
beta = jaxbind.bind(scipy.special.beta)
betainc = right(
    "betainc",
    scipy.special.betainc,
    nondiff=("x1", "x2"),
    partials=(None, None, lambda a, b, x: x ** (a - 1) * (1 - x) ** (b - 1) / beta(a, b)),
    check={
        "elements": {"x1": st.floats(0.5, 5), "x2": st.floats(0.5, 5), "x3": st.floats(0.01, 0.99)}
    },
)
expi = right(
    "expi",
    scipy.special.expi,
    partials=lambda x: jnp.exp(x) / x,
    check={"elements": st.floats(0.1, 20), "dtypes": REAL},
)
lambertw = right(
    "lambertw",
    lambda x: scipy.special.lambertw(x).real,
    "()->()",
    vectorized=True,
    compute_dtype=np.float64,
    partials=Itself(lambda w: lambda x: jnp.exp(-w(x)) / (1 + w(x))),
    check={"elements": st.floats(-0.3, 1e3), "dtypes": REAL},
)
ellipk = right(
    "ellipk",
    lambda m: scipy.special.ellipk(m),
    "()->()",
    vectorized=True,
    jvp=lambda p, t: _ellipk_slope(p[0]) * t[0],
    vjp=lambda p, ct: _ellipk_slope(p[0]) * ct,
    check={"elements": st.floats(0.01, 0.99)},
)
dawson = right(
    "dawson",
    scipy.special.dawsn,
    jvp=Itself(lambda f: traced(lambda p, t: (1 - 2 * p[0] * f(p[0])) * t[0])),
    check={"elements": st.floats(-5, 5), "dtypes": REAL},
)


def _ellipk_slope(m):  # DLMF 19.4.1, with m = k²
    return (scipy.special.ellipe(m) / (1 - m) - scipy.special.ellipk(m)) / (2 * m)


# Matrices -----------------------------------------------------------------------------------------


def inverse_jvp(primals, tangents):
    inverted = np.linalg.inv(primals[0])
    return -inverted @ tangents[0] @ inverted


def inverse_vjp(primals, cotangent):
    inverted = np.linalg.inv(primals[0]).swapaxes(-1, -2)
    return -inverted @ cotangent @ inverted


inverse = right(
    "inverse",
    np.linalg.inv,
    "(n,n)->(n,n)",
    vectorized=True,
    jvp=inverse_jvp,
    vjp=inverse_vjp,
    check={"elements": {"a": invertible}},
)
inverse_complex = but(
    inverse, name="inverse-complex", check={**inverse.check, "dtypes": [np.complex128]}
)


def solve_jvp(primals, tangents):
    (a, b), (t_a, t_b) = primals, tangents
    return np.linalg.solve(a, t_b - t_a @ np.linalg.solve(a, b))


def solve_vjp(primals, cotangent, *, wrt):
    a, b = primals
    ct_b = np.linalg.solve(a.T, cotangent)
    return -np.outer(ct_b, np.linalg.solve(a, b)) if "a" in wrt else None, ct_b


solve = right(
    "solve",
    lambda a, b: np.linalg.solve(a, b),
    "(n,n),(n)->(n)",
    jvp=solve_jvp,
    vjp=solve_vjp,
    check={"elements": {"a": invertible}},
)


def _solve_traced(f):
    def rule(primals, tangents):
        a, b = primals
        return -f(a, tangents[0] @ f(a, b))

    return traced(rule)


solve_traced = right(
    "solve-traced",
    lambda a, b: np.linalg.solve(a, b),
    "(n,n),(n)->(n)",
    linear="b",
    transpose=Itself(lambda f: traced(lambda a, ct: f(a.T, ct))),
    jvp=Itself(_solve_traced),
    check={"elements": {"a": invertible}},
)


def triangular_vjp(primals, cotangent, *, lower):
    a, b = primals
    u = scipy.linalg.solve_triangular(a.T, cotangent, lower=not lower)
    ct_a = -np.outer(u, scipy.linalg.solve_triangular(a, b, lower=lower))
    return np.tril(ct_a) if lower else np.triu(ct_a), None


def triangular_jvp(primals, tangents, *, lower):
    (a, b), (t_a, _) = primals, tangents
    x = scipy.linalg.solve_triangular(a, b, lower=lower)
    return -scipy.linalg.solve_triangular(
        a, (np.tril(t_a) if lower else np.triu(t_a)) @ x, lower=lower
    )


triangular = right(
    "solve-triangular",
    lambda a, b, *, lower: scipy.linalg.solve_triangular(a, b, lower=lower),
    "(n,n),(n)->(n)",
    linear="b",
    transpose=lambda a, ct, *, lower: scipy.linalg.solve_triangular(a.T, ct, lower=not lower),
    jvp=triangular_jvp,
    vjp=triangular_vjp,
    check={"elements": {"a": invertible}, "static": [{"lower": True}, {"lower": False}]},
)


def cofactors(a):
    """The derivative of the determinant of a 3x3 matrix, singular or not: rows of cofactors."""
    return np.stack([np.cross(a[1], a[2]), np.cross(a[2], a[0]), np.cross(a[0], a[1])])


determinant = right(
    "determinant-3x3",
    lambda a: np.dot(a[0], np.cross(a[1], a[2])),
    "(3,3)->()",
    jvp=lambda p, t: np.sum(cofactors(p[0]) * t[0]),
    vjp=lambda p, ct: cofactors(p[0]) * ct,
)
det = right(
    "det",
    np.linalg.det,
    "(n,n)->()",
    vectorized=True,
    jvp=lambda p, t: np.linalg.det(p[0]) * np.trace(np.linalg.solve(*p, *t), axis1=-1, axis2=-2),
    vjp=lambda p, ct: (
        (np.linalg.det(p[0]) * ct)[..., None, None] * np.linalg.inv(p[0]).swapaxes(-1, -2)
    ),
    check={"elements": {"a": invertible}},
)
logdet = right(
    "logdet",
    lambda a: np.linalg.slogdet(a)[1],
    "(n,n)->()",
    vectorized=True,
    jvp=lambda p, t: np.trace(np.linalg.solve(*p, *t), axis1=-1, axis2=-2),
    vjp=lambda p, ct: ct[..., None, None] * np.linalg.inv(p[0]).swapaxes(-1, -2),
    check={"elements": {"a": invertible}, "dtypes": REAL},
)


def symmetric(a):
    return (a + a.T) / 2


def half_lower(a):
    """The lower triangle, with half the diagonal."""
    return np.tril(a) - np.diag(np.diag(a)) / 2


def cholesky_jvp(primals, tangents):
    factor = np.linalg.cholesky(symmetric(primals[0]))
    inverted = np.linalg.inv(factor)
    return factor @ half_lower(inverted @ symmetric(tangents[0]) @ inverted.T)


def cholesky_vjp(primals, cotangent):
    factor = np.linalg.cholesky(symmetric(primals[0]))
    inverted = np.linalg.inv(factor)
    return symmetric(inverted.T @ half_lower(factor.T @ cotangent) @ inverted)


cholesky = right(
    "cholesky",
    lambda a: np.linalg.cholesky(symmetric(a)),
    "(n,n)->(n,n)",
    jvp=cholesky_jvp,
    vjp=cholesky_vjp,
    check={"elements": {"a": positive_definite}, "dtypes": REAL},
)


def eigenvalues_jvp(primals, tangents):
    vectors = np.linalg.eigh(symmetric(primals[0]))[1]
    return np.einsum("ji,jk,ki->i", vectors, symmetric(tangents[0]), vectors)


def eigenvalues_vjp(primals, cotangent):
    vectors = np.linalg.eigh(symmetric(primals[0]))[1]
    return (vectors * cotangent) @ vectors.T


eigenvalues = right(
    "eigenvalues",
    lambda a: np.linalg.eigvalsh(symmetric(a)),
    "(n,n)->(n)",
    jvp=eigenvalues_jvp,
    vjp=eigenvalues_vjp,
    check={"elements": {"a": distinct_eigenvalues}, "dtypes": REAL},
)


def frechet(a, direction):
    return scipy.linalg.expm_frechet(a, direction, compute_expm=False)


expm = right(
    "expm",
    lambda a: scipy.linalg.expm(a),
    "(3,3)->(3,3)",
    compute_dtype=np.float64,
    jvp=lambda p, t: frechet(p[0], t[0]),
    vjp=lambda p, ct: frechet(p[0].T, ct),
    check={"elements": st.floats(-2, 2), "dtypes": REAL},
)


def trace_transpose(cotangent, out):
    out[...] = cotangent * np.eye(len(out))


trace = right("trace", lambda a: np.trace(a), "(n,n)->()", linear=True, transpose=trace_transpose)
matrix_transpose = right(
    "matrix-transpose",
    lambda a: a.swapaxes(-1, -2),
    "(m,n)->(n,m)",
    vectorized=True,
    linear=True,
    transpose=lambda ct: ct.swapaxes(-1, -2),
)
matvec = right(
    "matvec",
    lambda a, x: a @ x,
    "(m,n),(n)->(m)",
    multilinear=("a", "x"),
    transpose={"a": lambda x, ct: np.outer(ct, x), "x": lambda a, ct: a.T @ ct},
)
matvec_complex = but(matvec, name="matvec-complex", check={"dtypes": COMPLEX})
matmul = right(
    "matmul",
    lambda a, b: a @ b,
    "(m,n),(n,k)->(m,k)",
    vectorized=True,
    multilinear=("a", "b"),
    transpose={
        "a": lambda b, ct: ct @ b.swapaxes(-1, -2),
        "b": lambda a, ct: a.swapaxes(-1, -2) @ ct,
    },
)
trilinear = right(
    "einsum-of-three",
    lambda x, a, y: np.einsum("i,ij,j->", x, a, y),
    "(m),(m,n),(n)->()",
    multilinear=("x", "a", "y"),
    transpose={
        "x": lambda a, y, ct: ct * (a @ y),
        "a": lambda x, y, ct: ct * np.outer(x, y),
        "y": lambda x, a, ct: ct * (x @ a),
    },
)
quadratic_form = right(
    "quadratic-form",
    lambda a, x: x @ a @ x,
    "(n,n),(n)->()",
    linear="a",
    transpose=lambda x, ct: ct * np.outer(x, x),
    jvp=lambda p, t: p[1] @ (p[0] + p[0].T) @ t[1],
    vjp=lambda p, ct: (None, ct * ((p[0] + p[0].T) @ p[1])),
)
gram = right(
    "gram-fortran",
    lambda a: a.T @ a,
    "(m,n)->(n,n)",
    order="F",
    jvp=lambda p, t: t[0].T @ p[0] + p[0].T @ t[0],
    vjp=lambda p, ct: p[0] @ (ct + ct.T),
)


def _scale_columns(a, out):
    assert a.flags.f_contiguous and out.flags.f_contiguous
    np.multiply(a, np.arange(1, a.shape[1] + 1, dtype=a.real.dtype), out=out)


scaled_columns = right(
    "scaled-columns-fortran-out",
    _scale_columns,
    "(m,n)->(m,n)",
    order="F",
    linear=True,
    transpose=_scale_columns,
)
cross = right(
    "cross",
    lambda a, b: np.cross(a, b),
    "(3),(3)->(3)",
    vectorized=True,
    multilinear=("a", "b"),
    transpose={"a": lambda b, ct: np.cross(b, ct), "b": lambda a, ct: np.cross(ct, a)},
)

# Fourier transforms -------------------------------------------------------------------------------

fft = right(
    "fft",
    lambda v: np.fft.fft(v),
    "(n)->(n)",
    vectorized=True,
    linear=True,
    transpose=lambda ct: np.fft.fft(ct),
    check={"dtypes": COMPLEX},
)
ifft_axis = right(
    "ifft-axis",
    lambda v, *, axis: np.fft.ifft(v, axis=axis),
    "(m,n)->(m,n)",
    linear=True,
    transpose=lambda ct, *, axis: np.fft.ifft(ct, axis=axis),
    check={"static": [{"axis": 0}, {"axis": 1}], "dtypes": COMPLEX},
)


def fft_padded_transpose(cotangent, *, n, out):
    out[...] = 0
    kept = min(n, out.size)
    out[:kept] = np.fft.fft(cotangent)[:kept]


fft_padded = right(
    "fft-padded",
    lambda v, *, n: np.fft.fft(v, n),
    out=lambda v, *, n: ShapeDtypeStruct((n,), v.dtype),
    linear=True,
    transpose=fft_padded_transpose,
    check={"inputs": vectors(5, dtype=np.complex128), "static": [{"n": 3}, {"n": 6}]},
)


def half_spectrum(x):
    return ShapeDtypeStruct((x.size // 2 + 1,), np.result_type(x.dtype, np.complex64))


def rfft_transpose(cotangent, out):
    """The real part, since v is real, of the sum over the frequencies that there are."""
    padded = np.zeros(out.size, cotangent.dtype)
    padded[: cotangent.size] = cotangent
    out[...] = np.fft.fft(padded).real


rfft = right(
    "rfft",
    lambda v: np.fft.rfft(v),
    out=half_spectrum,
    linear=True,
    transpose=rfft_transpose,
    check={"inputs": vectors(6)},
)


def irfft_length(z, odd):
    return 2 * (z.shape[-1] - 1) + odd


def irfft_pullback(cotangent):
    """Inner frequencies stand for two; the pairing of JAX is Re(sum g t), without conjugation."""
    n = cotangent.size
    doubled = np.full(n // 2 + 1, 2.0, cotangent.dtype)
    doubled[0] = 1
    if n % 2 == 0:
        doubled[-1] = 1
    return doubled * np.conj(np.fft.rfft(cotangent)) / n


half_spectra = st.integers(2, 4).flatmap(lambda n: st.tuples(uniform((n,), np.complex128, 1e3)))
irfft = right(
    "irfft",
    lambda z, *, odd: np.fft.irfft(z, irfft_length(z, odd)),
    out=lambda z, *, odd: ShapeDtypeStruct((irfft_length(z, odd),), np.finfo(z.dtype).dtype),
    jvp=lambda p, t, *, odd: np.fft.irfft(t[0], irfft_length(p[0], odd)),
    vjp=lambda p, ct: irfft_pullback(ct),
    check={"inputs": half_spectra, "static": [{"odd": False}, {"odd": True}]},
)


def packed_transpose(cotangent):
    pulled = irfft_pullback(cotangent)
    return np.stack([pulled.real, -pulled.imag])


irfft_packed = right(
    "irfft-packed",
    lambda z, *, odd: np.fft.irfft(z[0] + 1j * z[1], irfft_length(z, odd)),
    out=lambda z, *, odd: ShapeDtypeStruct((irfft_length(z, odd),), z.dtype),
    linear=True,
    transpose=packed_transpose,
    check={
        "inputs": st.integers(2, 4).flatmap(lambda n: st.tuples(uniform((2, n), DOUBLE, 1e3))),
        "static": [{"odd": False}, {"odd": True}],
    },
)
dct = right(
    "dct",
    lambda x, *, type: scipy.fft.dct(x, type, norm="ortho"),
    "(n)->(n)",
    vectorized=True,
    linear=True,
    transpose=lambda ct, *, type: scipy.fft.idct(ct, type, norm="ortho"),
    check={"static": [{"type": 2}, {"type": 3}], "dtypes": REAL},
)

# Convolutions, sums, selections: linear functions -------------------------------------------------


def circular(a, b):
    return np.fft.irfft(np.fft.rfft(a) * np.fft.rfft(b), a.size)


def circular_transpose(other, cotangent):
    return np.fft.irfft(np.conj(np.fft.rfft(other)) * np.fft.rfft(cotangent), other.size)


circular_convolution = right(
    "circular-convolution",
    circular,
    "(n),(n)->(n)",
    multilinear=("a", "b"),
    transpose={"a": circular_transpose, "b": circular_transpose},
    check={"dtypes": REAL},
)


def correlate(other, cotangent):
    return np.correlate(cotangent, other, mode="valid")


convolution = right(
    "convolution",
    lambda a, b: np.convolve(a, b),
    out=lambda a, b: ShapeDtypeStruct((a.size + b.size - 1,), a.dtype),
    multilinear=("a", "b"),
    transpose={"a": correlate, "b": correlate},
    check={"inputs": vectors(4, 3)},
)


def toeplitz_transpose(x, cotangent):
    rows = np.arange(x.size)
    lags = np.abs(np.subtract.outer(rows, rows)).ravel()
    products = np.outer(cotangent, x).ravel()
    return np.bincount(lags, products, minlength=x.size).astype(x.dtype)


toeplitz = right(
    "toeplitz",
    lambda c, x: scipy.linalg.toeplitz(c) @ x,
    "(n),(n)->(n)",
    multilinear=("c", "x"),
    transpose={"c": toeplitz_transpose, "x": lambda c, ct: scipy.linalg.toeplitz(c) @ ct},
    check={"dtypes": REAL},
)
cumsum = right(
    "cumsum",
    lambda x: np.cumsum(x, axis=-1),
    "(n)->(n)",
    vectorized=True,
    linear=True,
    transpose=lambda ct: np.cumsum(ct[..., ::-1], axis=-1)[..., ::-1],
)
differences = right(
    "differences",
    lambda x: np.diff(x),
    out=lambda x: ShapeDtypeStruct((x.size - 1,), x.dtype),
    linear=True,
    transpose=lambda ct: -np.diff(ct, prepend=0, append=0),
    check={"inputs": vectors(5)},
)
centred = right(
    "centred",
    lambda x: x - x.mean(axis=-1, keepdims=True),
    "(n)->(n)",
    vectorized=True,
    linear=True,
    transpose=lambda ct: ct - ct.mean(axis=-1, keepdims=True),
)


def mean_transpose(cotangent, out):
    out[...] = cotangent / max(out.size, 1)


mean = right(
    "mean", lambda x: x.sum() / max(x.size, 1), "(n)->()", linear=True, transpose=mean_transpose
)
masked_sum = right(
    "masked-sum",
    lambda x, mask: np.sum(x * mask, axis=-1),
    "(n),(n)->()",
    vectorized=True,
    linear="x",
    transpose=lambda mask, ct: mask * ct[..., None],
    check={"dtypes": {"mask": bool}},
)


def gather_transpose(index, cotangent, out):
    out[...] = 0
    np.add.at(out, index, cotangent)


gather = right(
    "gather",
    lambda x, index: x[index],
    "(n),(k)->(k)",
    linear="x",
    transpose=gather_transpose,
    check={"inputs": with_index()},
)
histogram = right(
    "histogram",
    lambda x, index, *, size: np.bincount(index, x, minlength=size).astype(x.dtype),
    out=lambda x, index, *, size: ShapeDtypeStruct((size,), x.dtype),
    linear="x",
    transpose=lambda index, ct: ct[index],
    check={
        "inputs": st.integers(0, 4).flatmap(
            lambda n: st.tuples(
                uniform((n,), DOUBLE, 1e3), hnp.arrays(np.int64, (n,), elements=st.integers(0, 2))
            )
        ),
        "static": [{"size": 3}, {"size": 5}],
    },
)


def interpolation_transpose(x, nodes, cotangent):
    weights = np.stack([np.interp(x, nodes, unit) for unit in np.eye(nodes.size)])
    return weights @ cotangent


def interpolation_slope(x, nodes, values):
    slopes = np.concatenate([[0], np.diff(values) / np.diff(nodes), [0]])
    return slopes[np.searchsorted(nodes, x, side="right")]


interpolation = right(
    "interpolation",
    lambda x, nodes, values: np.interp(x, nodes, values),
    "(k),(n),(n)->(k)",
    linear="values",
    nondiff="nodes",
    compute_dtype=np.float64,
    transpose=interpolation_transpose,
    jvp=lambda p, t: interpolation_slope(*p) * t[0],
    vjp=lambda p, ct: (interpolation_slope(*p) * ct, None, None),
    check={"elements": {"nodes": increasing, "x": st.floats(-1, 6)}, "dtypes": REAL},
)


def smooth_periodic(x, *, passes, out):
    out[...] = x
    for _ in range(passes):
        padded = np.pad(out, 1, mode="wrap")
        out[...] = (padded[:-2] + 2 * out + padded[2:]) / 4


smooth = right(
    "smooth",
    smooth_periodic,
    "(n)->(n)",
    linear=True,
    transpose=lambda ct, *, passes, out: smooth_periodic(ct, passes=passes, out=out),
    check={"static": [{"passes": 1}, {"passes": 3}]},
)


def repeat_into(x, *, k, out):
    out[:] = np.repeat(x, k)


def repeat_transpose(cotangent, *, k, out):
    cotangent.reshape(-1, k).sum(axis=1, out=out)


repeat = right(
    "repeat",
    repeat_into,
    out=lambda x, *, k: ShapeDtypeStruct((k * x.size,), x.dtype),
    linear=True,
    transpose=repeat_transpose,
    check={"inputs": vectors(4), "static": [{"k": 1}, {"k": 3}]},
)

# Vectors to vectors and numbers -------------------------------------------------------------------


def cumprod_jacobian(x):
    made = np.zeros((x.size, x.size), x.dtype)
    for i in range(x.size):
        for j in range(i + 1):
            made[i, j] = np.prod(np.delete(x[: i + 1], j))
    return made


cumprod = right(
    "cumprod",
    lambda x: np.cumprod(x),
    "(n)->(n)",
    jacobian=cumprod_jacobian,
    check={"elements": st.floats(-10, 10)},
)


def sort_vjp(primals, cotangent):
    pulled = np.empty_like(cotangent)
    pulled[np.argsort(primals[0])] = cotangent
    return pulled


sort = right(
    "sort",
    lambda x: np.sort(x),
    "(n)->(n)",
    jvp=lambda p, t: t[0][np.argsort(p[0])],
    vjp=sort_vjp,
    check={"elements": {"x": distinct}, "dtypes": REAL},
)


def softmax_of(x):
    raised = np.exp(x - x.max(axis=-1, keepdims=True, initial=-np.inf))
    return raised / raised.sum(axis=-1, keepdims=True)


def softmax_vjp(primals, cotangent):
    y = softmax_of(primals[0])
    return y * (cotangent - np.sum(y * cotangent, axis=-1, keepdims=True))


softmax = right(
    "softmax",
    softmax_of,
    "(n)->(n)",
    vectorized=True,
    jvp=lambda p, t: softmax_vjp(p, t[0]),  # its Jacobian is symmetric
    vjp=softmax_vjp,
    check={"dtypes": REAL},
)
softmax_in_single = right(
    "softmax-in-single",
    softmax_of,
    "(n)->(n)",
    vectorized=True,
    compute_dtype=np.float32,
    jvp=lambda p, t: softmax_vjp(p, t[0]),
    vjp=softmax_vjp,
    check={"dtypes": REAL},
)
softmax_from_vjp = right(
    "softmax-from-vjp",
    softmax_of,
    "(n)->(n)",
    vectorized=True,
    vjp=softmax_vjp,
    jvp="from-vjp",
    check={"dtypes": REAL},
)
logsumexp = right(
    "logsumexp",
    lambda x: scipy.special.logsumexp(x, axis=-1),
    "(n)->()",
    vectorized=True,
    jvp=lambda p, t: np.sum(softmax_of(p[0]) * t[0], axis=-1),
    vjp=lambda p, ct: softmax_of(p[0]) * ct[..., None],
    check={"dtypes": REAL},
)


def unit_vector(x):
    scaled = x / _not0(np.abs(x).max(initial=0))
    return scaled / _not0(np.sqrt(np.sum(scaled**2)))


norm = right(
    "norm",
    lambda x: scipy.linalg.norm(x) if x.size else x.sum(),
    "(n)->()",
    jvp=lambda p, t: unit_vector(p[0]) @ t[0],
    vjp=lambda p, ct: unit_vector(p[0]) * ct,
    check={"dtypes": REAL},
)


def polynomial_transpose(x, cotangent, out):
    out[...] = cotangent * np.vander(x[None], out.size)[0]


def polynomial_slope(c, x):
    degrees = np.arange(c.size - 1, -1, -1, dtype=c.dtype)
    return np.polyval((c * degrees)[:-1], x).astype(c.dtype)


polynomial = right(
    "polynomial",
    lambda c, x: np.polyval(c, x).astype(c.dtype),
    "(k),()->()",
    linear="c",
    transpose=polynomial_transpose,
    jvp=lambda p, t: polynomial_slope(*p) * t[1],
    vjp=lambda p, ct: (None, polynomial_slope(*p) * ct),
    check={"elements": st.floats(-10, 10)},
)


def model_jacobian(parameters, t):
    amplitude, rate = parameters
    decayed = np.exp(-rate * t)
    return np.stack([decayed, -amplitude * t * decayed], axis=1), None


exponential_model = right(
    "exponential-model",
    lambda parameters, t: parameters[0] * np.exp(-parameters[1] * t),
    "(2),(n)->(n)",
    nondiff="t",
    jacobian=model_jacobian,
    check={"elements": {"parameters": st.floats(-5, 5), "t": st.floats(0, 3)}},
)
complex_step = right(
    "complex-step",
    lambda x: np.sum(x**4 + np.sin(x)),
    "(n)->()",
    jvp="complex-step",
    vjp="from-jvp",
    check={"dtypes": REAL},
)
from_jvp = right(
    "from-jvp",
    lambda x: np.roll(x, 1) * x**2,
    "(n)->(n)",
    jvp=lambda p, t: np.roll(t[0], 1) * p[0] ** 2 + np.roll(p[0], 1) * 2 * p[0] * t[0],
    vjp="from-jvp",
)

# Second derivatives -------------------------------------------------------------------------------


def without(x, *indices):
    """The product of all elements but those."""
    return np.prod(np.delete(x, indices))


def slopes(x):
    return np.array([without(x, i) for i in range(x.size)], x.dtype)


def curvatures(x):
    places = range(x.size)
    rows = [[0 if i == j else without(x, i, j) for j in places] for i in places]
    return np.array(rows, x.dtype).reshape(x.size, x.size)


volume = right(
    "volume",
    lambda x: np.prod(x),
    "(n)->()",
    jvp=lambda p, t: slopes(p[0]) @ t[0],
    vjp=lambda p, ct: slopes(p[0]) * ct,
    jvp_jvp=lambda p, t: p[1][0] @ curvatures(*p[0]) @ t[0][0],
    jvp_vjp=lambda p, ct: ((curvatures(*p[0]) @ p[1][0] * ct,), None),
    vjp_jvp=lambda p, t: curvatures(*p[0]) @ t[0][0] * p[1],
    vjp_vjp=lambda p, cts: ((curvatures(*p[0]) @ cts[0] * p[1],), None),
    check={"elements": st.floats(-10, 10)},
)
cube = right(
    "cube",
    lambda x, *, scale: scale * x**3,
    "(n)->(n)",
    jvp=lambda p, t, *, scale: scale * 3 * p[0] ** 2 * t[0],
    vjp=lambda p, ct, *, scale: scale * 3 * p[0] ** 2 * ct,
    jvp_jvp=lambda p, t, *, scale: scale * 6 * p[0][0] * p[1][0] * t[0][0],
    jvp_vjp=lambda p, ct, *, scale: ((scale * 6 * p[0][0] * p[1][0] * ct,), None),
    vjp_jvp=lambda p, t, *, scale: (scale * 6 * p[0][0] * p[1] * t[0][0],),
    vjp_vjp=lambda p, cts, *, scale: ((scale * 6 * p[0][0] * p[1] * cts[0],), None),
    check={"static": [{"scale": 1.0}, {"scale": -2.5}]},
)

# Several results, pytrees -------------------------------------------------------------------------

sincos = right(
    "sincos",
    lambda x: (np.sin(x), np.cos(x)),
    "()->(),()",
    vectorized=True,
    partials=lambda x: (jnp.cos(x), -jnp.sin(x)),
    check={"dtypes": REAL},
)


def polar_jvp(primals, tangents):
    (r, angle), (t_r, t_angle) = primals, tangents
    c, s = np.cos(angle), np.sin(angle)
    return c * t_r - r * s * t_angle, s * t_r + r * c * t_angle


def polar_vjp(primals, cotangents):
    (r, angle), (ct_x, ct_y) = primals, cotangents
    c, s = np.cos(angle), np.sin(angle)
    return c * ct_x + s * ct_y, r * (c * ct_y - s * ct_x)


polar = right(
    "polar",
    lambda r, angle: (r * np.cos(angle), r * np.sin(angle)),
    "(),()->(),()",
    vectorized=True,
    jvp=polar_jvp,
    vjp=polar_vjp,
    check={"dtypes": REAL},
)
moments = right(
    "moments",
    lambda x: (x.sum(axis=-1), (x**2).sum(axis=-1)),
    "(n)->(),()",
    vectorized=True,
    jvp=lambda p, t: (t[0].sum(axis=-1), 2 * (p[0] * t[0]).sum(axis=-1)),
    vjp=lambda p, cts: cts[0][..., None] + 2 * p[0] * cts[1][..., None],
)


def peak_vjp(primals, cotangents):
    (x, floor), ct = primals, cotangents[0]
    pulled = np.zeros_like(x)
    pulled[x.argmax()] = ct if x.max() > floor else 0
    return pulled, None


def peak_jvp(primals, tangents):
    (x, floor), t_x = primals, tangents[0]
    return (t_x[x.argmax()] if x.max() > floor else np.zeros_like(t_x[0])), None


peak = right(
    "peak",
    lambda x, floor: (max(x.max(), floor), x.argmax()),
    "(n),()->(),()",
    dtype=(np.float64, np.int64),
    nondiff="floor",
    jvp=peak_jvp,
    vjp=peak_vjp,
    check={"elements": {"x": distinct}, "dtypes": DOUBLE},
)


def observe_vjp(primals, cotangents):
    (state,) = primals
    ct_v = (
        cotangents["energy"] * state["mass"] * state["v"] + cotangents["momentum"] * state["mass"]
    )
    ct_mass = cotangents["energy"] * np.sum(state["v"] ** 2) / 2
    return {"mass": ct_mass + np.sum(cotangents["momentum"] * state["v"]), "v": ct_v}


def observe_jvp(primals, tangents):
    (state,), (t,) = primals, tangents
    energy = t["mass"] * np.sum(state["v"] ** 2) / 2 + state["mass"] * np.sum(state["v"] * t["v"])
    return {"energy": energy, "momentum": t["mass"] * state["v"] + state["mass"] * t["v"]}


observe = right(
    "observe-dict",
    lambda state: {
        "energy": state["mass"] * np.sum(state["v"] ** 2) / 2,
        "momentum": state["mass"] * state["v"],
    },
    out=lambda state: {"energy": ShapeDtypeStruct((), state["v"].dtype), "momentum": state["v"]},
    jvp=observe_jvp,
    vjp=observe_vjp,
    check={
        "inputs": vectors(4).map(lambda vs: ({"mass": np.asarray(vs[0][0] + 2.0), "v": vs[0]},))
    },
)


def layer_jvp(primals, tangents):
    ((w, b), x), ((t_w, t_b), t_x) = primals, tangents
    return (t_w @ x + w @ t_x + t_b) / np.cosh(w @ x + b) ** 2


def layer_vjp(primals, cotangent):
    (w, b), x = primals
    ct = cotangent / np.cosh(w @ x + b) ** 2
    return (np.outer(ct, x), ct), w.T @ ct


layer = right(
    "layer-of-tuple",
    lambda weights, x: np.tanh(weights[0] @ x + weights[1]),
    "(m,n),(m),(n)->(m)",
    jvp=layer_jvp,
    vjp=layer_vjp,
    check={
        "inputs": st.tuples(st.integers(1, 3), st.integers(1, 3)).flatmap(
            lambda mn: st.tuples(
                st.tuples(uniform(mn, DOUBLE), uniform(mn[:1], DOUBLE)), uniform(mn[1:], DOUBLE)
            )
        )
    },
)
bin_number = right(
    "bin-number",
    lambda x, edges: np.searchsorted(edges, x),
    "(k),(n)->(k)",
    dtype=np.int64,
    check={"elements": {"edges": increasing}, "dtypes": REAL},
)

# Complex numbers ----------------------------------------------------------------------------------

complex_exp = right(
    "complex-exp", np.exp, partials=jnp.exp, check={"dtypes": COMPLEX, "elements": disc}
)
complex_square = but(square, name="complex-square", check={"dtypes": COMPLEX})
conjugate = right(
    "conjugate",
    lambda z: np.conj(z),
    "()->()",
    vectorized=True,
    jvp=lambda p, t: np.conj(t[0]),
    vjp=lambda p, ct: np.conj(ct),
    check={"dtypes": COMPLEX},
)
modulus = right(
    "modulus",
    np.abs,
    jvp=lambda p, t: (np.conj(p[0]) / _not0(np.abs(p[0])) * t[0]).real,
    vjp=lambda p, ct: np.conj(p[0]) / _not0(np.abs(p[0])) * ct,
    check={"dtypes": COMPLEX},
)
real_part = right(
    "real-part",
    lambda z: z.real,
    "()->()",
    dtype=np.float64,
    vectorized=True,
    jvp=lambda p, t: t[0].real,
    vjp=lambda p, ct: ct.astype(np.result_type(ct, 1j)),
    check={"dtypes": np.complex128},
)
imaginary_part = right(
    "imaginary-part",
    lambda z: z.imag,
    "()->()",
    dtype=np.float64,
    vectorized=True,
    jvp=lambda p, t: t[0].imag,
    vjp=lambda p, ct: -1j * ct,
    check={"dtypes": np.complex128},
)
energy = right(
    "energy",
    lambda z: np.sum(np.abs(z) ** 2, axis=-1),
    "(n)->()",
    dtype=np.float64,
    vectorized=True,
    jvp=lambda p, t: 2 * np.sum(np.conj(p[0]) * t[0], axis=-1).real,
    vjp=lambda p, ct: 2 * np.conj(p[0]) * ct[..., None],
    check={"dtypes": np.complex128},
)
spectrum = right(
    "power-spectrum",
    lambda z: np.abs(np.fft.fft(z)) ** 2,
    "(n)->(n)",
    dtype=np.float64,
    jvp=lambda p, t: 2 * (np.conj(np.fft.fft(p[0])) * np.fft.fft(t[0])).real,
    vjp=lambda p, ct: 2 * np.fft.fft(ct * np.conj(np.fft.fft(p[0]))),
    check={"dtypes": np.complex128},
)
phase = right(
    "phase-factor",
    lambda x: np.exp(1j * x),
    "()->()",
    dtype=np.complex128,
    vectorized=True,
    jvp=lambda p, t: 1j * np.exp(1j * p[0]) * t[0],
    vjp=lambda p, ct: (1j * np.exp(1j * p[0]) * ct).real,
    check={"dtypes": DOUBLE},
)
holomorphic = right(
    "holomorphic",
    lambda z, w: z**2 * np.exp(w),
    "(),()->()",
    vectorized=True,
    partials=(lambda z, w: 2 * z * jnp.exp(w), lambda z, w: z**2 * jnp.exp(w)),
    check={"dtypes": COMPLEX, "elements": disc},
)

# Scales and precisions ----------------------------------------------------------------------------

H, C, K = 6.62607015e-34, 2.99792458e8, 1.380649e-23


def planck_of(frequency, temperature):
    return 2 * H * frequency**3 / C**2 / np.expm1(H * frequency / (K * temperature))


def planck_slopes(frequency, temperature):
    u = H * frequency / (K * temperature)
    brightness = planck_of(frequency, temperature)
    saturation = -u / np.expm1(-u)  # u eᵘ / (eᵘ - 1)
    return brightness * (3 - saturation) / frequency, brightness * saturation / temperature


planck = right(
    "planck",
    planck_of,
    "(),()->()",
    vectorized=True,
    compute_dtype=np.float64,
    jvp=lambda p, t: planck_slopes(*p)[0] * t[0] + planck_slopes(*p)[1] * t[1],
    vjp=lambda p, ct: tuple(slope * ct for slope in planck_slopes(*p)),
    check={
        "elements": {"frequency": st.floats(1e9, 1e12), "temperature": st.floats(2.7, 1e4)},
        "dtypes": DOUBLE,
    },
)
tiny = right(
    "tiny",
    lambda x: 1e-8 * np.tanh(x),
    "()->()",
    vectorized=True,
    jvp=lambda p, t: 1e-8 * (1 - np.tanh(p[0]) ** 2) * t[0],
    vjp=lambda p, ct: 1e-8 * (1 - np.tanh(p[0]) ** 2) * ct,
    check={"dtypes": REAL},
)
huge = right(
    "huge",
    lambda x: 1e8 * (2 + np.cos(x)),
    "()->()",
    vectorized=True,
    jvp=lambda p, t: -1e8 * np.sin(p[0]) * t[0],
    vjp=lambda p, ct: -1e8 * np.sin(p[0]) * ct,
    check={"dtypes": REAL},
)
mixed_scales = right(
    "mixed-scales",
    lambda mass, length: mass * length + np.sin(mass / 1e8) * np.exp(length * 1e8),
    "(),()->()",
    vectorized=True,
    jvp=lambda p, t: (
        (p[1] + np.cos(p[0] / 1e8) / 1e8 * np.exp(p[1] * 1e8)) * t[0]
        + (p[0] + np.sin(p[0] / 1e8) * 1e8 * np.exp(p[1] * 1e8)) * t[1]
    ),
    vjp=lambda p, ct: (
        (p[1] + np.cos(p[0] / 1e8) / 1e8 * np.exp(p[1] * 1e8)) * ct,
        (p[0] + np.sin(p[0] / 1e8) * 1e8 * np.exp(p[1] * 1e8)) * ct,
    ),
    check={
        "elements": {"mass": st.floats(1e7, 1e9), "length": st.floats(1e-9, 3e-8)},
        "dtypes": DOUBLE,
    },
)


def only_single(x):
    if x.dtype != np.float32:
        raise TypeError(f"single precision only, got {x.dtype.name}")
    return np.sin(x)


single_only = right(
    "single-only",
    only_single,
    "(n)->(n)",
    jvp=lambda p, t: np.cos(p[0]) * t[0],
    vjp=lambda p, ct: np.cos(p[0]) * ct,
    check={"dtypes": np.float32},
)


def only_double(x):
    assert x.dtype == np.float64
    return np.cumsum(x**2)


double_only = right(
    "double-only",
    only_double,
    "(n)->(n)",
    compute_dtype=np.float64,
    jvp=lambda p, t: np.cumsum(2 * p[0] * t[0]),
    vjp=lambda p, ct: 2 * p[0] * np.cumsum(ct[::-1])[::-1],
    check={"dtypes": REAL},
)

# Other declarations -------------------------------------------------------------------------------

MATMUL = matmul.make()


def matvec_mapped(size, batched, a, x):
    """One product of matrices where only x is mapped."""
    if batched == [False, True]:
        return MATMUL(a, x.T).T, True
    a, x = (v if b else jnp.broadcast_to(v, (size, *v.shape)) for v, b in zip((a, x), batched))
    return MATMUL(a, x[..., None])[..., 0], True


matvec_vmap = Right(
    "matvec-vmap", replace(matvec.make, rules={**matvec.make.rules, "vmap": matvec_mapped})
)
extremes = right(
    "extremes-fixed-out",
    lambda x: np.array([x.min(), x.max()]),
    out=ShapeDtypeStruct((2,), np.float64),
    jvp=lambda p, t: np.array([t[0][p[0].argmin()], t[0][p[0].argmax()]]),
    check={"inputs": st.integers(1, 4).flatmap(lambda n: st.tuples(distinct((n,), DOUBLE)))},
)
infer = right(
    "outer-inferred",
    lambda a, b: np.multiply.outer(a, b),
    out="infer",
    multilinear=("a", "b"),
    transpose={"a": lambda b, ct: ct @ b, "b": lambda a, ct: ct.T @ a},
    check={"inputs": vectors(3, 4)},
)


@jaxbind.bind("(n),()->(n)")
def decay(t, rate):
    return np.exp(-rate * t)


@decay.def_vjp
def _(primals, cotangent):
    t, rate = primals
    weighted = np.exp(-rate * t) * cotangent
    return -rate * weighted, -np.sum(t * weighted)


@decay.def_jvp
def _(primals, tangents):
    (t, rate), (t_t, t_rate) = primals, tangents
    return -np.exp(-rate * t) * (rate * t_t + t * t_rate)


#: as users write it; the same binding each time, so that programs can name it (`export`)
importable = Right(
    "importable", lambda: decay, {"elements": {"t": st.floats(0, 5), "rate": st.floats(-3, 3)}}
)

# linear over the real numbers is linear enough for JAX, whose convention transposes both
conjugate_linear = right(
    "conjugate-linear",
    np.conj,
    "(n)->(n)",
    linear=True,
    transpose=lambda ct: np.conj(ct),
    check={"dtypes": COMPLEX},
)
real_part_linear = right(
    "real-part-linear",
    lambda x: x.real.astype(x.dtype),
    "(n)->(n)",
    linear=True,
    transpose=lambda ct: ct.real.astype(ct.dtype),
    check={"dtypes": COMPLEX},
)

in_place = right(
    "in-place",
    lambda x, out: np.multiply(2, x, out=out),
    "(n)->(n)",
    linear=True,
    aliases={"x": 0},
    transpose=lambda ct: 2 * ct,
)
cancelling = right(
    "cancelling",
    lambda x: (1e3 + x) ** 2 - 1e6,
    "()->()",
    vectorized=True,
    jvp=lambda p, t: 2 * (1e3 + p[0]) * t[0],
    vjp=lambda p, ct: 2 * (1e3 + p[0]) * ct,
)
hypot_by_rules = right(
    "hypot-by-rules",
    np.hypot,
    jvp=lambda p, t: (p[0] * t[0] + p[1] * t[1]) / np.hypot(*p),
    vjp=lambda p, ct: (p[0] * ct / np.hypot(*p), p[1] * ct / np.hypot(*p)),
    check={"dtypes": REAL},
)
small_cancelling = right(
    "small-and-cancelling",
    lambda x: np.log(np.cosh(x)),
    "()->()",
    vectorized=True,
    jvp=lambda p, t: np.tanh(p[0]) * t[0],
    vjp=lambda p, ct: np.tanh(p[0]) * ct,
    check={"elements": st.floats(0, 1)},
)
column = right(
    "radiating-column",
    lambda behind, source, depth: behind * np.exp(-depth) + source * (1 - np.exp(-depth)),
    "(),(),()->()",
    vectorized=True,
    jvp=lambda p, t: (
        np.exp(-p[2]) * t[0] + (1 - np.exp(-p[2])) * t[1] + (p[1] - p[0]) * np.exp(-p[2]) * t[2]
    ),
    vjp=lambda p, ct: (
        np.exp(-p[2]) * ct,
        (1 - np.exp(-p[2])) * ct,
        (p[1] - p[0]) * np.exp(-p[2]) * ct,
    ),
    check={"elements": {"depth": st.floats(0, 3)}, "dtypes": REAL},
)
log_of_masses = right(
    "log-of-small-numbers",
    np.log,
    "()->()",
    vectorized=True,
    jvp=lambda p, t: t[0] / p[0],
    vjp=lambda p, ct: ct / p[0],
    check={"elements": st.floats(1e-31, 1e-29), "dtypes": DOUBLE},
)
brain_float = right(
    "bfloat16",
    lambda x: x * x,
    "(n)->(n)",
    jvp=lambda p, t: 2 * p[0] * t[0],
    vjp=lambda p, ct: 2 * p[0] * ct,
    check={"dtypes": jnp.bfloat16},
)

RIGHT: tuple[Right, ...] = tuple(
    each for each in list(globals().values()) if isinstance(each, Right)
)
