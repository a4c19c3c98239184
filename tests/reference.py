"""Reference bindings, each beside the same function in jax.numpy.

JAX differentiates, maps and compiles the twin by itself; whatever it does to the twin it must
do to the binding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import foreign
import jax
import jax.numpy as jnp
import numpy as np
from comparing import complexes, normal, reals

#: derivatives of any order, in any mode
ANY = 99


@dataclass(frozen=True)
class Case:
    """A binding and its twin, with a maker of operands (in 64 bits) for both.

    Attributes:
      argnums: the arguments that may be differentiated.
      order: how many derivatives the rules allow, in any mode.
      rtol: agreement to expect (of numerical derivatives, less than of rules).
      loops: whether loop dimensions may stand in front without ``vmap`` (a signature).
    """

    name: str
    bound: Callable
    twin: Callable
    operands: Callable[[np.random.Generator], tuple]
    argnums: tuple[int, ...]
    order: int = 1
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


# The table ----------------------------------------------------------------------------------------

_elementwise = [
    Case("product", foreign.product, lambda a, b: a * b**2, reals((), ()), (0, 1), loops=True),
    Case(
        "looped", foreign.looped_product, lambda a, b: a * b**2, reals((), ()), (0, 1), loops=True
    ),
    Case(
        "shifted",
        partial(foreign.shifted, by=2.0),
        lambda x, u: x**2 + 2 + 0 * u,
        reals((), ()),
        (0, 1),
        loops=True,
    ),
    Case(
        "decay",
        partial(foreign.decay, rate=0.5),
        lambda k, x: jnp.exp(-0.5 * k * x),
        reals((), ()),
        (0, 1),
        2,
        loops=True,
    ),
    Case("sine", foreign.sine, jnp.sin, reals(()), (0,), ANY, loops=True),
    Case(
        "polar",
        foreign.polar,
        lambda r, t: (r * jnp.cos(t), r * jnp.sin(t)),
        reals((), ()),
        (0, 1),
        ANY,
        loops=True,
    ),
    Case(
        "power",
        foreign.power,
        lambda x, k: x**k,
        lambda rng: (normal(rng) + 3, jnp.asarray(4)),
        (0,),
        ANY,
        loops=True,
    ),
    Case("hypot", foreign.hypot, jnp.hypot, reals((), ()), (0, 1), ANY, loops=True),
    Case(
        "summed",
        foreign.summed,
        lambda a, b, c: jnp.sin(a) + b + c,
        reals((), (), ()),
        (0, 1, 2),
        loops=True,
    ),
]

_linear = [
    Case("matvec", foreign.matvec, lambda a, x: a @ x, reals((3, 4), (4,)), (0, 1), ANY),
    Case(
        "triple",
        foreign.triple,
        lambda m, a, b: m @ (a * b),
        reals((2, 3), (3,), (3,)),
        (0, 1, 2),
        ANY,
    ),
    Case("cumulate", foreign.cumulate, foreign.cumulate_twin, reals((4,)), (0,), ANY),
    Case(
        "cumulate-reverse",
        partial(foreign.cumulate, reverse=True),
        partial(foreign.cumulate_twin, reverse=True),
        reals((4,)),
        (0,),
        ANY,
    ),
    Case("parts", foreign.parts, lambda x: (x[::-1], jnp.sum(x)), reals((4,)), (0,), ANY),
    Case(
        "gather",
        foreign.gather,
        lambda x, index: x[index],
        lambda rng: (normal(rng, (4,)), jnp.asarray(rng.integers(0, 4, 6))),
        (0,),
        ANY,
    ),
    Case(
        "combine",
        foreign.combine,
        foreign.combine_twin,
        lambda rng: (foreign.Pair(normal(rng, (3,)), (normal(rng, (2,)),)), jnp.asarray(2)),
        (0,),
        ANY,
    ),
    Case(
        "blend",
        partial(foreign.blend, power=3),
        partial(foreign.blend_twin, power=3),
        reals((3,), (3,), ()),
        (0, 1, 2),
        2,
    ),
]

_nonlinear = [
    Case("cube", partial(foreign.cube, scale=2.5), lambda x: 2.5 * x**3, reals((3,)), (0,), 2),
    Case("surface", foreign.surface, lambda x, c: x**2 * jnp.sin(c), reals((3,), ()), (0, 1), 2),
    Case("pick", foreign.pick, foreign.pick_twin, foreign.pick_operands, (0, 1)),
    Case("mix", foreign.mix, foreign.mix_twin, foreign.mix_operands, (0, 1)),
    Case("weigh", foreign.weigh, lambda x, w: jnp.sum(w * x**2), reals((3,), (3,)), (0,)),
    Case("columns", foreign.columns, lambda a: jnp.sum(a**2, axis=0), reals((3, 2)), (0,)),
    Case("wide", foreign.wide, lambda x: x**3, reals((3,)), (0,)),
    Case("swirl", foreign.swirl, foreign.swirl_twin, reals((3,), ()), (0, 1)),
    Case("quadratic", foreign.quadratic, lambda x: (x**2, jnp.sum(x) ** 3), reals((3,)), (0,), ANY),
    Case("solve", foreign.solve, jnp.linalg.solve, foreign.well_conditioned, (0, 1), ANY),
    Case(
        "traced-forward",
        foreign.traced_forward,
        lambda x, y: x * jnp.tanh(y),
        reals((3,), (3,)),
        (0, 1),
        ANY,
    ),
]

_made = [
    Case(
        "finite-difference",
        foreign.differenced,
        foreign.bump_twin,
        reals((3,), ()),
        (0, 1),
        rtol=1e-6,
    ),
    Case("complex-step", foreign.stepped, foreign.bump_twin, reals((3,), ()), (0, 1)),
    Case("from-vjp", foreign.row_by_row, foreign.bump_twin, reals((3,), ()), (0, 1)),
    Case("from-jvp", foreign.column_by_column, foreign.bump_twin, reals((3,), ()), (0, 1)),
]

REAL = [*_elementwise, *_linear, *_nonlinear, *_made]

COMPLEX = [
    Case("fourier", foreign.fourier, jnp.fft.fft, complexes((5,)), (0,), ANY),
    Case(
        "real-fourier",
        partial(foreign.real_fourier, n=5),
        lambda x: jnp.fft.rfft(x, 5),
        reals((5,)),
        (0,),
        ANY,
    ),
    Case(
        "real-fourier-even",
        partial(foreign.real_fourier, n=4),
        lambda x: jnp.fft.rfft(x, 4),
        reals((4,)),
        (0,),
        ANY,
    ),
    Case(
        "inverse-real-fourier",
        partial(foreign.inverse_real_fourier, n=5),
        lambda z: jnp.fft.irfft(z, 5),
        complexes((3,)),
        (0,),
        ANY,
    ),
    Case(
        "analytic", foreign.analytic, lambda z, w: z**2 * jnp.exp(w), complexes((), ()), (0, 1), ANY
    ),
    Case("matvec", foreign.matvec, lambda a, x: a @ x, complexes((3, 4), (4,)), (0, 1), ANY),
    Case("energy", foreign.energy, lambda z: jnp.sum(jnp.abs(z) ** 2), complexes((4,)), (0,)),
    Case("stretch", foreign.stretch, lambda z: z * jnp.abs(z), complexes((3,)), (0,)),
    Case(
        "phase",
        foreign.phase,
        lambda x, z: jnp.exp(1j * x) * z,
        lambda rng: (normal(rng, (3,)), normal(rng, (3,), complex)),
        (0, 1),
    ),
    Case("conjugate", foreign.conjugate, jnp.conj, complexes((3,)), (0,), ANY),
]

ALL = [*REAL, *COMPLEX]


def named(*names: str) -> list[Case]:
    """Cases by name, to be representative where all would take too long."""
    return [next(c for c in ALL if c.name == name) for name in names]
