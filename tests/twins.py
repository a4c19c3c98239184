"""Bindings beside the same functions in jax.numpy, whose derivatives JAX knows itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxbind


@dataclass(frozen=True)
class Twins:
    """A binding and its twin, with a maker of operands (float64) for both.

    Attributes:
      argnums: the arguments that may be differentiated.
      order: how many derivatives the rules allow, in any mode.
    """

    name: str
    bound: Callable
    twin: Callable
    operands: Callable[[np.random.Generator], tuple]
    argnums: tuple[int, ...]
    order: int = 1

    def __str__(self) -> str:
        return self.name


def normal(*shapes: tuple) -> Callable[[np.random.Generator], tuple]:
    return lambda rng: tuple(jnp.asarray(rng.standard_normal(s)) for s in shapes)


# Elementwise, first derivatives over NumPy --------------------------------------------------------


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


# Elementwise, any order, by partial derivatives that are bindings again ---------------------------


@jaxbind.bind("()->()")
def sine(x):
    return np.sin(x)


@jaxbind.bind("()->()", vectorized=True)
def cosine(x):
    return np.cos(x)


sine.def_partials(cosine)
cosine.def_partials(lambda x: -sine(x))


# Second derivatives as derivatives of derivatives ------------------------------------------------


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


# Multilinear: any order from two transposes ----------------------------------------------------


@jaxbind.bind("(m,n),(n)->(m)", multilinear=("a", "x"))
def matvec(a, x):
    return a @ x


@matvec.def_transpose("a")
def _(x, cotangent):
    return np.outer(cotangent, x)


@matvec.def_transpose("x")
def _(a, cotangent):
    return a.T @ cotangent


# Linear, computed shape, static parameter, in place ---------------------------------------------


@jaxbind.bind(out=lambda x, *, k: jax.ShapeDtypeStruct((k * x.shape[0],), x.dtype), linear=True)
def repeat(x, *, k, out):
    out[:] = np.repeat(x, k)


@repeat.def_transpose
def _(cotangent, *, k, out):
    cotangent.reshape(-1, k).sum(axis=1, out=out)


# Linear in one argument, with a rule for the other ------------------------------------------------


@jaxbind.bind("(n),()->(n)", linear=("x",))
def tilt(x, a):
    return x * np.exp(a)


@tilt.def_transpose
def _(a, cotangent):
    return cotangent * np.exp(a)


@tilt.def_jvp
def _(primals, tangents):
    (x, a), (nothing, da) = primals, tangents
    assert nothing is None
    return x * np.exp(a) * da


@tilt.def_vjp
def _(primals, cotangent):
    x, a = primals
    return None, np.sum(x * np.exp(a) * cotangent)


# Several results, an integer one among them, an integer operand, `wrt` --------------------------


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


# Pytrees in and out -------------------------------------------------------------------------------


class Point(NamedTuple):
    x: Any
    y: Any


def _mix_shapes(point, extra):
    return {"s": point.x, "rest": (extra["w"],)}


@jaxbind.bind(out=_mix_shapes)
def mix(point, extra):
    return {"s": point.x * point.y, "rest": (np.sum(point.y) * extra["w"],)}


@mix.def_vjp
def _(primals, cotangents):
    (p, extra), s, (r,) = primals, cotangents["s"], cotangents["rest"]
    dy = s * p.x + np.sum(r * extra["w"])
    return Point(s * p.y, dy), {"w": np.sum(p.y) * r, "skip": None}


@mix.def_jvp
def _(primals, tangents):
    (p, extra), (t, dextra) = primals, tangents
    rest = np.sum(t.y) * extra["w"] + np.sum(p.y) * dextra["w"]
    return {"s": t.x * p.y + p.x * t.y, "rest": (rest,)}


def mix_twin(point, extra):
    return {"s": point.x * point.y, "rest": (jnp.sum(point.y) * extra["w"],)}


def mix_operands(rng):
    x, y, w = (jnp.asarray(rng.standard_normal(4)) for _ in range(3))
    return Point(x, y), {"w": w, "skip": None}


# A dense Jacobian over NumPy; a solver with traced rules --------------------------------------


@jaxbind.bind("(n),()->(n)")
def swirl(x, c):
    return np.roll(x, 1) * np.sin(c * x)


@swirl.def_jacobian
def _(x, c):
    n = len(x)
    roll = np.roll(np.eye(n), 1, axis=0)
    jacobian = roll * np.sin(c * x)[:, None] + np.diag(np.roll(x, 1) * c * np.cos(c * x))
    return jacobian, np.roll(x, 1) * x * np.cos(c * x)


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
    return jnp.asarray(rng.standard_normal((3, 3)) + 4 * np.eye(3)), jnp.asarray(
        rng.standard_normal(3)
    )


# Complex: JAX's transpose has no conjugation ---------------------------------------------------


@jaxbind.bind("(n)->(n)", linear=True)
def fourier(x):
    return np.fft.fft(x)


fourier.def_transpose(lambda cotangent: np.fft.fft(cotangent))  # F is symmetric


@jaxbind.bind("(),()->()", vectorized=True)
def analytic(z, w):
    return z**2 * np.exp(w)


analytic.def_partials(lambda z, w: 2 * z * jnp.exp(w), lambda z, w: z**2 * jnp.exp(w))


@jaxbind.bind("(n)->()", dtype=float)
def energy(z):
    return np.sum(np.abs(z) ** 2)


energy.def_jvp(lambda p, t: np.sum(2 * (p[0].conj() * t[0]).real))
energy.def_vjp(lambda p, ct: 2 * p[0].conj() * ct)


def complex_normal(*shapes):
    return lambda rng: tuple(
        jnp.asarray(rng.standard_normal(s) + 1j * rng.standard_normal(s)) for s in shapes
    )


REAL = [
    Twins("product", product, lambda a, b: a * b**2, normal((), ()), (0, 1)),
    Twins("sine", sine, jnp.sin, normal(()), (0,), order=9),
    Twins("cube", cube, lambda x: x**3, normal((4,)), (0,), order=2),
    Twins(
        "cube-static",
        lambda x: cube(x, scale=2.5),
        lambda x: 2.5 * x**3,
        normal((4,)),
        (0,),
        order=2,
    ),
    Twins("matvec", matvec, lambda a, x: a @ x, normal((3, 4), (4,)), (0, 1), order=9),
    Twins("repeat", lambda x: repeat(x, k=3), lambda x: jnp.repeat(x, 3), normal((4,)), (0,), 9),
    Twins("tilt", tilt, lambda x, a: x * jnp.exp(a), normal((4,), ()), (0, 1)),
    Twins("swirl", swirl, lambda x, c: jnp.roll(x, 1) * jnp.sin(c * x), normal((4,), ()), (0, 1)),
    Twins("solve", solve, jnp.linalg.solve, well_conditioned, (0, 1), order=9),
    Twins(
        "pick",
        lambda x, s: pick(x, s, 3)[::2],
        lambda x, s: pick_twin(x, s, 3)[::2],
        normal((4,), ()),
        (0, 1),
    ),
    Twins("mix", mix, mix_twin, mix_operands, (0, 1)),
]

COMPLEX = [
    Twins("fourier", fourier, jnp.fft.fft, complex_normal((5,)), (0,), order=9),
    Twins("analytic", analytic, lambda z, w: z**2 * jnp.exp(w), complex_normal((), ()), (0, 1), 9),
    Twins("matvec", matvec, lambda a, x: a @ x, complex_normal((3, 4), (4,)), (0, 1), order=9),
    Twins("energy", energy, lambda z: jnp.sum(jnp.abs(z) ** 2), complex_normal((4,)), (0,)),
]
