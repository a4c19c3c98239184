"""Bindings of every kind, with the derivatives that such a function has.

Where the same function in jax.numpy is longer than a line, it stands beside the binding as
``..._twin``; `reference` has the table of all.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from comparing import normal

import jaxbind

# Elementwise --------------------------------------------------------------------------------------


@jaxbind.bind("(),()->()", vectorized=True)
def product(x1, x2):
    return x1 * x2**2


@product.def_jvp
def _(primals, tangents):
    (x1, x2), (dx1, dx2) = primals, tangents
    return x2**2 * dx1 + 2 * x1 * x2 * dx2


@product.def_vjp
def _(primals, cotangent):
    x1, x2 = primals
    return x2**2 * cotangent, 2 * x1 * x2 * cotangent


@jaxbind.bind("(),()->()")
def looped_product(x1, x2):
    return x1 * x2**2


looped_product.def_jvp(lambda p, t: p[1] ** 2 * t[0] + 2 * p[0] * p[1] * t[1])
looped_product.def_vjp(lambda p, ct: (p[1] ** 2 * ct, 2 * p[0] * p[1] * ct))


@jaxbind.bind("(),()->()", vectorized=True)
def shifted(x, unused, *, by=1.0):
    """Says less than it could: its result has the loop dimensions of ``x`` only."""
    del unused
    return x**2 + by


shifted.def_jvp(lambda p, t: 2 * p[0] * t[0])
shifted.def_vjp(lambda p, ct: (2 * p[0] * ct, np.zeros_like(p[1])))


@jaxbind.bind("(),()->()", vectorized=True)
def decay(k, x, *, rate):
    return np.exp(-rate * k * x)


decay_k, decay_x = decay.def_partials(
    lambda k, x, *, rate: -rate * x * np.exp(-rate * k * x),
    lambda k, x, *, rate: -rate * k * np.exp(-rate * k * x),
    traced=False,
)
decay_k.def_partials(
    lambda k, x, *, rate: (rate * x) ** 2 * np.exp(-rate * k * x),
    lambda k, x, *, rate: (rate**2 * k * x - rate) * np.exp(-rate * k * x),
    traced=False,
)
decay_x.def_partials(
    lambda k, x, *, rate: (rate**2 * k * x - rate) * np.exp(-rate * k * x),
    lambda k, x, *, rate: (rate * k) ** 2 * np.exp(-rate * k * x),
    traced=False,
)


@jaxbind.bind("()->()")
def sine(x):
    return np.sin(x)


@jaxbind.bind("()->()", vectorized=True)
def cosine(x):
    return np.cos(x)


sine.def_partials(cosine)
cosine.def_partials(lambda x: -sine(x))


@jaxbind.bind("(),()->(),()")
def polar(r, t):
    return r * np.cos(t), r * np.sin(t)


polar.def_partials(
    lambda r, t: (jnp.cos(t), jnp.sin(t)), lambda r, t: (-polar(r, t)[1], polar(r, t)[0])
)


@jaxbind.bind("(),()->()")
def power(x, k):
    return x**k


power.def_partials(lambda x, k: k * power(x, k - 1), None)

hypot = jaxbind.bind(np.hypot)
hypot.def_partials(lambda x, y: x / hypot(x, y), lambda x, y: y / hypot(x, y))


@jaxbind.bind("(),(),()->()")
def summed(*terms):
    return sum(terms[1:], start=np.sin(terms[0]))


summed.def_jvp(lambda p, t: np.cos(p[0]) * t[0] + t[1] + t[2])
summed.def_vjp(lambda p, ct: (np.cos(p[0]) * ct, ct, ct))


@jaxbind.bind("(n),(n)->()", nondiff="weights")
def weigh(x, weights):
    return np.sum(weights * x**2)


weigh.def_jvp(lambda p, t: np.sum(2 * p[1] * p[0] * t[0]))
weigh.def_vjp(lambda p, ct: (2 * p[1] * p[0] * ct, None))


@jaxbind.bind("(n,m)->(m)", order="F")
def columns(a):
    assert a.flags.f_contiguous
    return np.sum(a**2, axis=0)


columns.def_jvp(lambda p, t: np.sum(2 * p[0] * t[0], axis=0))
columns.def_vjp(lambda p, ct: (np.asfortranarray(2 * p[0] * ct),))


@jaxbind.bind("(n)->(n)", compute_dtype=np.float64)
def wide(x):
    assert x.dtype == np.float64
    return x**3


@wide.def_jvp
def _(primals, tangents):
    assert primals[0].dtype == tangents[0].dtype == np.float64
    return 3 * primals[0] ** 2 * tangents[0]


@wide.def_vjp
def _(primals, cotangent):
    assert primals[0].dtype == cotangent.dtype == np.float64
    return 3 * primals[0] ** 2 * cotangent


# Linear and multilinear ---------------------------------------------------------------------------


@jaxbind.bind("(m,n),(n)->(m)", multilinear=("a", "x"))
def matvec(a, x):
    return a @ x


@matvec.def_transpose("a")
def _(x, cotangent):
    return np.outer(cotangent, x)


@matvec.def_transpose("x")
def _(a, cotangent):
    return a.T @ cotangent


@jaxbind.bind("(m,n),(n),(n)->(m)", multilinear=("m", "a", "b"))
def triple(m, a, b):
    return m @ (a * b)


triple.def_transpose("m")(lambda a, b, ct: np.outer(ct, a * b))
triple.def_transpose("a")(lambda m, b, ct: (m.T @ ct) * b)
triple.def_transpose("b")(lambda m, a, ct: (m.T @ ct) * a)


@jaxbind.bind(out=lambda x, *, reverse=False: x, linear=True)
def cumulate(x, *, reverse=False, out):
    np.cumsum(x[::-1] if reverse else x, out=out[::-1] if reverse else out)


@cumulate.def_transpose
def _(cotangent, *, reverse, out):
    np.cumsum(cotangent if reverse else cotangent[::-1], out=out if reverse else out[::-1])


def cumulate_twin(x, *, reverse=False):
    return jnp.cumsum(x[::-1])[::-1] if reverse else jnp.cumsum(x)


@jaxbind.bind("(n)->(n),()", linear=True)
def parts(x):
    return x[::-1].copy(), np.sum(x)


parts.def_transpose(lambda cts: cts[0][::-1] + cts[1])


@jaxbind.bind("(n),(k)->(k)", linear="x")
def gather(x, index):
    return x[index]


@gather.def_transpose
def _(index, cotangent, *, out):
    out[:] = 0
    np.add.at(out, index, cotangent)


class Pair(NamedTuple):
    u: Any
    v: Any


@jaxbind.bind(out=lambda pair, scale: {"sum": pair.u, "first": pair.v[0]}, linear="pair")
def combine(pair, scale):
    """Jointly linear in the leaves of a pytree; no derivative in ``scale``, an integer."""
    u, (v,) = pair
    return {"sum": u + scale * np.sum(v), "first": scale * v}


@combine.def_transpose
def _(scale, cts):
    return Pair(cts["sum"], (scale * (np.sum(cts["sum"]) + cts["first"]),))


def combine_twin(pair, scale):
    return {"sum": pair.u + scale * jnp.sum(pair.v[0]), "first": scale * pair.v[0]}


# Linear in some arguments, with rules of second order for what is left ----------------------------


@jaxbind.bind("(n),(n),()->(n)", linear=("x", "w"))
def blend(x, w, c, *, power=1):
    """``x cos(c)**power + w sin(c)``, jointly linear in x and w."""
    return x * np.cos(c) ** power + w * np.sin(c)


def _weights(c, power):
    return np.cos(c) ** power, np.sin(c)


def _slopes(c, power):
    return -power * np.cos(c) ** (power - 1) * np.sin(c), np.cos(c)


def _bends(c, power):
    inner = (power - 1) * np.cos(c) ** (power - 2) * np.sin(c) ** 2 - np.cos(c) ** power
    return power * inner, -np.sin(c)


@blend.def_transpose
def blend_transpose(c, ct, *, power):
    a, b = _weights(c, power)
    return a * ct, b * ct


@blend.def_jvp
def blend_jvp(primals, tangents, *, power):
    (x, w, c), (nothing, nothing_either, dc) = primals, tangents
    assert nothing is None and nothing_either is None
    a, b = _slopes(c, power)
    return (a * x + b * w) * dc


@blend.def_vjp
def blend_vjp(primals, ct, *, power):
    x, w, c = primals
    a, b = _slopes(c, power)
    return None, None, np.sum((a * x + b * w) * ct)


@blend_transpose.def_jvp
def _(primals, tangents, *, power):
    (c, ct), (dc, nothing) = primals, tangents
    assert nothing is None
    a, b = _slopes(c, power)
    return a * ct * dc, b * ct * dc


@blend_transpose.def_vjp
def _(primals, cotangents, *, power):
    (c, ct), (u, v) = primals, cotangents
    a, b = _slopes(c, power)
    return np.sum((a * u + b * v) * ct), None


@blend_jvp.def_jvp
def _(primals, tangents, *, power):
    ((x, w, c), (_, _, t)), ((dx, dw, dc), nothing) = primals, tangents
    assert nothing is None
    (a, b), (aa, bb) = _slopes(c, power), _bends(c, power)
    return (a * dx + b * dw + (aa * x + bb * w) * dc) * t


@blend_jvp.def_vjp
def _(primals, ct, *, power):
    (x, w, c), (_, _, t) = primals
    (a, b), (aa, bb) = _slopes(c, power), _bends(c, power)
    return (a * t * ct, b * t * ct, np.sum((aa * x + bb * w) * ct) * t), None


@blend_vjp.def_jvp
def _(primals, tangents, *, power):
    ((x, w, c), ct), ((dx, dw, dc), nothing) = primals, tangents
    assert nothing is None
    (a, b), (aa, bb) = _slopes(c, power), _bends(c, power)
    return None, None, np.sum((a * dx + b * dw + (aa * x + bb * w) * dc) * ct)


@blend_vjp.def_vjp
def _(primals, cotangents, *, power):
    ((x, w, c), ct), (nothing, nothing_either, u) = primals, cotangents
    assert nothing is None and nothing_either is None
    (a, b), (aa, bb) = _slopes(c, power), _bends(c, power)
    return (a * ct * u, b * ct * u, np.sum((aa * x + bb * w) * ct) * u), None


def blend_twin(x, w, c, *, power=1):
    return x * jnp.cos(c) ** power + w * jnp.sin(c)


# Derivatives of derivatives -----------------------------------------------------------------------


@jaxbind.bind("(n)->(n)")
def cube(x, *, scale=1.0):
    return scale * x**3


@cube.def_jvp
def cube_jvp(primals, tangents, *, scale):
    return scale * 3 * primals[0] ** 2 * tangents[0]


@cube.def_vjp
def cube_vjp(primals, cotangent, *, scale):
    return scale * 3 * primals[0] ** 2 * cotangent


@cube_jvp.def_jvp
def _(primals, tangents, *, scale):
    ((x,), (t,)), ((dx,), nothing) = primals, tangents
    assert nothing is None
    return scale * 6 * x * dx * t


@cube_jvp.def_vjp
def _(primals, cotangent, *, scale):
    (x,), (t,) = primals
    return (scale * 6 * x * t * cotangent,), None


@cube_vjp.def_jvp
def _(primals, tangents, *, scale):
    ((x,), ct), ((dx,), nothing) = primals, tangents
    assert nothing is None
    return (scale * 6 * x * dx * ct,)


@cube_vjp.def_vjp
def _(primals, cotangents, *, scale):
    ((x,), ct), (u,) = primals, cotangents
    return (scale * 6 * x * ct * u,), None


@jaxbind.bind("(n),()->(n)")
def surface(x, c):
    return x**2 * np.sin(c)


@surface.def_jvp
def surface_jvp(primals, tangents):
    (x, c), (dx, dc) = primals, tangents
    return 2 * x * np.sin(c) * dx + x**2 * np.cos(c) * dc


@surface.def_vjp
def surface_vjp(primals, ct, *, wrt):
    x, c = primals
    return (
        2 * x * np.sin(c) * ct if wrt[0] else None,
        np.sum(x**2 * np.cos(c) * ct) if "c" in wrt else None,
    )


def _surface_hessian(x, c, dx, dc, t, s):
    """Second differential of x² sin(c), along (dx, dc) and (t, s)."""
    cross = 2 * x * np.cos(c)
    return 2 * np.sin(c) * dx * t + cross * (dx * s + dc * t) - x**2 * np.sin(c) * dc * s


@surface_jvp.def_jvp
def _(primals, tangents):
    ((x, c), (t, s)), ((dx, dc), nothing) = primals, tangents
    assert nothing is None
    return _surface_hessian(x, c, dx, dc, t, s)


@surface_jvp.def_vjp
def _(primals, ct):
    (x, c), (t, s) = primals
    return (
        (
            _surface_hessian(x, c, 1, 0, t, s) * ct,
            np.sum(_surface_hessian(x, c, 0, 1, t, s) * ct),
        ),
        None,
    )


@surface_vjp.def_jvp
def _(primals, tangents):
    ((x, c), ct), ((dx, dc), nothing) = primals, tangents
    assert nothing is None
    return (
        _surface_hessian(x, c, dx, dc, 1, 0) * ct,
        np.sum(_surface_hessian(x, c, dx, dc, 0, 1) * ct),
    )


@surface_vjp.def_vjp
def _(primals, cotangents):
    ((x, c), ct), (u, v) = primals, cotangents
    u = 0 if u is None else u  # the cotangent was not wanted
    v = 0 if v is None else v
    return (
        (
            _surface_hessian(x, c, 1, 0, u, v) * ct,
            np.sum(_surface_hessian(x, c, 0, 1, u, v) * ct),
        ),
        None,
    )


# Several results, integers among operands and results ---------------------------------------------


@jaxbind.bind("(n),(),()->(),(),(n)", dtype=(float, int, float))
def pick(x, shift, k):
    return np.sum(np.sin(x + shift)), np.argmax(x), x * k


@pick.def_jvp
def _(primals, tangents):
    (x, shift, k), (dx, dshift, dk) = primals, tangents
    assert dk is None
    return np.sum(np.cos(x + shift) * (dx + dshift)), None, dx * k


@pick.def_vjp
def _(primals, cotangents, *, wrt):
    (x, shift, k), (c0, c1, c2) = primals, cotangents
    assert c1 is None and not wrt[2] and "k" not in wrt
    inner = c0 * np.cos(x + shift)
    return inner + c2 * k if wrt[0] else None, np.sum(inner) if "shift" in wrt else None, None


def pick_twin(x, shift, k):
    return jnp.sum(jnp.sin(x + shift)), jnp.argmax(x), x * k


def pick_operands(rng):
    return normal(rng, (4,)), normal(rng), jnp.asarray(3)


# Pytrees in and out -------------------------------------------------------------------------------


def _mix_shapes(point, extra):
    return {"s": point.u, "rest": (extra["w"], [jax.ShapeDtypeStruct((), bool)])}


@jaxbind.bind(out=_mix_shapes)
def mix(point, extra):
    u, (v, _) = point
    rest = np.sum(v) * extra["w"], [np.asarray(np.sum(u) > 0)]
    return {"s": u * v, "rest": rest}


@mix.def_vjp
def _(primals, cotangents):
    ((u, (v, _)), extra), s, (r, [flag]) = primals, cotangents["s"], cotangents["rest"]
    assert flag is None
    dv = s * u + np.sum(r * extra["w"])
    return Pair(s * v, (dv, None)), {"w": np.sum(v) * r, "skip": None}


@mix.def_jvp
def _(primals, tangents):
    ((u, (v, _)), extra), ((du, (dv, nothing)), dextra) = primals, tangents
    assert nothing is None and dextra["skip"] is None
    rest = np.sum(dv) * extra["w"] + np.sum(v) * dextra["w"]
    return {"s": du * v + u * dv, "rest": (rest, [None])}


def mix_twin(point, extra):
    u, (v, _) = point
    return {"s": u * v, "rest": (jnp.sum(v) * extra["w"], [jnp.sum(u) > 0])}


def mix_operands(rng):
    u, v, w = (normal(rng, (3,)) for _ in range(3))
    return Pair(u, (v, jnp.arange(2))), {"w": w, "skip": None}


# Jacobians, solvers -------------------------------------------------------------------------------


@jaxbind.bind("(n),()->(n)")
def swirl(x, c):
    return np.roll(x, 1) * np.sin(c * x)


@swirl.def_jacobian
def swirl_jacobian(x, c):
    n = len(x)
    roll = np.roll(np.eye(n), 1, axis=0)
    jacobian = roll * np.sin(c * x)[:, None] + np.diag(np.roll(x, 1) * c * np.cos(c * x))
    return jacobian, np.roll(x, 1) * x * np.cos(c * x)


def swirl_twin(x, c):
    return jnp.roll(x, 1) * jnp.sin(c * x)


@jaxbind.bind("(n)->(n),()")
def quadratic(x):
    return x**2, np.sum(x) ** 3


@quadratic.def_jacobian(traced=True)
def _(x):
    return jnp.diag(2 * x), jnp.full_like(x, 3 * jnp.sum(x) ** 2)


@jaxbind.bind("(n,n),(n)->(n)")
def solve(a, b):
    return np.linalg.solve(a, b)


@solve.def_jvp(traced=True)
def _(primals, tangents):
    (a, b), (da, db) = primals, tangents
    return solve(a, db - da @ solve(a, b))


@solve.def_vjp(traced=True)
def _(primals, cotangent):
    a, b = primals
    u = solve(a.T, cotangent)
    return -jnp.outer(u, solve(a, b)), u


def well_conditioned(rng):
    return normal(rng, (3, 3)) + 4 * jnp.eye(3), normal(rng, (3,))


@jaxbind.bind("(n),(n)->(n)")
def traced_forward(x, y):
    """Only a traced pushforward: JAX transposes it by itself."""
    return x * np.tanh(y)


@traced_forward.def_jvp(traced=True)
def _(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    return jnp.tanh(y) * dx + x * (1 - jnp.tanh(y) ** 2) * dy


# Derivatives made from others ---------------------------------------------------------------------


def _bump(x, c):
    return c * x**2 + np.exp(x)


def bump_twin(x, c):
    return c * x**2 + jnp.exp(x)


differenced = jaxbind.bind(_bump, "(n),()->(n)", name="differenced")
differenced.def_jvp("finite-difference")
differenced.def_vjp("from-jvp")

stepped = jaxbind.bind(_bump, "(n),()->(n)", name="stepped")
stepped.def_jvp("complex-step")
stepped.def_vjp("from-jvp")

row_by_row = jaxbind.bind(_bump, "(n),()->(n)", name="row_by_row")
row_by_row.def_jvp("from-vjp")
row_by_row.def_vjp(lambda p, ct: ((2 * p[1] * p[0] + np.exp(p[0])) * ct, np.sum(p[0] ** 2 * ct)))

column_by_column = jaxbind.bind(_bump, "(n),()->(n)", name="column_by_column")
column_by_column.def_jvp(lambda p, t: (2 * p[1] * p[0] + np.exp(p[0])) * t[0] + p[0] ** 2 * t[1])
column_by_column.def_vjp("from-jvp")


# Complex: JAX's transpose has no conjugation ------------------------------------------------------


@jaxbind.bind("(n)->(n)", linear=True)
def fourier(x):
    return np.fft.fft(x)


fourier.def_transpose(lambda cotangent: np.fft.fft(cotangent))  # F is symmetric


def _half(x, *, n):
    return jax.ShapeDtypeStruct((n // 2 + 1,), np.result_type(x.dtype, np.complex64))


@jaxbind.bind(out=_half, linear=True)
def real_fourier(x, *, n):
    return np.fft.rfft(x, n)


@real_fourier.def_transpose
def _(cotangent, *, n):
    """Real operand, complex result: the real part of the transposed matrix's product."""
    padded = np.zeros(n, cotangent.dtype)
    padded[: n // 2 + 1] = cotangent
    return np.fft.fft(padded).real


@jaxbind.bind(out=lambda z, *, n: jax.ShapeDtypeStruct((n,), jnp.finfo(z.dtype).dtype), linear=True)
def inverse_real_fourier(z, *, n):
    return np.fft.irfft(z, n)


@inverse_real_fourier.def_transpose
def _(cotangent, *, n):
    """Complex operand, real result: all frequencies but the first (and n/2) stand for two."""
    twice = np.full(n // 2 + 1, 2.0)
    twice[0] = 1
    if n % 2 == 0:
        twice[-1] = 1
    return (twice / n * np.fft.rfft(cotangent)).conj()


@jaxbind.bind("(),()->()", vectorized=True)
def analytic(z, w):
    return z**2 * np.exp(w)


analytic.def_partials(lambda z, w: 2 * z * jnp.exp(w), lambda z, w: z**2 * jnp.exp(w))


@jaxbind.bind("(n)->()", dtype=float)
def energy(z):
    return np.sum(np.abs(z) ** 2)


energy.def_jvp(lambda p, t: np.sum(2 * (p[0].conj() * t[0]).real))
energy.def_vjp(lambda p, ct: 2 * p[0].conj() * ct)


@jaxbind.bind("(n)->(n)")
def stretch(z):
    """``z |z|``, not holomorphic: ``dy = 3/2 |z| dz + z²/(2|z|) conj(dz)``."""
    return z * np.abs(z)


@stretch.def_jvp
def _(primals, tangents):
    (z,), (dz,) = primals, tangents
    return 1.5 * np.abs(z) * dz + z**2 / (2 * np.abs(z)) * dz.conj()


@stretch.def_vjp
def _(primals, cotangent):
    (z,) = primals
    return 1.5 * np.abs(z) * cotangent + (z**2 / (2 * np.abs(z)) * cotangent).conj()


@jaxbind.bind("(n),(n)->(n)", dtype=complex)
def phase(x, z):
    """A real and a complex operand: cotangents of the first are real."""
    return np.exp(1j * x) * z


phase.def_jvp(lambda p, t: np.exp(1j * p[0]) * (1j * p[1] * t[0] + t[1]))
phase.def_vjp(lambda p, ct: ((1j * np.exp(1j * p[0]) * p[1] * ct).real, np.exp(1j * p[0]) * ct))


@jaxbind.bind("(n)->(n)", linear=True)
def conjugate(z):
    return z.conj()


conjugate.def_transpose(lambda ct: ct.conj())
