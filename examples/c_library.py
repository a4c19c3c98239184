"""A C library through ctypes: Kepler's equation inside JAX, with derivatives of any order.

The library is made here, from a page of C, to be complete; yours exists already. Its functions
are called by XLA themselves: no Python, no GIL, all cores.
"""

import ctypes
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import jaxbind

jax.config.update("jax_enable_x64", True)

SOURCE = r"""
#include <math.h>
#include <stdint.h>

/* The eccentric anomaly E with E - e sin E = M (Newton's method). */
double eccentric_anomaly(double M, double e) {
  double E = e < 0.8 ? M : M_PI;
  for (int i = 0; i < 50; i++) {
    double step = (E - e * sin(E) - M) / (1 - e * cos(E));
    E -= step;
    if (fabs(step) < 1e-15) break;
  }
  return E;
}

/* Radial velocities at n times; returns 1 if the orbit is not an ellipse. */
int radial_velocity(
    const double *times, double period, double e, double K, double *out, int64_t n) {
  if (e < 0 || e >= 1) return 1;
  for (int64_t i = 0; i < n; i++) {
    double E = eccentric_anomaly(2 * M_PI * times[i] / period, e);
    double nu = 2 * atan2(sqrt(1 + e) * sin(E / 2), sqrt(1 - e) * cos(E / 2));
    out[i] = K * (cos(nu) + e);
  }
  return 0;
}
"""


def library() -> ctypes.CDLL:
    """Compile and load it."""
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "kepler.c"), Path(folder, "kepler.so")
        source.write_text(SOURCE)
        command = ["cc", "-O3", "-shared", "-fPIC", str(source), "-o", str(built), "-lm"]
        subprocess.run(command, check=True)
        return ctypes.CDLL(str(built))


lib = library()

# A function of numbers: what ctypes knows is enough.
lib.eccentric_anomaly.argtypes = [ctypes.c_double, ctypes.c_double]
lib.eccentric_anomaly.restype = ctypes.c_double
anomaly = jaxbind.bind(jaxbind.Kernel(lib.eccentric_anomaly), threads=0)


def d_mean(M, e):
    """dE/dM = 1 / (1 - e cos E), by the implicit function theorem."""
    return 1 / (1 - e * jnp.cos(anomaly(M, e)))


anomaly.def_partials(d_mean, lambda M, e: jnp.sin(anomaly(M, e)) * d_mean(M, e))

# A function of arrays: say what its arguments are, in C's order.
velocity = jaxbind.bind(
    jaxbind.Kernel(
        lib.radial_velocity,
        "(n),(),(),()->(n)",
        args="const double *times, double period, double e, double K, double *out, int64_t n",
        status="return",
    )
)


def velocity_in_jax(times, period, e, K):
    """The same from the anomaly, which JAX can differentiate."""
    E = anomaly(2 * jnp.pi * times / period, e)
    nu = 2 * jnp.arctan2(jnp.sqrt(1 + e) * jnp.sin(E / 2), jnp.sqrt(1 - e) * jnp.cos(E / 2))
    return K * (jnp.cos(nu) + e)


velocity.def_jvp(lambda p, t: jax.jvp(velocity_in_jax, p, t)[1], traced=True)


def main():
    M, e = np.linspace(0, 6, 7), 0.3
    E = anomaly(M, e)
    np.testing.assert_allclose(E - e * np.sin(E), M, atol=1e-14)
    second = jax.vmap(jax.grad(jax.grad(anomaly)), (0, None))(M, e)
    print("d2E/dM2:", np.round(second, 4))

    # how well would 40 velocities determine the orbit?
    times = np.sort(np.random.default_rng(0).uniform(0, 200, 40))
    orbit = jnp.array([37.0, 0.4, 55.0])
    np.testing.assert_allclose(velocity(times, *orbit), velocity_in_jax(times, *orbit), rtol=1e-9)
    jacobian = jax.jit(jax.jacfwd(lambda p: velocity(times, *p)))(orbit)
    covariance = jnp.linalg.inv(jacobian.T @ jacobian / 3.0**2)
    for name, value, error in zip(
        ("period", "eccentricity", "amplitude"), orbit, jnp.sqrt(jnp.diag(covariance)), strict=True
    ):
        print(f"{name:12} {value:8.3f} ± {error:.3f}")

    try:
        velocity(times, 37.0, 1.5, 55.0).block_until_ready()
    except jax.errors.JaxRuntimeError as error:
        print("an orbit that is no ellipse:", str(error).splitlines()[0])
    else:
        raise AssertionError("the library's status went unnoticed")


if __name__ == "__main__":
    main()
