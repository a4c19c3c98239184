"""Bindings with one fault each: `jaxbind.testing` must name the law that it breaks, and the cause.

Each is a right binding of `right_bindings` with something changed, so that a line shows the fault.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import right_bindings as right
import scipy.fft
import scipy.linalg
import scipy.special
from jax import ShapeDtypeStruct
from right_bindings import DOUBLE, REAL, RULES, Itself, Recipe, Right, over_numpy, recipe

import jaxbind

# The form of the table ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrong:
    """A binding with a fault.

    Attributes:
      name: of the binding and of its fault.
      make: builds it afresh on each call.
      laws: those that may be named; usually there is one.
      diagnosis: what kind of mistake it is, where that can be told.
      check: keywords for ``testing.check``.
    """

    name: str
    make: Callable[[], jaxbind.Binding]
    laws: tuple[str, ...]
    diagnosis: str | None = None
    check: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Mutation:
    """Makes a wrong rule of a right one."""

    of: Callable[[Any], Any]


def wrong(
    base: Right,
    fault: str,
    laws: str | tuple[str, ...],
    diagnosis: str | None = None,
    *,
    check: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Wrong:
    """``base`` with other rules, another function or signature, or other options.

    ``None`` takes a rule away, a `Mutation` is applied to what stood there.
    """
    made: Recipe = base.make  # type: ignore[assignment]
    function, signature = made.function, made.signature
    options, rules = dict(made.options), dict(made.rules)
    for name, change in changes.items():
        if name == "function":
            function = change.of(function) if isinstance(change, Mutation) else change
        elif name == "signature":
            signature = change
        elif name.split("_")[0] in RULES:
            rules[name] = change.of(rules[name]) if isinstance(change, Mutation) else change
        else:
            options[name] = change
    rules = {name: rule for name, rule in rules.items() if rule is not None}
    make = Recipe(function, signature, options, rules)
    laws = (laws,) if isinstance(laws, str) else laws
    return Wrong(
        f"{base.name}-{fault}", make, laws, diagnosis, base.check if check is None else check
    )


def stateful(
    name: str, laws: str | tuple[str, ...], diagnosis: str | None = None, **check: Any
) -> Callable[[Callable[[], jaxbind.Binding]], Wrong]:
    """A function with a memory of its own; decorates what makes it."""
    laws = (laws,) if isinstance(laws, str) else laws
    return lambda make: Wrong(name, make, laws, diagnosis, check)


# Mutations ----------------------------------------------------------------------------------------


def result(change: Callable[[Any], Any]) -> Mutation:
    """Change what a rule returns, whatever its structure."""

    def mutate(rule):
        @functools.wraps(rule)  # the parameters that it names stay those of the rule
        def mutated(*args, **static):
            return jax.tree.map(change, rule(*args, **static))

        return mutated

    return Mutation(mutate)


def times(factor: float) -> Mutation:
    return result(lambda x: factor * x)


def in_single(dtype: Any = np.float32) -> Mutation:
    """Round as arithmetic in single precision does."""
    return result(lambda x: np.asarray(x).astype(dtype).astype(np.asarray(x).dtype))


def only(where: int, factor: float) -> Mutation:
    """Change one of several entries of a rule's result."""

    def mutate(rule):
        @functools.wraps(rule)
        def mutated(*args, **static):
            entries = list(rule(*args, **static))
            entries[where] = factor * entries[where]
            return tuple(entries)

        return mutated

    return Mutation(mutate)


def swapped(first: int = 0, second: int = 1) -> Mutation:
    """Exchange two entries of a rule's result, or two rules."""

    def exchange(entries):
        entries = list(entries)
        entries[first], entries[second] = entries[second], entries[first]
        return tuple(entries)

    def mutate(rule):
        if isinstance(rule, tuple):
            return exchange(rule)
        if isinstance(rule, Itself):
            return Itself(lambda f: exchange(rule.rules(f)))

        @functools.wraps(rule)
        def mutated(*args, **static):
            return exchange(rule(*args, **static))

        return mutated

    return Mutation(mutate)


def at(point: Callable[[Any], Any]) -> Mutation:
    """Evaluate a derivative of a function of one argument somewhere else."""

    def mutate(rule):
        @functools.wraps(rule)
        def mutated(primals, *rest, **static):
            return rule((point(primals[0]),), *rest, **static)

        return mutated

    return Mutation(mutate)


def where(condition: Callable[[Any], Any], change: Callable[[Any], Any]) -> Mutation:
    """Change a jvp or vjp rule's result where a condition on the first primal holds."""

    def mutate(rule):
        @functools.wraps(rule)
        def mutated(primals, *rest, **static):
            found = rule(primals, *rest, **static)
            return jax.tree.map(
                lambda x: np.where(condition(primals[0]), change(x), x).astype(x.dtype), found
            )

        return mutated

    return Mutation(mutate)


def _conjugated(rule):
    if isinstance(rule, dict):
        return {argument: _conjugated(each) for argument, each in rule.items()}

    @functools.wraps(rule)
    def adjoint(*args, **static):
        *others, cotangent = args
        return jax.tree.map(np.conj, rule(*others, np.conj(cotangent), **static))

    return adjoint


#: what a library calls the adjoint, conj(Aᵀ conj(w)), in place of the transpose
adjoint = Mutation(_conjugated)


# A constant factor --------------------------------------------------------------------------------

# fmt: off
FACTORS = (
    wrong(right.square, "jvp-half", "jvp", "factor", jvp=times(0.5)),
    wrong(right.square, "vjp-half", "adjoint", "factor", vjp=times(0.5)),
    wrong(right.square, "vjp-only-half", "adjoint", "factor", jvp=None, vjp=times(0.5)),
    wrong(right.log_of_masses, "twice", "jvp", "factor", jvp=times(2), vjp=times(2)),
    wrong(right.log_of_masses, "vjp-only-twice", "adjoint", "factor", jvp=None, vjp=times(2)),
    wrong(right.square, "vjp-negative", "adjoint", "factor", vjp=times(-1)),
    wrong(right.sine, "partial-twice", "jvp", "factor", partials=lambda x: 2 * jnp.cos(x)),
    wrong(right.sine, "partial-negative", "jvp", "factor", partials=lambda x: -jnp.cos(x)),
    wrong(right.wave, "jvp-without-2pi", "jvp", "factor", jvp=times(1 / (2 * np.pi))),
    wrong(right.wave, "vjp-2pi-twice", "adjoint", "factor", vjp=times(2 * np.pi)),
    wrong(right.fft, "over-n", "adjoint", "factor",
        transpose=lambda ct: np.fft.fft(ct) / ct.shape[-1]),
    wrong(right.fft, "orthonormal", "adjoint", "factor",
        transpose=lambda ct: np.fft.fft(ct, norm="ortho")),
    wrong(right.ifft_axis, "times-n", "adjoint", "factor",
        transpose=lambda ct, *, axis: np.fft.ifft(ct, axis=axis, norm="forward")),
    wrong(right.moments, "jvp-second-half", "jvp", "factor",
        jvp=lambda p, t: (t[0].sum(axis=-1), (p[0] * t[0]).sum(axis=-1))),
    wrong(right.polar, "vjp-angle-in-x-negative", "adjoint", "factor",
        vjp=lambda p, cts: (
            right.polar_vjp(p, cts)[0],
            p[0] * (np.cos(p[1]) * cts[1] + np.sin(p[1]) * cts[0]),
        )),
    wrong(right.mean, "without-n", "adjoint", "factor", transpose=lambda ct, out: out.fill(ct)),
    wrong(right.matvec, "a-negative", "adjoint", "factor",
        transpose={"a": lambda x, ct: -np.outer(ct, x), "x": lambda a, ct: a.T @ ct}),
    wrong(right.cumprod, "jacobian-twice", "jvp", "factor", jacobian=times(2)),
    wrong(right.planck, "jvp-half", "jvp", "factor", jvp=times(0.5)),
    wrong(right.differences, "sign", "adjoint", "factor", transpose=times(-1)),
    wrong(right.expm, "vjp-negative", "adjoint", "factor", vjp=times(-1)),
    wrong(right.huge, "vjp-half", "adjoint", "factor", vjp=times(0.5)),
    wrong(right.tiny, "vjp-twice", "adjoint", "factor", vjp=times(2)),
)
# fmt: on

# The adjoint in place of the transpose, and other conjugates --------------------------------------

MIXED = {"dtypes": [np.float64, np.complex128]}

# fmt: off
CONJUGATES = (
    wrong(right.fft, "adjoint", "adjoint", "conjugate", transpose=adjoint),
    wrong(right.ifft_axis, "adjoint", "adjoint", "conjugate", transpose=adjoint),
    wrong(right.matvec_complex, "adjoint", "adjoint", "conjugate", transpose=adjoint),
    wrong(right.matvec, "adjoint-if-complex", "adjoint", "conjugate", transpose=adjoint,
        check=MIXED),
    wrong(right.square, "adjoint-if-complex", "adjoint", "conjugate", vjp=adjoint, check=MIXED),
    wrong(right.inverse_complex, "adjoint", "adjoint", "conjugate", vjp=adjoint),
    wrong(right.modulus, "adjoint", "adjoint", "conjugate", vjp=adjoint),
    wrong(right.energy, "adjoint", "adjoint", "conjugate", vjp=adjoint),
    wrong(right.spectrum, "adjoint", "adjoint", "conjugate", vjp=adjoint),
    wrong(right.imaginary_part, "adjoint", "adjoint", "conjugate", vjp=adjoint),
    wrong(right.phase, "adjoint", "adjoint", "conjugate", vjp=adjoint),
    wrong(right.rfft, "adjoint", "adjoint", "conjugate",
        transpose=lambda ct, out: right.rfft_transpose(np.conj(ct), out)),
    wrong(right.conjugate, "as-if-linear", "adjoint", vjp=lambda p, ct: ct),
    wrong(right.complex_exp, "conjugated", "jvp", partials=lambda z: jnp.exp(jnp.conj(z))),
)
# fmt: on

# Two arguments exchanged --------------------------------------------------------------------------

# fmt: off
SWAPPED = (
    wrong(right.product, "vjp-swapped", "adjoint", "swapped", vjp=swapped()),
    wrong(right.product, "vjp-only-swapped", "adjoint", "swapped", jvp=None, vjp=swapped()),
    wrong(right.fused, "vjp-swapped", "adjoint", "swapped", vjp=swapped(0, 2)),
    wrong(right.polar, "vjp-swapped", "adjoint", "swapped", vjp=swapped()),
    wrong(right.arctan2, "partials-swapped", "jvp", "swapped", partials=swapped()),
    wrong(right.logaddexp, "partials-swapped", "jvp", "swapped", partials=swapped()),
    wrong(right.kepler, "partials-swapped", "jvp", "swapped", partials=swapped()),
    wrong(right.hypot, "jvp-swapped", "jvp", "swapped",
        jvp=Mutation(lambda rule: lambda p, t: rule(p, t[::-1]))),
    wrong(right.sincos, "results-swapped", "jvp", "swapped",
        partials=lambda x: (-jnp.sin(x), jnp.cos(x))),
    wrong(right.polar, "jvp-results-swapped", "jvp", "swapped",
        jvp=Mutation(lambda rule: lambda p, t: rule(p, t)[::-1])),
    wrong(right.moments, "vjp-results-swapped", "adjoint", "swapped",
        vjp=Mutation(lambda rule: lambda p, cts: rule(p, cts[::-1]))),
)
# fmt: on

# A term of the product rule that is missing -------------------------------------------------------

# fmt: off
MISSING_TERMS = (
    wrong(right.product, "jvp-without-y", "jvp", "missing_term", jvp=lambda p, t: p[1] ** 2 * t[0]),
    wrong(right.product, "vjp-without-y", "adjoint", "missing_term",
        vjp=lambda p, ct: (p[1] ** 2 * ct, np.zeros_like(ct))),
    wrong(right.gram, "jvp-one-term", "jvp", "missing_term", jvp=lambda p, t: p[0].T @ t[0]),
    wrong(right.gram, "vjp-one-term", "adjoint", "missing_term", vjp=lambda p, ct: p[0] @ ct),
    wrong(right.quadratic_form, "jvp-one-term", "jvp", "missing_term",
        jvp=lambda p, t: p[1] @ p[0] @ t[1]),
    wrong(right.quadratic_form, "vjp-one-term", "adjoint", "missing_term",
        vjp=lambda p, ct: (None, ct * (p[0] @ p[1]))),
    wrong(right.solve, "jvp-without-a", "jvp", "missing_term",
        jvp=lambda p, t: np.linalg.solve(p[0], t[1])),
    wrong(right.observe, "jvp-without-mass", "jvp", "missing_term",
        jvp=Mutation(
            lambda rule: lambda p, t: rule(p, ({"mass": 0 * t[0]["mass"], "v": t[0]["v"]},))
        )),
    wrong(right.from_jvp, "one-term", "jvp", "missing_term",
        jvp=lambda p, t: np.roll(p[0], 1) * 2 * p[0] * t[0]),
    wrong(right.holomorphic, "partial-missing", "jvp", "missing_term",
        partials=(lambda z, w: 2 * z * jnp.exp(w), lambda z, w: jnp.zeros_like(w))),
    wrong(right.moments, "vjp-first-only", "adjoint", "missing_term",
        vjp=lambda p, cts: np.broadcast_to(cts[0][..., None], p[0].shape)),
    wrong(right.moments, "jvp-first-only", "jvp", "missing_term",
        jvp=lambda p, t: (t[0].sum(axis=-1), np.zeros_like(t[0][..., 0]))),
    wrong(right.polar, "jvp-y-without-angle", "jvp", "missing_term",
        jvp=lambda p, t: (right.polar_jvp(p, t)[0], np.sin(p[1]) * t[0])),
)
# fmt: on

# The inverse in place of the transpose ------------------------------------------------------------

# fmt: off
INVERTED = (
    wrong(right.cumsum, "inverse", "adjoint", "inverted",
        transpose=lambda ct: np.diff(ct, axis=-1, prepend=0)),
)
# fmt: on

# A transposed matrix, or a formula for symmetric ones ---------------------------------------------

SQUARE = "(n,n),(n)->(n)"

# fmt: off
TRANSPOSED = (
    wrong(right.matvec, "x-not-transposed", "adjoint", "transposed", signature=SQUARE,
        transpose={"a": lambda x, ct: np.outer(ct, x), "x": lambda a, ct: a @ ct}),
    wrong(right.matvec, "a-transposed", "adjoint", "transposed", signature=SQUARE,
        transpose={"a": lambda x, ct: np.outer(x, ct), "x": lambda a, ct: a.T @ ct}),
    wrong(right.trilinear, "axes-swapped", "adjoint", "transposed", signature="(n),(n,n),(n)->()",
        transpose={
            "x": lambda a, y, ct: ct * (a @ y),
            "a": lambda x, y, ct: ct * np.einsum("i,j->ji", x, y),
            "y": lambda x, a, ct: ct * (x @ a),
        }),
    wrong(right.solve, "symmetric-only", "adjoint", "transposed",
        vjp=lambda p, ct: (
            -np.outer(np.linalg.solve(p[0], ct), np.linalg.solve(*p)),
            np.linalg.solve(p[0], ct),
        )),
    wrong(right.inverse, "vjp-not-transposed", "adjoint", "transposed",
        vjp=lambda p, ct: right.inverse_jvp(p, (ct,))),
    wrong(right.determinant, "cofactors-transposed", "adjoint", "transposed",
        vjp=lambda p, ct: right.cofactors(p[0]).T * ct),
    wrong(right.logdet, "inverse-not-transposed", "adjoint", "transposed",
        vjp=lambda p, ct: ct[..., None, None] * np.linalg.inv(p[0])),
    wrong(right.expm, "vjp-not-transposed", "adjoint", "transposed",
        vjp=lambda p, ct: right.frechet(p[0], ct)),
    wrong(right.cumsum, "not-reversed", "adjoint", "transposed",
        transpose=lambda ct: np.cumsum(ct, axis=-1)),
    wrong(right.sort, "vjp-not-inverted", "adjoint", "transposed",
        vjp=lambda p, ct: ct[np.argsort(p[0])]),
    wrong(right.polar, "rotated-back", "adjoint", "transposed", vjp=right.polar_jvp),
    wrong(right.quadratic_form, "symmetric-only", "adjoint",
        vjp=lambda p, ct: (None, 2 * ct * (p[0] @ p[1]))),
    wrong(right.quadratic_form, "jvp-symmetric-only", "jvp",
        jvp=lambda p, t: 2 * p[1] @ p[0] @ t[1]),
    wrong(right.eigenvalues, "vectors-transposed", "adjoint",
        vjp=lambda p, ct: (lambda v: (v.T * ct) @ v)(np.linalg.eigh(right.symmetric(p[0]))[1])),
)
# fmt: on

# The derivative at the wrong point; f in the place of its derivative ------------------------------

# fmt: off
WRONG_POINTS = (
    wrong(right.sine, "at-result", "jvp", "wrong_point", partials=lambda x: jnp.cos(jnp.sin(x))),
    wrong(right.square, "vjp-at-result", "adjoint", "wrong_point", vjp=at(np.square)),
    wrong(right.log, "vjp-at-result", "adjoint", "wrong_point", vjp=at(np.log),
        check={"elements": st.floats(2, 100), "dtypes": REAL}),
    wrong(right.steep, "jvp-at-zero", "jvp", "wrong_point", jvp=at(np.zeros_like)),
    wrong(right.tiny, "vjp-at-zero", "adjoint", "wrong_point", vjp=at(np.zeros_like)),
    wrong(right.volume, "vjp-at-ones", "adjoint", vjp=at(np.ones_like)),
    wrong(right.oscillating, "vjp-at-result", "adjoint", "wrong_point",
        vjp=at(lambda x: np.sin(30 * x))),
)
# fmt: on

# fmt: off
OUTPUTS_RETURNED = (
    wrong(right.sine, "sine-for-cosine", "jvp", "output_returned", partials=jnp.sin),
    wrong(right.tanh, "itself", "jvp", "output_returned", partials=Itself(lambda f: f)),
    wrong(right.steep, "exp-not-50-exp", "adjoint", "output_returned",
        vjp=lambda p, ct: np.exp(50 * p[0]) * ct),
    wrong(right.log, "vjp-itself", "adjoint", "output_returned",
        vjp=lambda p, ct: np.log(p[0]) * ct),
    wrong(right.softmax, "jvp-result", ("jvp", "jvp_linear"), "output_returned",
        jvp=lambda p, t: right.softmax_of(p[0])),
    wrong(right.square, "jvp-result", ("jvp", "jvp_linear"), "output_returned",
        jvp=lambda p, t: p[0] ** 2),
)
# fmt: on

# Float32 inside a float64 function ----------------------------------------------------------------

# fmt: off
SINGLE_PRECISION = (
    wrong(right.oscillating, "jvp-single", "jvp", "single_precision", jvp=in_single()),
    wrong(right.oscillating, "vjp-single", "adjoint", "single_precision", vjp=in_single()),
    wrong(right.inverse, "vjp-single", "adjoint", "single_precision", vjp=in_single(),
        check={**right.inverse.check, "dtypes": REAL}),
    wrong(right.fft, "transpose-single", "adjoint", "single_precision",
        transpose=in_single(np.complex64)),
    wrong(right.fft, "single", ("linear", "adjoint", "dtypes"), "single_precision",
        function=lambda v: np.fft.fft(v.astype(np.complex64)).astype(v.dtype)),
    wrong(right.log, "single", ("jvp", "dtypes"), "single_precision",
        function=lambda x: np.log(x.astype(np.float32)).astype(x.dtype)),
)
# fmt: on

# A pushforward that is not linear in the tangent --------------------------------------------------

# fmt: off
NOT_LINEAR_IN_THE_TANGENT = (
    wrong(right.sine, "tangent-squared", "jvp_linear", partials=None,
        jvp=lambda p, t: np.cos(p[0]) * t[0] ** 2),
    wrong(right.square, "tangent-modulus", "jvp_linear", jvp=lambda p, t: 2 * p[0] * np.abs(t[0]),
        check={"dtypes": REAL}),
    wrong(right.square, "tangent-sign", "jvp_linear", jvp=lambda p, t: 2 * p[0] * np.sign(t[0]),
        check={"dtypes": REAL}),
    wrong(right.square, "plus-one", "jvp_linear", jvp=lambda p, t: 2 * p[0] * t[0] + 1),
    wrong(right.product, "tangents-multiplied", "jvp_linear",
        jvp=lambda p, t: p[1] ** 2 * t[0] + 2 * p[0] * p[1] * t[1] + t[0] * t[1]),
    wrong(right.norm, "second-order", "jvp_linear",
        jvp=lambda p, t: scipy.linalg.norm(p[0] + t[0]) - scipy.linalg.norm(p[0])),
)
# fmt: on

# Wrong here and there -----------------------------------------------------------------------------


def prod_over(x):
    """The product without each element, by a division that fails at 0."""
    with np.errstate(all="ignore"):
        return (np.tril(np.ones((x.size, x.size))) * np.cumprod(x)[:, None] / x).astype(x.dtype)


def zero_if_alone(primals, cotangent, *, wrt):
    if "a" not in wrt:
        return None, np.zeros_like(cotangent)
    return right.solve_vjp(primals, cotangent, wrt=wrt)


def half_if_alone(primals, cotangent, *, wrt):
    x, y = primals
    return y**2 * cotangent, (2 if "x" in wrt else 1) * x * y * cotangent


def put_transpose(index, cotangent, out):
    """As `gather_transpose`, but where an index stands twice the last wins."""
    out[...] = 0
    out[index] = cotangent


def put(x, index, *, size):
    """A histogram, but where an index stands twice the last wins."""
    out = np.zeros(size, x.dtype)
    out[index] = x
    return out


def cholesky_whole_diagonal(primals, cotangent):
    factor = np.linalg.cholesky(right.symmetric(primals[0]))
    inverted = np.linalg.inv(factor)
    return right.symmetric(inverted.T @ np.tril(factor.T @ cotangent) @ inverted)


# fmt: off
REGIONS = (
    wrong(right.absolute, "one-everywhere", "jvp", partials=jnp.ones_like),
    wrong(right.relu, "slope-left", "jvp", jvp=lambda p, t: np.where(p[0] > 0, t[0], 0.01 * t[0])),
    wrong(right.square, "negative-side", "adjoint", vjp=where(lambda x: x < 0, np.negative),
        check={"dtypes": REAL}),
    wrong(right.square, "large-only", "jvp",
        jvp=where(lambda x: np.abs(x) > 100, lambda t: t * 1.5), check={"dtypes": REAL}),
    wrong(right.erf, "tail-dropped", "jvp", check={"elements": st.floats(-4, 4), "dtypes": REAL},
        partials=lambda x: jnp.where(
            jnp.abs(x) < 2, 2 / np.sqrt(np.pi).item() * jnp.exp(-(x**2)), 0
        )),
    wrong(right.clip, "outside", "jvp",
        jvp=lambda p, t, *, low, high: np.where(p[0] > low, t[0], 0)),
    wrong(right.norm, "wrong-at-size-one", "adjoint",
        vjp=lambda p, ct: ct * (np.ones_like(p[0]) if p[0].size == 1 else right.unit_vector(p[0]))),
    wrong(right.cumprod, "divides-by-zero", "jvp", jacobian=prod_over),
    wrong(right.circular_convolution, "odd-sizes", "adjoint",
        transpose={
            "a": right.circular_transpose,
            "b": lambda a, ct: (1 + a.size % 2) * right.circular_transpose(a, ct),
        }),
    wrong(right.sincos, "second-output", "jvp", partials=lambda x: (jnp.cos(x), jnp.sin(x))),
    wrong(right.moments, "second-output", "adjoint",
        vjp=lambda p, cts: cts[0][..., None] + p[0] * cts[1][..., None]),
    wrong(right.fused, "third-argument", "adjoint", vjp=only(2, -1)),
    wrong(right.gather, "repeated-index", "adjoint", transpose=put_transpose),
    wrong(right.histogram, "repeated-index", "adjoint", function=put),
    wrong(right.solve, "zero-if-alone", "adjoint", vjp=zero_if_alone),
    wrong(right.product, "half-if-alone", "adjoint", vjp=half_if_alone),
    wrong(right.determinant, "by-inverse", ("jvp", "adjoint"),
        jvp=lambda p, t: np.linalg.det(p[0]) * np.trace(np.linalg.inv(p[0]) @ t[0]),
        vjp=lambda p, ct: np.linalg.det(p[0]) * ct * np.linalg.inv(p[0]).T),
    wrong(right.cholesky, "whole-diagonal", "adjoint", vjp=cholesky_whole_diagonal),
    wrong(right.interpolation, "slope-of-neighbour", "jvp",
        jvp=lambda p, t: right.interpolation_slope(p[0] + 1, *p[1:]) * t[0]),
    wrong(right.exponential_model, "columns-swapped", "jvp",
        jacobian=lambda parameters, t: (right.model_jacobian(parameters, t)[0][:, ::-1], None)),
    wrong(right.bessel, "recurrence-sign", "jvp",
        partials=Itself(lambda jv: (None, lambda v, x: (jv(v - 1, x) + jv(v + 1, x)) / 2))),
    wrong(right.gaussian, "width-to-the-2", "jvp",
        partials=over_numpy(
            *right.gaussian.make.rules["partials"].rules[:2],
            lambda x, m, w: (x - m) ** 2 / w**2 * np.exp(-(((x - m) / w) ** 2) / 2),
        )),
)
# fmt: on

# fmt: off
SMALL_ERRORS = (
    wrong(right.sine, "1e-3", "jvp", partials=lambda x: 1.001 * jnp.cos(x)),
    wrong(right.square, "1e-5", "jvp", jvp=times(1 + 1e-5)),
    wrong(right.square, "vjp-1e-5", "adjoint", vjp=times(1 + 1e-5)),
    wrong(right.fft, "1e-3", "adjoint", transpose=times(1.001)),
    wrong(right.matmul, "1e-5", "adjoint",
        transpose={
            "a": lambda b, ct: (1 + 1e-5) * ct @ b.swapaxes(-1, -2),
            "b": lambda a, ct: a.swapaxes(-1, -2) @ ct,
        }),
    wrong(right.layer, "sech-approximated", "adjoint", vjp=times(1 - 1e-3)),
)
# fmt: on

# Fourier transforms -------------------------------------------------------------------------------

# fmt: off
FOURIER = (
    wrong(right.fft, "inverse", "adjoint", "inverted", transpose=lambda ct: np.fft.ifft(ct)),
    wrong(right.irfft, "without-doubling", "adjoint",
        vjp=lambda p, ct: np.conj(np.fft.rfft(ct)) / ct.size),
    wrong(right.irfft, "nyquist-doubled", "adjoint",
        vjp=lambda p, ct: (
            np.where(np.arange(p[0].size) > 0, 2, 1) * np.conj(np.fft.rfft(ct)) / ct.size
        )),
    wrong(right.irfft_packed, "imaginary-sign", "adjoint",
        transpose=result(lambda pulled: pulled * np.array([[1], [-1]]))),
    wrong(right.rfft, "by-irfft", "adjoint",
        transpose=lambda ct, out: np.multiply(out.size, np.fft.irfft(ct, out.size), out=out)),
    wrong(right.dct, "not-orthonormal", "adjoint",
        transpose=lambda ct, *, type: scipy.fft.idct(ct, type)),
    wrong(right.dct, "other-type", "adjoint",
        transpose=lambda ct, *, type: scipy.fft.idct(ct, 5 - type, norm="ortho")),
    wrong(right.circular_convolution, "convolves-back", "adjoint",
        transpose={"a": right.circular, "b": right.circular}),
    wrong(right.repeat, "wrong-order", "adjoint",
        transpose=lambda ct, *, k, out: ct.reshape(k, -1).sum(axis=0, out=out)),
    wrong(right.fft_padded, "padded-too-early", "adjoint",
        transpose=lambda ct, *, n, out: np.copyto(out, np.fft.fft(ct, out.size))),
)
# fmt: on

# Not linear ---------------------------------------------------------------------------------------

identity = recipe(lambda x: x.copy(), "(n)->(n)", linear=True, transpose=lambda ct: ct.copy())
IDENTITY = Right("linear", identity)

# fmt: off
NOT_LINEAR = (
    wrong(IDENTITY, "affine", "linear", function=lambda x: x + 1),
    wrong(IDENTITY, "odd", "linear", function=lambda x: x * np.abs(x)),
    wrong(IDENTITY, "positive-part", "linear", function=lambda x: np.maximum(x, 0),
        check={"dtypes": REAL}),
    wrong(IDENTITY, "saturating", "linear", function=lambda x: np.clip(x, -100, 100),
        check={"dtypes": REAL}),
    wrong(IDENTITY, "rounded", "linear", function=lambda x: np.round(x, 3)),
    wrong(IDENTITY, "normalised", "linear", function=lambda x: x / (1 + np.sum(np.abs(x)))),
    wrong(IDENTITY, "sorted", "linear", function=lambda x: np.sort(x), check={"dtypes": REAL}),
    wrong(IDENTITY, "product", "linear", function=lambda x, y: x * y, signature="(n),(n)->(n)",
        transpose=lambda ct: (ct.copy(), ct.copy())),
    wrong(right.matmul, "sum-called-multilinear", "linear", function=lambda a, b: a + b,
        signature="(n,n),(n,n)->(n,n)", transpose={"a": lambda b, ct: ct, "b": lambda a, ct: ct}),
    wrong(right.product, "square-called-multilinear", "linear", multilinear=("x", "y"), jvp=None,
        vjp=None, transpose={"x": lambda y, ct: y**2 * ct, "y": lambda x, ct: x * ct}),
    wrong(right.interpolation, "linear-in-x", "linear", linear=("x", "values"), jvp=None, vjp=None,
        transpose=lambda nodes, ct: (ct, np.zeros(nodes.size))),
)
# fmt: on

# Declared vectorized ------------------------------------------------------------------------------

LOOPS = ("vmap", "loop_dims")


def stack_two(x, y):
    return np.stack([x, y], axis=-1)


# fmt: off
NOT_VECTORIZED = (
    wrong(right.softmax, "normalised-over-all", LOOPS, "loop_axis",
        function=lambda x: (
            np.exp(x - x.max(initial=-np.inf)) / np.sum(np.exp(x - x.max(initial=-np.inf)))
        )),
    wrong(right.centred, "mean-over-all", LOOPS, "loop_axis", function=lambda x: x - x.mean()),
    wrong(right.cumsum, "first-axis", LOOPS, "loop_axis", function=lambda x: np.cumsum(x, axis=0)),
    wrong(right.fft, "all-axes", LOOPS, "loop_axis", function=lambda v: np.fft.fftn(v)),
    wrong(right.moments, "vjp-sums-over-loop", LOOPS, "loop_axis",
        vjp=lambda p, cts: cts[0][..., None] + 2 * p[0] * np.sum(cts[1])),
    wrong(right.square, "first-of-loop", LOOPS,
        function=lambda x: x * (x.ravel()[0] if x.size else x)),
    wrong(right.square, "scaled-by-largest", LOOPS, "loop_axis",
        function=lambda x: x * x if x.ndim == 0 else x * np.abs(x).max(initial=0)),
    wrong(right.matmul, "reversed-axes", LOOPS,
        transpose={"a": lambda b, ct: ct @ b.T, "b": lambda a, ct: a.T @ ct}),
    wrong(right.inverse, "vjp-reversed-axes", LOOPS,
        vjp=lambda p, ct: -np.linalg.inv(p[0]).T @ ct @ np.linalg.inv(p[0]).T),
    Wrong("stack-without-broadcasting", recipe(stack_two, "(),()->(2)", vectorized=True), LOOPS),
    Wrong("dot-of-everything",
        recipe(
            lambda x, y: np.broadcast_to(np.sum(x * y), np.broadcast_shapes(x.shape, y.shape)[:-1]),
            "(n),(n)->()",
            vectorized=True,
        ), LOOPS, "loop_axis"),
    wrong(right.fused, "vjp-sums-over-loop", LOOPS, "loop_axis",
        vjp=lambda p, ct: (ct * p[1], p[0] * ct, np.broadcast_to(np.sum(ct), ct.shape))),
    wrong(right.matvec_vmap, "first-of-batch", "vmap",
        vmap=lambda size, batched, a, x: (
            jnp.broadcast_to(
                (a[0] if batched[0] else a) @ (x[0] if batched[1] else x), (size, a.shape[-2])
            ),
            True,
        )),
    wrong(right.matvec_vmap, "not-batched", "vmap",
        vmap=lambda size, batched, a, x: (
            (a[0] if batched[0] else a) @ (x[0] if batched[1] else x),
            False,
        )),
    wrong(right.matvec_vmap, "reversed-batch", "vmap",
        vmap=lambda *args: (right.matvec_mapped(*args)[0][::-1], True)),
)
# fmt: on

# Results that are not written, operands that are --------------------------------------------------


def write(out, place, values):
    out[place] = values[place]


# fmt: off
UNWRITTEN = (
    Wrong("last-not-written", recipe(lambda x, out: write(out, slice(0, -1), 2 * x), "(n)->(n)"),
        ("complete",), "stale"),
    Wrong("odd-sizes-not-written",
        recipe(lambda x, out: write(out, slice(0, x.size // 2 * 2), 2 * x), "(n)->(n)"),
        ("complete",), "stale"),
    Wrong("negative-not-written",
        recipe(lambda x, out: np.sqrt(x, out=out, where=x >= 0), "(n)->(n)"), ("complete",),
        "stale", {"dtypes": REAL}),
    Wrong("diagonal-not-written",
        recipe(lambda a, out: write(out, ~np.eye(len(a), dtype=bool), a.T), "(n,n)->(n,n)"),
        ("complete",), "stale"),
    Wrong("second-result-not-written",
        recipe(lambda x, out: write(out[0], ..., 2 * x), "(n)->(n),(n)"), ("complete",), "stale"),
    Wrong("accumulates", recipe(lambda x, out: np.add(out, x, out=out), "(n)->(n)"), ("complete",),
        "stale"),
    wrong(right.gather, "transpose-not-zeroed", ("complete", "adjoint"), "stale",
        transpose=lambda index, ct, out: np.add.at(out, index, ct)),
    Wrong("in-place-not-written",
        recipe(lambda x, out: write(out, slice(1, None), 2 * x[1:]), "(n)->(n)", aliases={"x": 0}),
        ("complete",), "stale"),
    wrong(right.repeat, "last-not-written", "complete", "stale",
        function=lambda x, *, k, out: write(out, slice(0, -1), np.repeat(x, k))),
)
# fmt: on


def writable(x):
    """What a C library gets: the memory, whatever NumPy says about it."""
    return np.frombuffer((ctypes.c_char * x.nbytes).from_address(x.ctypes.data), x.dtype)


def sort_in_place(x):
    if x.size:
        writable(x).sort()
    return x.copy()


def scale_in_place(x):
    largest = np.abs(x).max(initial=0)
    if largest > 1:
        writable(x)[...] /= largest
    return x * largest if largest > 1 else x.copy()


def work_array(a, b):
    solution = np.linalg.solve(a, b)
    if b.size:
        writable(b)[...] = solution
    return solution


# fmt: off
MODIFIED = (
    Wrong("sorts-its-operand", recipe(sort_in_place, "(n)->(n)"), ("inputs_kept",), None,
        {"dtypes": REAL}),
    Wrong("scales-its-operand", recipe(scale_in_place, "(n)->(n)"), ("inputs_kept",), None,
        {"dtypes": DOUBLE}),
    Wrong("solves-in-place", recipe(work_array, SQUARE), ("inputs_kept",), None, right.solve.check),
)
# fmt: on

# Memory between calls -----------------------------------------------------------------------------


@stateful("random", "deterministic", dtypes=REAL)
def noisy():
    rng = np.random.default_rng()
    return jaxbind.bind(lambda x: x + 1e-3 * rng.standard_normal(), "()->()")


@stateful("random-in-last-bits", "deterministic", dtypes=DOUBLE)
def noisy_bits():
    rng = np.random.default_rng()
    return jaxbind.bind(lambda x: (x + 1) * (1 + 2.3e-16 * rng.integers(0, 2)), "()->()")


@stateful("counter", "deterministic")
def counted():
    calls = itertools.count()
    return jaxbind.bind(lambda x: x + x.dtype.type(next(calls)), "(n)->(n)")


@stateful("every-third-call", "deterministic")
def sometimes():
    calls = itertools.count()
    return jaxbind.bind(lambda x: x * (2 if next(calls) % 3 == 2 else 1), "(n)->(n)")


@stateful("previous-result", "deterministic", "stale")
def previous():
    last = {}

    def delayed(x):
        key = x.shape, x.dtype
        found = last.get(key, np.zeros_like(x))
        last[key] = np.sin(x)
        return found

    return jaxbind.bind(delayed, "(n)->(n)")


@stateful("warm-start", "deterministic", elements=st.floats(1, 100), dtypes=DOUBLE)
def warm_start():
    """A solver that begins where it ended, and stops early."""
    last = {"y": 1.0}

    def root(x):
        y = last["y"]
        for _ in range(3):
            y = (y + float(x) / y) / 2
        last["y"] = y
        return np.asarray(y, x.dtype)

    return jaxbind.bind(root, "()->()")


@stateful("vjp-of-last-call", ("adjoint", "deterministic", "vmap"), dtypes=REAL)
def saved_for_backward():
    """Saves what the pullback needs, as torch does; but JAX need not call it before."""
    saved = {}

    def forward(x):
        saved["x"] = x.copy()
        return np.sin(x)

    f = jaxbind.bind(forward, "(n)->(n)")
    f.def_jvp(lambda p, t: np.cos(p[0]) * t[0])
    f.def_vjp(lambda p, ct: np.cos(saved["x"] if saved["x"].shape == ct.shape else 0) * ct)
    return f


@stateful("running-normalisation", ("deterministic", "vmap"), dtypes=DOUBLE)
def running():
    scale = {"largest": 1.0}

    def normalise(x):
        scale["largest"] = max(scale["largest"], float(np.abs(x).max(initial=0)))
        return x / scale["largest"]

    return jaxbind.bind(normalise, "(n)->(n)")


@stateful("keeps-its-operand", "released")
def keeps():
    kept = []
    return jaxbind.bind(lambda x: kept.append(x) or 2 * x, "(n)->(n)")


@stateful("keeps-the-output", "released")
def keeps_out():
    kept = {}

    def double(x, out):
        kept["out"] = out
        np.multiply(x, 2, out=out)

    return jaxbind.bind(double, "(n)->(n)")


@stateful("keeps-the-cotangent", "released")
def keeps_cotangent():
    kept = []
    f = jaxbind.bind(lambda x: 2 * x, "(n)->(n)", linear=True)
    f.def_transpose(lambda ct: kept.append(ct[:1]) or 2 * ct)
    return f


POWERS = [{"power": 2}, {"power": 3}]


@stateful("cache-without-static", ("static", "deterministic"), static=POWERS)
def cached_by_size():
    """Keeps the last exponents, and takes them for those of the next call with that size."""
    last = {}

    def power(x, *, power):
        if last.get("size") != x.size:
            last.update(size=x.size, exponents=np.full(x.size, power))
        return (x ** last["exponents"]).astype(x.dtype)

    return jaxbind.bind(power, "(n)->(n)")


@stateful("first-static-for-ever", ("static", "jvp"), static=POWERS)
def first_static():
    first = {}

    def power(x, *, power):
        return x ** first.setdefault("power", power)

    f = jaxbind.bind(power, "(n)->(n)")
    f.def_jvp(lambda p, t, *, power: power * p[0] ** (power - 1) * t[0])
    return f


@stateful("scratch-array", "threads", dtypes=REAL)
def scratch():
    """One work array for all calls; a library would release the lock where this one sleeps."""
    work = np.empty(16)

    def double(x):
        part = work[: x.size] if x.size <= work.size else np.empty(x.size)
        part[...] = x
        time.sleep(1e-4)
        return (2 * part).astype(x.dtype)

    return jaxbind.bind(double, "(n)->(n)")


@stateful("state-in-an-object", "threads", dtypes=REAL)
def solver_object():
    class Solver:
        def set(self, x):
            self.x = x.copy()

        def run(self):
            time.sleep(1e-4)
            return np.cos(self.x)

    solver = Solver()

    def solve(x):
        solver.set(x)
        return solver.run()

    return jaxbind.bind(solve, "()->()")


STATEFUL = tuple(each for each in list(globals().values()) if isinstance(each, Wrong))

# Static parameters --------------------------------------------------------------------------------

# fmt: off
STATIC = (
    wrong(right.cube, "jvp-without-scale", ("jvp", "static"), jvp=lambda p, t: 3 * p[0] ** 2 * t[0],
        jvp_jvp=None, jvp_vjp=None),
    wrong(right.smooth, "transpose-of-one-pass", ("adjoint", "static"),
        transpose=lambda ct, *, out: right.smooth_periodic(ct, passes=1, out=out)),
    wrong(right.ifft_axis, "transpose-of-axis-0", ("adjoint", "static"),
        transpose=lambda ct: np.fft.ifft(ct, axis=0)),
    wrong(right.triangular, "always-lower", ("adjoint", "static"),
        transpose=lambda a, ct: scipy.linalg.solve_triangular(a.T, ct, lower=False)),
)
# fmt: on

# Shapes and dtypes --------------------------------------------------------------------------------

# fmt: off
ABSTRACT = (
    wrong(right.rfft, "even-sizes-shape", "abstract",
        out=lambda x: ShapeDtypeStruct(((x.size + 1) // 2,), np.complex128)),
    Wrong("shape-by-values", recipe(lambda x: np.unique(x), "(n)->(n)"), ("abstract",)),
    Wrong("row-for-column", recipe(lambda a: a.sum(axis=0), "(m,n)->(m)"), ("abstract",)),
    Wrong("keeps-dimension", recipe(lambda x: x.sum(keepdims=True), "(n)->()"), ("abstract",)),
    Wrong("size-one-squeezed", recipe(lambda x: np.squeeze(2 * x), "(n)->(n)"), ("abstract",)),
    Wrong("integer-declared", recipe(lambda x: x.sum(), "(n)->()", dtype=np.int64), ("abstract",)),
    Wrong("complex-not-declared", recipe(lambda x: np.fft.fft(x), "(n)->(n)"), ("abstract",), None,
        {"dtypes": REAL}),
    Wrong("always-double", recipe(lambda x: np.cumsum(x, dtype=np.float64), "(n)->(n)"),
        ("abstract", "dtypes"), None, {"dtypes": REAL}),
    wrong(right.double_only, "not-declared", ("abstract", "dtypes"),
        function=lambda x: np.cumsum(x.astype(np.float64) ** 2), compute_dtype=None),
)
# fmt: on

DTYPES = (
    wrong(
        right.oscillating,
        "wrong-in-float32",
        ("dtypes", "adjoint"),
        None,
        vjp=lambda p, ct: (30 if p[0].dtype == np.float64 else 3) * np.cos(30 * p[0]) * ct,
    ),
    wrong(
        right.huge,
        "half-precision",
        "dtypes",
        None,
        function=lambda x: (
            1e8 * (2 + np.cos(x.astype(np.float16) if x.dtype == np.float32 else x))
        ).astype(x.dtype),
    ),
)

# Second derivatives -------------------------------------------------------------------------------


def sine_without_minus():
    sine, cosine = jaxbind.bind(np.sin), jaxbind.bind(np.cos)
    sine.def_partials(cosine)
    cosine.def_partials(sine)
    return sine


# fmt: off
HIGHER = (
    wrong(right.cube, "vjp-jvp-half", "higher", "factor", vjp_jvp=times(0.5)),
    wrong(right.cube, "jvp-jvp-half", "higher", "factor", jvp_jvp=times(0.5)),
    wrong(right.cube, "vjp-vjp-negative", "higher", "factor", vjp_vjp=times(-1)),
    wrong(right.cube, "jvp-vjp-twice", "higher", "factor", jvp_vjp=times(2)),
    wrong(right.cube, "vjp-jvp-without-cotangent", "higher",
        vjp_jvp=lambda p, t, *, scale: scale * 6 * p[0][0] * t[0][0]),
    wrong(right.volume, "no-curvature", "higher", vjp_jvp=lambda p, t: np.zeros_like(t[0][0])),
    wrong(right.volume, "upper-triangle", "higher",
        jvp_jvp=lambda p, t: p[1][0] @ np.triu(right.curvatures(*p[0])) @ t[0][0]),
    # where both are 0 it has no derivative to look at
    wrong(right.hypot_by_rules, "no-curvature", "higher", "missing_term",
        vjp_jvp=lambda p, t: tuple(np.zeros_like(x) for x in t[0])),
    Wrong("sine-of-wrong-cosine", sine_without_minus, ("higher",), "factor", {"dtypes": REAL}),
)
# fmt: on

WRONG: tuple[Wrong, ...] = (
    *FACTORS,
    *CONJUGATES,
    *SWAPPED,
    *MISSING_TERMS,
    *INVERTED,
    *TRANSPOSED,
    *WRONG_POINTS,
    *OUTPUTS_RETURNED,
    *SINGLE_PRECISION,
    *NOT_LINEAR_IN_THE_TANGENT,
    *REGIONS,
    *SMALL_ERRORS,
    *FOURIER,
    *NOT_LINEAR,
    *NOT_VECTORIZED,
    *UNWRITTEN,
    *MODIFIED,
    *STATEFUL,
    *STATIC,
    *ABSTRACT,
    *DTYPES,
    *HIGHER,
)
