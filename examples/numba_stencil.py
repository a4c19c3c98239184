"""A stencil in Numba with its adjoint: recover the source of a wave from what was recorded.

The Laplacian is Numba's compiled loop, called without Python in every step of a `lax.scan`. It
is linear, so that its transpose is all that JAX needs; we write it as a second stencil, and
`python -m jaxbind.testing examples/numba_stencil.py` says whether the two belong together.
"""

import jax
import jax.numpy as jnp
import numba
import numpy as np

import jaxbind

jax.config.update("jax_enable_x64", True)


@numba.guvectorize(["void(float64[:,:], float64[:,:], float64[:,:])"], "(m,n),(m,n)->(m,n)")
def _flux(speed, u, out):
    """out = speed * (Laplacian of u), with u = 0 outside."""
    rows, columns = u.shape
    for i in range(rows):
        for j in range(columns):
            total = -4 * u[i, j]
            if i > 0:
                total += u[i - 1, j]
            if i < rows - 1:
                total += u[i + 1, j]
            if j > 0:
                total += u[i, j - 1]
            if j < columns - 1:
                total += u[i, j + 1]
            out[i, j] = speed[i, j] * total


@numba.guvectorize(["void(float64[:,:], float64[:,:], float64[:,:])"], "(m,n),(m,n)->(m,n)")
def _flux_adjoint(speed, w, out):
    """out = Laplacian of (speed * w): each term of `_flux`, scattered instead of gathered."""
    rows, columns = w.shape
    for i in range(rows):
        for j in range(columns):
            out[i, j] = 0
    for i in range(rows):
        for j in range(columns):
            given = speed[i, j] * w[i, j]
            out[i, j] -= 4 * given
            if i > 0:
                out[i - 1, j] += given
            if i < rows - 1:
                out[i + 1, j] += given
            if j > 0:
                out[i, j - 1] += given
            if j < columns - 1:
                out[i, j + 1] += given


# Each is linear in the speed and, separately, in the field. With L the Laplacian, which is
# symmetric, flux(c, u) = c L u and adjoint(c, w) = L (c w).
both = ("x1", "x2")
flux = jaxbind.bind(_flux, multilinear=both, name="flux")
adjoint = jaxbind.bind(_flux_adjoint, multilinear=both, name="flux_adjoint")
flux.def_transpose("x1", traced=True)(lambda u, cotangent: flux(cotangent, u))
flux.def_transpose("x2", traced=True)(lambda speed, cotangent: adjoint(speed, cotangent))
adjoint.def_transpose("x1", traced=True)(lambda w, cotangent: flux(w, cotangent))
adjoint.def_transpose("x2", traced=True)(lambda speed, cotangent: flux(speed, cotangent))

SIZE, STEPS = 48, 90
SPEED = 0.2 + 0.1 * (jnp.arange(SIZE) > SIZE // 2)[:, None] * jnp.ones((SIZE, SIZE))


def recorded(source):
    """Heights along the rim while a wave runs from its source."""

    def step(state, _):
        before, now = state
        after = 2 * now - before + flux(SPEED, now)
        rim = jnp.concatenate([after[0], after[-1], after[:, 0], after[:, -1]])
        return (now, after), rim

    return jax.lax.scan(step, (source, source), length=STEPS)[1]


def main():
    y, x = np.mgrid[:SIZE, :SIZE]
    truth = np.exp(-((x - 15) ** 2 + (y - 20) ** 2) / 12) - np.exp(
        -((x - 32) ** 2 + (y - 30) ** 2) / 12
    )
    data = recorded(truth)

    # least squares by conjugate gradients on Aᵀ A; Aᵀ comes from the two stencils
    transposed = jax.linear_transpose(recorded, truth)

    @jax.jit
    def solve(data):
        def normal(u):
            return transposed(recorded(u))[0] + 1e-3 * u

        return jax.scipy.sparse.linalg.cg(normal, transposed(data)[0], maxiter=60)[0]

    found = solve(data)
    error = np.linalg.norm(found - truth) / np.linalg.norm(truth)
    print(f"source recovered from its rim: relative error {error:.3f}")
    assert error < 0.05


if __name__ == "__main__":
    main()
