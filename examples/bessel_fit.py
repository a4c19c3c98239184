"""Fit the modes of a drum: Bessel functions of SciPy inside a gradient-based least squares.

A circular membrane of unit radius vibrates in modes J_n(k_nm r) cos(n phi). From noisy heights
at scattered points we recover the amplitudes, the centre and the radius, with derivatives of
J_n from its recurrence (DLMF 10.6.1), through SciPy's own compiled loop.
"""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import scipy.special

import jaxbind

jax.config.update("jax_enable_x64", True)

jv = jaxbind.bind(scipy.special.jv, threads=0)
jv.def_partials(None, lambda n, x: (jv(n - 1, x) - jv(n + 1, x)) / 2)

ORDERS = np.repeat(np.arange(3.0), 2)
ROOTS = np.concatenate([scipy.special.jn_zeros(n, 2) for n in range(3)])
TRUTH = {
    "amplitudes": jnp.array([1.0, -0.4, 0.6, 0.3, -0.5, 0.2]),
    "centre": jnp.array([0.02, -0.03]),
    "radius": jnp.array(1.05),
}


def height(parameters, points):
    """Height of the membrane at points, of shape (count, 2)."""
    shifted = points - parameters["centre"]
    r = jnp.linalg.norm(shifted, axis=1)
    phi = jnp.arctan2(shifted[:, 1], shifted[:, 0])
    modes = jv(ORDERS[:, None], ROOTS[:, None] * r / parameters["radius"])
    return parameters["amplitudes"] @ (modes * jnp.cos(ORDERS[:, None] * phi))


@jax.jit
def gauss_newton_step(parameters, points, data):
    flat, rebuild = jax.flatten_util.ravel_pytree(parameters)

    def residual(flat):
        return height(rebuild(flat), points) - data

    jacobian = jax.jacfwd(residual)(flat)
    step = jnp.linalg.lstsq(jacobian, residual(flat))[0]
    return rebuild(flat - step)


def main():
    rng = np.random.default_rng(0)
    points = rng.uniform(-0.7, 0.7, (2000, 2))
    noise = 0.01
    data = height(TRUTH, points) + noise * rng.normal(size=len(points))
    found = {
        "amplitudes": jnp.array([0.8, -0.2, 0.5, 0.1, -0.3, 0.1]),
        "centre": jnp.zeros(2),
        "radius": jnp.array(1.0),
    }
    for step in range(8):
        rms = jnp.sqrt(jnp.mean((height(found, points) - data) ** 2))
        print(f"step {step}: residual {rms:.5f}")
        found = gauss_newton_step(found, points, data)
    for name, truth in TRUTH.items():
        print(f"{name:10} found {np.round(found[name], 4)}  truth {np.round(truth, 4)}")
        np.testing.assert_allclose(found[name], truth, atol=0.01)

    # reverse mode through the same binding
    gradient = jax.grad(lambda p: jnp.sum((height(p, points) - data) ** 2))(found)
    assert all(jnp.max(jnp.abs(g)) < 1e-3 * len(points) for g in jax.tree.leaves(gradient))


if __name__ == "__main__":
    main()
