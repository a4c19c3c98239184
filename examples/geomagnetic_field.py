"""The Earth's magnetic field: DUCC's spherical-harmonic transforms as JAX primitives.

The International Geomagnetic Reference Field (IGRF-14) describes the main field by Gauss
coefficients g_lm and h_lm up to degree 13, every five years from 1900 to 2030. Here
  1. DUCC's spherical-harmonic synthesis, compiled C++, is bound to JAX with its transpose;
  2. it evaluates the radial field of all epochs with one `jax.vmap`, checked against ppigrf;
  3. the coefficients of one epoch are recovered from noisy values with gaps. The gradient and
     the Hessian of the posterior come from `jax.grad` and `jax.linearize`, and the conjugate
     gradients run in a single `jax.jit`.

Run it with

    pip install "jaxbind[examples]"
    python geomagnetic_field.py --epoch 2025 --noise 50

References:
  - Alken et al. (2021), International Geomagnetic Reference Field: the thirteenth generation,
    Earth, Planets and Space 73:49, eq. 1: the expansion. The coefficients of the fourteenth
    generation: doi:10.5281/zenodo.14012302.
  - Lowes (1966), J. Geophys. Res. 71, 2179; Lowes (1974), Geophys. J. R. astr. Soc. 36, 717:
    the power spectrum.
  - Langel and Estes (1982), Geophys. Res. Lett. 9, 250: its shape, our prior.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxbind

try:
    import ducc0
    import matplotlib
    import ppigrf
except ModuleNotFoundError as error:
    raise SystemExit(
        f"This example needs the package {error.name!r}, which is not installed."
        ' Get all that the examples need with: pip install "jaxbind[examples]"'
    ) from error

matplotlib.use("Agg")
import matplotlib.pyplot as plt

jax.config.update("jax_enable_x64", True)

DEGREE = 13  # the degree up to which IGRF has coefficients
RADIUS = 6371.2  # km, the reference sphere of IGRF
FINE = {"nlat": 181, "nlon": 360}  # the grid of maps and of their statistics
TOLERANCE = 1e-10  # of the conjugate gradients
MAX_ITERATIONS = 1000


# ---- Layout: Gauss coefficients <-> DUCC's ----
#
# A field on the sphere in real, orthonormal spherical harmonics has one real coefficient x per
# degree l and order m, m >= 0 for cos(m phi) and m < 0 for sin(|m| phi). DUCC wants complex
# a_lm for m >= 0, with
#
#     f = sum_l a_l0 Y_l0 + sum_{m>0} 2 Re(a_lm Y_lm),
#
# so that a_l0 = x_l0 and a_lm = (x_lm - i x_l,-m) / sqrt(2). As a map from real vectors to real
# vectors this only moves entries and multiplies each by a factor,
#
#     alm.view(real)[position] = factor * x.
#
# DUCC's adjoint returns b_lm = sum_i conj(Y_lm(i)) w_i; the derivative of <w, f> with respect to
# Re(a_lm) and Im(a_lm) is then Re(b_lm) and Im(b_lm) for m = 0, and twice that for m > 0.


class Layout(NamedTuple):
    """Where each coefficient has its place; all arrays have shape ``(lmax * (lmax + 2),)``."""

    degree: np.ndarray
    order: np.ndarray
    position: np.ndarray
    factor: np.ndarray


@lru_cache
def layout(lmax: int) -> Layout:
    """The order of IGRF's files: (l, m) = (1,0), (1,1), (1,-1), (2,0), (2,1), (2,-1), ..."""
    pairs = [
        (degree, order)
        for degree in range(1, lmax + 1)
        for order in sorted(range(-degree, degree + 1), key=lambda m: (abs(m), -m))
    ]
    degree, order = np.array(pairs).T
    index = abs(order) * (2 * lmax + 1 - abs(order)) // 2 + degree
    factor = np.where(order == 0, 1.0, np.where(order > 0, 1, -1) / math.sqrt(2))
    return Layout(degree, order, 2 * index + (order < 0), factor)


# ---- The binding ----


def grid_struct(x, *, lmax, nlat, nlon):
    """Shape and dtype of the result of `synthesis`."""
    del lmax
    return jax.ShapeDtypeStruct((nlat, nlon), x.dtype)


def ducc_options(lmax: int, nlon: int) -> dict:
    """A Gauss-Legendre grid, north to south; rings start half a cell east of Greenwich."""
    return {"spin": 0, "lmax": lmax, "geometry": "GL", "phi0": math.pi / nlon}


@jaxbind.bind(out=grid_struct, linear=True)
def synthesis(x, *, lmax, nlat, nlon, out):
    """Evaluate real, orthonormal spherical harmonics on a Gauss-Legendre grid.

    Args:
      x: coefficients, real, ``(lmax * (lmax + 2),)``, ordered as in `layout`.
      lmax: the highest degree.
      nlat, nlon: the size of the grid.
      out: the field, ``(nlat, nlon)``, in the unit of ``x``; written in place.
    """
    place = layout(lmax)
    count = (lmax + 1) * (lmax + 2) // 2
    alm = np.zeros((1, count), np.result_type(x.dtype, np.complex64))
    alm.view(x.dtype)[0, place.position] = place.factor * x
    ducc0.sht.synthesis_2d(alm=alm, map=out[None], **ducc_options(lmax, nlon))


@synthesis.def_transpose
def synthesis_transpose(field, *, lmax, nlat, nlon):
    """The transpose: a field ``(nlat, nlon)`` to coefficients ``(lmax * (lmax + 2),)``."""
    del nlat
    place = layout(lmax)
    alm = ducc0.sht.adjoint_synthesis_2d(map=field[None], **ducc_options(lmax, nlon))
    values = alm.view(field.dtype)[0, place.position]
    return (place.factor * np.where(place.order == 0, 1, 2) * values).astype(field.dtype)


# ---- The field and its statistics ----


def radial_factor(lmax: int) -> np.ndarray:
    """Diagonal from Gauss coefficients to orthonormal ones of B_r at r = a, same unit.

    With V = a sum_lm (a/r)^(l+1) [g_lm cos(m phi) + h_lm sin(m phi)] P_lm(cos theta) and
    Schmidt's P_lm (Alken et al. 2021, eq. 1), B_r = -dV/dr brings l + 1. Schmidt's functions
    have the mean square 1 / (2l + 1) over the sphere, orthonormal ones 1 / (4 pi), and DUCC's
    the Condon-Shortley sign.
    """
    degree, order = layout(lmax).degree, layout(lmax).order
    norm = np.sqrt(4 * np.pi / (2 * degree + 1))
    return (degree + 1) * norm * np.where(order % 2, -1, 1)


def radial_field(gauss: jax.Array, *, nlat: int, nlon: int) -> jax.Array:
    """B_r in nT, ``(nlat, nlon)``, outward, at r = a, of Gauss coefficients in nT, ``(195,)``."""
    x = radial_factor(DEGREE) * gauss
    return synthesis(x, lmax=DEGREE, nlat=nlat, nlon=nlon)


def grid(nlat: int, nlon: int) -> tuple[np.ndarray, np.ndarray]:
    """Colatitudes ``(nlat, 1)`` and longitudes ``(1, nlon)`` of the grid, in radians."""
    theta = ducc0.misc.GL_thetas(nlat)
    phi = (np.arange(nlon) + 0.5) * 2 * np.pi / nlon
    return theta[:, None], phi[None, :]


def lowes_spectrum(gauss: np.ndarray) -> np.ndarray:
    """R_l = (l + 1) sum_m (g_lm^2 + h_lm^2), the mean of |B|^2 at r = a, per degree.

    Args:
      gauss: coefficients in nT, ``(195,)``.

    Returns:
      nT^2, ``(13,)`` for l = 1 to 13 (Lowes 1966, 1974).
    """
    degree = layout(DEGREE).degree
    return np.bincount(degree, (degree + 1) * np.asarray(gauss) ** 2)[1:]


def prior_deviation() -> np.ndarray:
    """Prior standard deviation of each Gauss coefficient, nT, ``(195,)``.

    The core's spectrum as Magsat saw it in 1980, R_l = 1.349e9 * 0.270^l nT^2 (Langel and Estes
    1982), in equal parts to the 2l + 1 coefficients of a degree. No epoch of IGRF enters.
    """
    degree = layout(DEGREE).degree
    return np.sqrt(1.349e9 * 0.270**degree / ((degree + 1) * (2 * degree + 1)))


def rms(field: np.ndarray, where: np.ndarray | bool = True) -> float:
    """Root mean square over (a part of) the sphere of a field ``(nlat, nlon)``, its unit."""
    nlat = field.shape[0]
    weight = where * ducc0.sht.get_gridweights("GL", nlat)[:, None] * np.ones_like(field)
    return math.sqrt((weight * field**2).sum() / weight.sum())


# ---- Real coefficients, and observations with gaps ----


def read_igrf() -> tuple[np.ndarray, np.ndarray]:
    """The coefficients that the package ppigrf ships.

    Returns:
      Epochs in years, ``(27,)``, and Gauss coefficients in nT, ``(27, 195)``.
    """
    try:
        text = (resources.files("ppigrf") / "IGRF14.shc").read_text()
    except FileNotFoundError as error:
        raise SystemExit(
            "This ppigrf has no IGRF14.shc: it is too old. pip install --upgrade ppigrf"
        ) from error
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    epochs = np.array(rows[1], float)
    table = np.array(rows[2:], float)
    place = layout(DEGREE)
    if not np.array_equal(table[:, :2], np.stack([place.degree, place.order], axis=1)):
        raise ValueError("IGRF14.shc: degrees and orders are not in the expected order")
    return epochs, table[:, 2:].T


def surveyed(nlat: int, nlon: int) -> np.ndarray:
    """Which points are surveyed: none beyond 70 degrees, none in a disc in the Pacific.

    Returns:
      Booleans, ``(nlat, nlon)``; the disc has a radius of 35 degrees around 10 S, 150 W.
    """
    theta, phi = grid(nlat, nlon)
    theta0, phi0, radius = np.radians([100, 210, 35])
    cosine = np.cos(theta) * np.cos(theta0)
    cosine = cosine + np.sin(theta) * np.sin(theta0) * np.cos(phi - phi0)
    return (cosine < np.cos(radius)) & (abs(theta - np.pi / 2) < np.radians(70))


def observe(field, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy values, nT, and where there are any; 30 % of the surveyed points are lost too."""
    rng = np.random.default_rng(seed)
    data = field + noise * rng.standard_normal(field.shape)
    return data, surveyed(*field.shape) & (rng.random(field.shape) > 0.3)


# ---- Recovery ----
#
# With the data d = M (A x + n) of Gauss coefficients x (A: `radial_field`, M: the mask), noise n
# of covariance N = noise^2 and prior covariance S, the posterior's negative logarithm is
#
#     L(x) = 1/2 |M (d - A x)|^2 / noise^2 + 1/2 x^T S^-1 x.
#
# It is quadratic: its gradient at 0 is -b, its Hessian H = A^T M N^-1 A + S^-1 is constant, the
# posterior mean solves H x = b, and H^-1 is the posterior covariance. JAX makes b and H out of
# L, and in doing so transposes the binding; A^T appears nowhere below. The errors that the
# posterior covariance lets us expect are those of a field drawn from the prior.


def loss(gauss, data, observed, noise):
    """L(x), dimensionless; ``gauss`` ``(195,)``, ``data`` ``(nlat, nlon)``, both in nT."""
    nlat, nlon = data.shape
    misfit = jnp.where(observed, data - radial_field(gauss, nlat=nlat, nlon=nlon), 0) / noise
    return (jnp.sum(misfit**2) + jnp.sum((gauss / prior_deviation()) ** 2)) / 2


def normal_equations(data, observed, noise) -> tuple[Callable, jax.Array]:
    """H, as a function of a vector ``(195,)``, and b, ``(195,)``."""
    start = jnp.zeros(DEGREE * (DEGREE + 2))
    gradient = jax.grad(partial(loss, data=data, observed=observed, noise=noise))
    at_start, hessian = jax.linearize(gradient, start)
    return hessian, -at_start


def conjugate_gradients(matvec, b, scale, *, tolerance, max_iterations, report):
    """Solve ``matvec(x) = b``, preconditioned by the diagonal ``scale`` of about ``1 / matvec``.

    Hestenes and Stiefel (1952), J. Res. Natl. Bur. Stand. 49, 409. The residual r is measured in
    the norm sqrt(r . scale * r), relative to that of b; ``report(iteration, residual)`` is
    called every tenth time.

    Returns:
      The solution, the number of iterations, and the last residual.
    """

    def relative(rho):
        return jnp.sqrt(rho / jnp.vdot(b, scale * b))

    def unfinished(state):
        *_, rho, iteration = state
        return (relative(rho) > tolerance) & (iteration < max_iterations)

    def step(state):
        x, r, p, rho, iteration = state
        hp = matvec(p)
        alpha = rho / jnp.vdot(p, hp)
        x, r = x + alpha * p, r - alpha * hp
        rho, old = jnp.vdot(r, scale * r), rho
        jax.lax.cond(
            iteration % 10 == 9,
            lambda: jax.debug.callback(report, iteration + 1, relative(rho), ordered=True),
            lambda: None,
        )
        return x, r, scale * r + rho / old * p, rho, iteration + 1

    start = (jnp.zeros_like(b), b, scale * b, jnp.vdot(b, scale * b), 0)
    x, *_, rho, iteration = jax.lax.while_loop(unfinished, step, start)
    return x, iteration, relative(rho)


@jax.jit
def recover(data, observed, noise):
    """Posterior mean of the Gauss coefficients, nT, ``(195,)``; iterations; last residual."""
    hessian, b = normal_equations(data, observed, noise)
    # the diagonal of H if the observations were spread evenly over the sphere
    diagonal = jnp.sum(observed, dtype=float) * (radial_factor(DEGREE) / noise) ** 2 / (4 * np.pi)
    scale = 1 / (diagonal + prior_deviation() ** -2)
    return conjugate_gradients(
        hessian,
        b,
        scale,
        tolerance=TOLERANCE,
        max_iterations=MAX_ITERATIONS,
        report=report_iteration,
    )


@jax.jit
def direct_solution(data, observed, noise):
    """By a dense factorisation: possible for 195 unknowns, and a check of the above.

    Returns:
      The posterior mean, nT, and covariance, nT^2, ``(195, 195)``; the least-squares solution,
      nT, that does without the prior.
    """
    hessian, b = normal_equations(data, observed, noise)
    matrix = jax.vmap(hessian)(jnp.eye(b.size))
    covariance = jnp.linalg.inv(matrix)
    likelihood = matrix - jnp.diag(prior_deviation() ** -2)
    return covariance @ b, covariance, jnp.linalg.solve(likelihood, b)


@partial(jax.jit, static_argnames=("nlat", "nlon"))
def deviation_map(covariance, *, nlat: int, nlon: int):
    """Posterior standard deviation of B_r, nT, ``(nlat, nlon)``: of A C A^T the diagonal's root.

    Args:
      covariance: of the Gauss coefficients, C, nT^2, ``(195, 195)``.
      nlat, nlon: the size of the grid.
    """
    modes = jnp.linalg.cholesky(covariance).T
    fields = jax.vmap(partial(radial_field, nlat=nlat, nlon=nlon))(modes)
    return jnp.sqrt(jnp.sum(fields**2, axis=0))


# ---- What is printed ----


@contextmanager
def stage(title: str) -> Iterator[None]:
    """Announce a stage, and say how long it took."""
    start = time.perf_counter()
    print(f"{title} ...", flush=True)
    yield
    print(f"  [{time.perf_counter() - start:.1f} s]", flush=True)


def report_iteration(iteration, residual):
    done = min(max(math.log(residual) / math.log(TOLERANCE), 0), 1)
    bar = ("#" * round(20 * done)).ljust(20, ".")
    print(f"  [{bar}] iteration {int(iteration):3d}, residual {float(residual):.0e}", flush=True)


def check_transpose(nlat: int, nlon: int) -> None:
    """<w, A v> = <A^T w, v> for random v and w."""
    rng = np.random.default_rng(1)
    v, w = rng.standard_normal(DEGREE * (DEGREE + 2)), rng.standard_normal((nlat, nlon))
    forward = partial(synthesis, lmax=DEGREE, nlat=nlat, nlon=nlon)
    (transposed,) = jax.linear_transpose(forward, v)(w)
    image = forward(v)
    scale = jnp.linalg.norm(w) * jnp.linalg.norm(image)
    error = float(abs(jnp.vdot(w, image) - jnp.vdot(transposed, v)) / scale)
    print(f"  <w, A v> and <A^T w, v> differ by {error:.1e} of |w| |A v|")
    if error > 1e-12:
        raise AssertionError("the transpose is wrong")


def check_against_ppigrf(fields, epochs, count: int = 200) -> None:
    """Compare ``fields``, nT, ``(epochs, nlat, nlon)``, with ppigrf at random grid points."""
    _, nlat, nlon = fields.shape
    rng = np.random.default_rng(2)
    i, j = rng.integers(nlat, size=count), rng.integers(nlon, size=count)
    theta, phi = grid(nlat, nlon)
    dates = [datetime(int(epoch), 1, 1) for epoch in epochs]
    there, _, _ = ppigrf.igrf_gc(RADIUS, np.degrees(theta[i, 0]), np.degrees(phi[0, j]), dates)
    error = abs(np.asarray(fields)[:, i, j] - there).max()
    values = f"{count} points x {epochs.size} epochs"
    print(f"  largest difference to ppigrf at {values}: {error:.1e} nT")
    if error > 1e-6:
        raise AssertionError("the fields disagree")


def print_errors(errors: dict[str, np.ndarray]) -> None:
    """The rms of fields, nT, on the `FINE` grid: everywhere, in the surveyed part, in the gaps."""
    inside = surveyed(**FINE)
    print("  rms error of B_r, nT:          everywhere   surveyed   the gaps")
    for name, error in errors.items():
        values = [rms(error, where) for where in (True, inside, ~inside)]
        print(f"    {name:28s}" + "".join(f"{value:11.2f}" for value in values))


def print_misfit(recovered, truth, data, observed) -> None:
    """How well coefficients, nT, ``(195,)``, fit the data, nT, and the truth, nT."""
    nlat, nlon = data.shape
    misfit = (data - radial_field(recovered, nlat=nlat, nlon=nlon))[observed]
    print(f"  rms of data minus recovered field: {np.sqrt(np.mean(misfit**2)):.2f} nT")
    relative = [
        np.linalg.norm((recovered - truth)[part]) / np.linalg.norm(truth[part])
        for part in (slice(None), slice(3, None))
    ]
    print(
        "  relative error of the vector of coefficients:"
        f" {relative[0]:.1e}, without the dipole {relative[1]:.1e}"
    )


def print_spectra(truth, recovered, covariance) -> None:
    """Per degree, the square roots of the Lowes spectra of truth, error and expected error."""
    expected = np.sqrt(np.diag(covariance))
    spectra = [lowes_spectrum(x) for x in (truth, recovered - truth, expected, prior_deviation())]
    print("  rms of |B| per degree, nT:  field    error  expected    prior  error/field")
    for degree, row in enumerate(np.sqrt(spectra).T, start=1):
        field, error, sigma, prior = row
        ratio = f"{error / field:.1e}" if field else "-"
        values = f"{field:9.1f} {error:8.2f} {sigma:9.2f} {prior:8.1f} {ratio:>12}"
        print(f"    degree {degree:2d}             {values}")


# ---- The picture ----


class Panels(NamedTuple):
    """What the picture shows; fields in nT, coefficients in nT."""

    truth: np.ndarray
    data: np.ndarray
    recovered: np.ndarray
    deviation: np.ndarray
    gauss_truth: np.ndarray
    gauss_recovered: np.ndarray
    gauss_deviation: np.ndarray


def draw_map(axes, field, title, *, limits, cmap):
    """A field ``(nlat, nlon)`` in Hammer's projection around the date line; gaps outlined."""
    nlat, nlon = field.shape
    theta, phi = grid(nlat, nlon)
    middles = (theta[1:, 0] + theta[:-1, 0]) / 2
    latitude = np.pi / 2 - np.concatenate([[0], middles, [np.pi]])
    longitude = np.linspace(-np.pi, np.pi, nlon + 1)
    image = axes.pcolormesh(longitude, latitude, field, vmin=limits[0], vmax=limits[1], cmap=cmap)
    theta, phi = grid(720, 1440)
    outline = surveyed(720, 1440).astype(float)
    style = {"colors": "k", "linewidths": 0.8}
    axes.contour(phi[0] - np.pi, np.pi / 2 - theta[:, 0], outline, [0.5], **style)
    axes.set_facecolor("0.82")
    axes.set_title(title, fontsize=11, pad=10)
    axes.set_xticks(np.radians([-120, -60, 0, 60, 120]), [])
    parallels = ["60°S", "30°S", "0°", "30°N", "60°N"]
    axes.set_yticks(np.radians([-60, -30, 0, 30, 60]), parallels, fontsize=7, color="0.3")
    axes.grid(color="k", alpha=0.25, linewidth=0.4)
    return image


def draw_spectra(axes, panels: Panels) -> None:
    """Lowes-Mauersberger spectra, nT^2, on a logarithmic axis."""
    degree = np.arange(1, DEGREE + 1)
    error = panels.gauss_recovered - panels.gauss_truth
    curves = [
        (panels.gauss_truth, "truth", {"color": "k", "marker": "o", "markersize": 7}),
        (panels.gauss_recovered, "recovered", {"color": "C0", "marker": "o", "markersize": 3.5}),
        (error, "error", {"color": "C3", "marker": "s", "markersize": 4}),
        (panels.gauss_deviation, "expected error", {"color": "C3", "linestyle": "--"}),
        (prior_deviation(), "prior", {"color": "0.6", "linestyle": "-", "zorder": 0}),
    ]
    for gauss, label, style in curves:
        power = lowes_spectrum(gauss)
        axes.semilogy(degree, np.where(power > 0, power, np.nan), label=label, **style)
    axes.set(xlabel="degree $l$", ylabel="$R_l$ at $r = a$ (nT$^2$)", xticks=degree)
    axes.set_title("Lowes-Mauersberger spectrum", fontsize=11, pad=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, frameon=False)


def draw(panels: Panels, *, epoch: float, noise: float, path: Path) -> None:
    """Draw five maps and the spectra into the file ``path``."""
    figure = plt.figure(figsize=(15, 7.8))
    box = {"left": 0.035, "right": 0.985, "top": 0.9, "bottom": 0.1}
    rows = {"height_ratios": [20, 1, 5, 20, 1], "hspace": 0.1, "wspace": 0.17}
    cells = figure.add_gridspec(5, 3, **box, **rows)
    truth, data, recovered, error, sigma = (
        figure.add_subplot(cells[row, column], projection="hammer")
        for row, column in [(0, 0), (0, 1), (0, 2), (3, 0), (3, 1)]
    )

    def colorbar(image, cell, label, **options):
        bar = {"orientation": "horizontal", "label": label}
        figure.colorbar(image, cax=figure.add_subplot(cell), **bar, **options)

    top = np.ceil(abs(panels.truth).max() / 1e4) * 10
    style = {"limits": (-top, top), "cmap": "RdBu_r"}
    draw_map(truth, panels.truth / 1e3, f"Truth: IGRF-14, {epoch:g}", **style)
    draw_map(data, panels.data / 1e3, f"Data: gaps, and noise of {noise:g} nT", **style)
    image = draw_map(recovered, panels.recovered / 1e3, "Recovered", **style)
    colorbar(image, cells[1, 1], "$B_r$ (µT)")

    top = panels.deviation.max()
    style = {"limits": (-top, top), "cmap": "RdBu_r"}
    image = draw_map(error, panels.recovered - panels.truth, "Recovered minus truth", **style)
    colorbar(image, cells[4, 0], "nT", extend="both")
    style = {"limits": (0, top), "cmap": "viridis"}
    image = draw_map(sigma, panels.deviation, "Expected error (one standard deviation)", **style)
    colorbar(image, cells[4, 1], "nT")

    draw_spectra(figure.add_subplot(cells[3:, 2]), panels)
    figure.suptitle("Radial magnetic field at the Earth's reference sphere", fontsize=14, y=0.985)
    note = "Hammer projection around 180°; meridians every 60°; outlined: not surveyed"
    figure.text(0.985, 0.015, note, ha="right", fontsize=8, color="0.3")
    figure.savefig(path, dpi=130)
    plt.close(figure)


# ---- The command line ----


def parse_arguments(epochs: np.ndarray, argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--output", type=Path, default=Path("geomagnetic_field.png"), help="picture to write"
    )
    parser.add_argument("--epoch", type=float, default=2025, help="year to recover")
    parser.add_argument("--noise", type=float, default=50, help="its standard deviation, nT")
    parser.add_argument(
        "--lmax-grid", type=int, default=45, help="degree that the grid of data resolves"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of noise and random gaps")
    arguments = parser.parse_args(argv)
    if arguments.epoch not in epochs:
        known = ", ".join(f"{epoch:g}" for epoch in epochs)
        parser.error(f"--epoch: IGRF has no epoch {arguments.epoch:g}; it has {known}")
    if not 0 < arguments.noise < math.inf:
        parser.error(f"--noise: must be positive, got {arguments.noise:g}")
    if not DEGREE <= arguments.lmax_grid <= 180:
        parser.error(f"--lmax-grid: must be from {DEGREE} to 180, got {arguments.lmax_grid}")
    if arguments.seed < 0:
        parser.error(f"--seed: must not be negative, got {arguments.seed}")
    if arguments.output.suffix.lower() != ".png":
        parser.error(f"--output: must end in .png, got {arguments.output}")
    if not arguments.output.absolute().parent.is_dir():
        parser.error(f"--output: there is no directory {arguments.output.absolute().parent}")
    return arguments


def main(argv=None) -> None:
    epochs, gauss = read_igrf()
    arguments = parse_arguments(epochs, argv)
    epoch, noise = arguments.epoch, arguments.noise
    nlat, nlon = arguments.lmax_grid + 1, 2 * arguments.lmax_grid + 2
    index = list(epochs).index(epoch)
    truth = gauss[index]
    print(f"IGRF-14: {epochs.size} epochs from {epochs[0]:g} to {epochs[-1]:g}, degree {DEGREE}")

    with stage(f"Radial field of all epochs on {nlat} x {nlon} points"):
        check_transpose(nlat, nlon)
        fields = jax.jit(jax.vmap(partial(radial_field, nlat=nlat, nlon=nlon)))(gauss)
        check_against_ppigrf(fields, epochs)

    data, observed = observe(np.asarray(fields[index]), noise, arguments.seed)
    share = f"{observed.sum()} of {observed.size} points"
    with stage(f"Recovering {epoch:g} from {share}, noise {noise:g} nT"):
        recovered, iterations, residual = jax.block_until_ready(recover(data, observed, noise))
        print(f"  conjugate gradients: {iterations} iterations, residual {residual:.0e}")
        if residual > TOLERANCE:
            print("  Not converged! What follows is not the posterior mean.")

    with stage("How good is it?"):
        direct, covariance, unregularised = direct_solution(data, observed, noise)
        print(f"  largest difference to a dense solution: {abs(recovered - direct).max():.0e} nT")
        show = jax.jit(partial(radial_field, **FINE))
        deviation = deviation_map(covariance, **FINE)
        print_errors(
            {
                "posterior mean": show(recovered - truth),
                "  expected of it": deviation,
                "least squares without prior": show(unregularised - truth),
                "zero, the prior's mean": show(truth),
            }
        )
        print_misfit(recovered, truth, data, observed)
        print_spectra(truth, recovered, covariance)

    with stage(f"Drawing {arguments.output}"):
        panels = Panels(
            truth=show(truth),
            data=np.where(observed, data, np.nan),
            recovered=show(recovered),
            deviation=deviation,
            gauss_truth=truth,
            gauss_recovered=recovered,
            gauss_deviation=np.sqrt(np.diag(covariance)),
        )
        draw(panels, epoch=epoch, noise=noise, path=arguments.output)


if __name__ == "__main__":
    main()
