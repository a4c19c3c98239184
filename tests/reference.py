"""Reference bindings, each beside the same function in jax.numpy, and how results are compared.

JAX differentiates, maps and compiles the twin by itself; whatever it does to the twin it must
do to the binding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxbind

# What the tests share -----------------------------------------------------------------------------

#: derivatives of any order, in any mode
ANY = 99


@dataclass(frozen=True)
class Case:
    """A binding and its twin, with a maker of operands (in 64 bits) for both.

    Attributes:
      argnums: the arguments that may be differentiated.
      order: how many derivatives the rules allow, in any mode.
      reverse: whether reverse mode works.
      rtol: agreement to expect (of numerical derivatives, less than of rules).
      loops: whether loop dimensions may stand in front without ``vmap`` (a signature).
    """

    name: str
    bound: Callable
    twin: Callable
    operands: Callable[[np.random.Generator], tuple]
    argnums: tuple[int, ...]
    order: int = 1
    reverse: bool = True
    rtol: float = 1e-9
    loops: bool = False

    def __str__(self) -> str:
        return self.name

    def of(self, seed: int = 0, batch: int | None = None) -> tuple:
        """Operands; with ``batch``, that many of them stacked in front."""
        rng = np.random.default_rng([seed, 20])
        if batch is None:
            return self.operands(rng)
        stacked = [self.operands(rng) for _ in range(max(batch, 1))]
        return jax.tree.map(lambda *xs: jnp.asarray(np.stack(xs)[:batch]), *stacked)


def is_inexact(x: Any) -> bool:
    return jnp.issubdtype(jnp.result_type(x), np.inexact)


def normal(rng: np.random.Generator, shape: tuple = (), dtype: Any = float) -> np.ndarray:
    draw = np.asarray(rng.standard_normal(shape))
    if jnp.issubdtype(dtype, np.complexfloating):
        draw = draw + 1j * np.asarray(rng.standard_normal(shape))
    return jnp.asarray(draw, dtype)


def tangents_of(tree: Any, seed: int = 1) -> Any:
    """Random tangents (or cotangents) of values: float0 for integers and booleans."""
    rng = np.random.default_rng([seed, 21])
    return jax.tree.map(
        lambda x: (
            normal(rng, jnp.shape(x), jnp.result_type(x))
            if is_inexact(x)
            else np.zeros(jnp.shape(x), jax.dtypes.float0)
        ),
        tree,
    )


def split(args: tuple, argnums: tuple[int, ...]) -> tuple[tuple, Callable]:
    """The arguments to differentiate, and how to put the others back around them."""

    def fixed(function: Callable) -> Callable:
        def inner(*chosen: Any) -> Any:
            full = list(args)
            for position, value in zip(argnums, chosen, strict=True):
                full[position] = value
            return function(*full)

        return inner

    return tuple(args[i] for i in argnums), fixed


def inner(a: Any, b: Any) -> Any:
    """The real inner product under which JAX's transpose (no conjugation) is the transpose."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(
        np.sum(np.asarray(x) * np.asarray(y)).real for x, y in pairs if x.dtype != jax.dtypes.float0
    )


def close(got: Any, want: Any, rtol: float = 1e-9) -> None:
    """The same structure, dtypes, shapes, and values."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert jnp.shape(g) == jnp.shape(w)
        assert jnp.result_type(g) == jnp.result_type(w)
        if jnp.result_type(w) == jax.dtypes.float0:
            continue
        scale = max(1.0, float(np.max(np.abs(w), initial=0.0)))
        np.testing.assert_allclose(g, w, rtol=rtol, atol=rtol * scale)


def nonlinear(function: Callable) -> Callable:
    """A real number from any results, nonlinear in every inexact leaf of them."""

    def total(*args: Any) -> Any:
        leaves = [x for x in jax.tree.leaves(function(*args)) if is_inexact(x)]
        terms = [
            jnp.sum(jnp.sin(x.real + k) + (jnp.cos(2 * x.imag) if jnp.iscomplexobj(x) else 0))
            for k, x in enumerate(leaves)
        ]
        return sum(terms[1:], start=terms[0])

    return total


def reals(*shapes: tuple) -> Callable[[np.random.Generator], tuple]:
    return lambda rng: tuple(normal(rng, s) for s in shapes)


def complexes(*shapes: tuple) -> Callable[[np.random.Generator], tuple]:
    return lambda rng: tuple(normal(rng, s, complex) for s in shapes)


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


wide.def_jvp(lambda p, t: 3 * p[0] ** 2 * t[0])
wide.def_vjp(lambda p, ct: 3 * p[0] ** 2 * ct)


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


def _bump_twin(x, c):
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


# The tables ---------------------------------------------------------------------------------------

_elementwise = [
    Case("product", product, lambda a, b: a * b**2, reals((), ()), (0, 1), loops=True),
    Case("looped", looped_product, lambda a, b: a * b**2, reals((), ()), (0, 1), loops=True),
    Case(
        "shifted",
        partial(shifted, by=2.0),
        lambda x, u: x**2 + 2 + 0 * u,
        reals((), ()),
        (0, 1),
        loops=True,
    ),
    Case(
        "decay",
        partial(decay, rate=0.5),
        lambda k, x: jnp.exp(-0.5 * k * x),
        reals((), ()),
        (0, 1),
        2,
        loops=True,
    ),
    Case("sine", sine, jnp.sin, reals(()), (0,), ANY, loops=True),
    Case(
        "polar",
        polar,
        lambda r, t: (r * jnp.cos(t), r * jnp.sin(t)),
        reals((), ()),
        (0, 1),
        ANY,
        loops=True,
    ),
    Case(
        "power",
        power,
        lambda x, k: x**k,
        lambda rng: (normal(rng) + 3, jnp.asarray(4)),
        (0,),
        ANY,
        loops=True,
    ),
    Case("hypot", hypot, jnp.hypot, reals((), ()), (0, 1), ANY, loops=True),
    Case(
        "summed",
        summed,
        lambda a, b, c: jnp.sin(a) + b + c,
        reals((), (), ()),
        (0, 1, 2),
        loops=True,
    ),
]

_linear = [
    Case("matvec", matvec, lambda a, x: a @ x, reals((3, 4), (4,)), (0, 1), ANY),
    Case(
        "triple",
        triple,
        lambda m, a, b: m @ (a * b),
        reals((2, 3), (3,), (3,)),
        (0, 1, 2),
        ANY,
    ),
    Case("cumulate", cumulate, cumulate_twin, reals((4,)), (0,), ANY),
    Case(
        "cumulate-reverse",
        partial(cumulate, reverse=True),
        partial(cumulate_twin, reverse=True),
        reals((4,)),
        (0,),
        ANY,
    ),
    Case("parts", parts, lambda x: (x[::-1], jnp.sum(x)), reals((4,)), (0,), ANY),
    Case(
        "gather",
        gather,
        lambda x, index: x[index],
        lambda rng: (normal(rng, (4,)), jnp.asarray(rng.integers(0, 4, 6))),
        (0,),
        ANY,
    ),
    Case(
        "combine",
        combine,
        combine_twin,
        lambda rng: (Pair(normal(rng, (3,)), (normal(rng, (2,)),)), jnp.asarray(2)),
        (0,),
        ANY,
    ),
    Case(
        "blend",
        partial(blend, power=3),
        partial(blend_twin, power=3),
        reals((3,), (3,), ()),
        (0, 1, 2),
        2,
    ),
]

_nonlinear = [
    Case("cube", partial(cube, scale=2.5), lambda x: 2.5 * x**3, reals((3,)), (0,), 2),
    Case("surface", surface, lambda x, c: x**2 * jnp.sin(c), reals((3,), ()), (0, 1), 2),
    Case("pick", pick, pick_twin, pick_operands, (0, 1)),
    Case("mix", mix, mix_twin, mix_operands, (0, 1)),
    Case("weigh", weigh, lambda x, w: jnp.sum(w * x**2), reals((3,), (3,)), (0,)),
    Case("columns", columns, lambda a: jnp.sum(a**2, axis=0), reals((3, 2)), (0,)),
    Case("wide", wide, lambda x: x**3, reals((3,)), (0,)),
    Case("swirl", swirl, swirl_twin, reals((3,), ()), (0, 1)),
    Case("quadratic", quadratic, lambda x: (x**2, jnp.sum(x) ** 3), reals((3,)), (0,), ANY),
    Case("solve", solve, jnp.linalg.solve, well_conditioned, (0, 1), ANY),
    Case(
        "traced-forward",
        traced_forward,
        lambda x, y: x * jnp.tanh(y),
        reals((3,), (3,)),
        (0, 1),
        ANY,
    ),
]

_made = [
    Case("finite-difference", differenced, _bump_twin, reals((3,), ()), (0, 1), rtol=1e-6),
    Case("complex-step", stepped, _bump_twin, reals((3,), ()), (0, 1)),
    Case("from-vjp", row_by_row, _bump_twin, reals((3,), ()), (0, 1)),
    Case("from-jvp", column_by_column, _bump_twin, reals((3,), ()), (0, 1)),
]

REAL = [*_elementwise, *_linear, *_nonlinear, *_made]

COMPLEX = [
    Case("fourier", fourier, jnp.fft.fft, complexes((5,)), (0,), ANY),
    Case(
        "real-fourier",
        partial(real_fourier, n=5),
        lambda x: jnp.fft.rfft(x, 5),
        reals((5,)),
        (0,),
        ANY,
    ),
    Case(
        "real-fourier-even",
        partial(real_fourier, n=4),
        lambda x: jnp.fft.rfft(x, 4),
        reals((4,)),
        (0,),
        ANY,
    ),
    Case(
        "inverse-real-fourier",
        partial(inverse_real_fourier, n=5),
        lambda z: jnp.fft.irfft(z, 5),
        complexes((3,)),
        (0,),
        ANY,
    ),
    Case("analytic", analytic, lambda z, w: z**2 * jnp.exp(w), complexes((), ()), (0, 1), ANY),
    Case("matvec", matvec, lambda a, x: a @ x, complexes((3, 4), (4,)), (0, 1), ANY),
    Case("energy", energy, lambda z: jnp.sum(jnp.abs(z) ** 2), complexes((4,)), (0,)),
    Case("stretch", stretch, lambda z: z * jnp.abs(z), complexes((3,)), (0,)),
    Case(
        "phase",
        phase,
        lambda x, z: jnp.exp(1j * x) * z,
        lambda rng: (normal(rng, (3,)), normal(rng, (3,), complex)),
        (0, 1),
    ),
    Case("conjugate", conjugate, jnp.conj, complexes((3,)), (0,), ANY),
]

ALL = [*REAL, *COMPLEX]


def named(*names: str) -> list[Case]:
    """Cases by name, to be representative where all would take too long."""
    return [next(c for c in ALL if c.name == name) for name in names]
