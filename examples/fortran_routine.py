"""A Fortran 77 routine: implicit heat conduction, differentiated through its own solver.

It needs gfortran: ``apt install gfortran`` (Debian, Ubuntu), ``dnf install gcc-gfortran``
(Fedora), ``brew install gcc`` (macOS), ``conda install -c conda-forge gfortran``.
"""

import ctypes
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import jax.scipy.optimize
import numpy as np

import jaxbind

jax.config.update("jax_enable_x64", True)

SOURCE = """\
      SUBROUTINE TRIDAG(N, A, B, C, R, U, INFO)
C     Solves a tridiagonal system: A(i) U(i-1) + B(i) U(i)
C     + C(i) U(i+1) = R(i), by elimination without pivoting.
      INTEGER N, INFO, I
      DOUBLE PRECISION A(N), B(N), C(N), R(N), U(N), G(10000), BET
      INFO = 0
      IF (N .GT. 10000) THEN
        INFO = 2
        RETURN
      END IF
      BET = B(1)
      IF (BET .EQ. 0D0) GOTO 90
      U(1) = R(1) / BET
      DO 10 I = 2, N
        G(I) = C(I-1) / BET
        BET = B(I) - A(I) * G(I)
        IF (BET .EQ. 0D0) GOTO 90
        U(I) = (R(I) - A(I) * U(I-1)) / BET
   10 CONTINUE
      DO 20 I = N - 1, 1, -1
        U(I) = U(I) - G(I+1) * U(I+1)
   20 CONTINUE
      RETURN
   90 INFO = 1
      END
"""

if shutil.which("gfortran") is None:
    print(f"gfortran is not installed.\n{__doc__}")
    sys.exit(0)


def library() -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        source, built = Path(folder, "tridag.f"), Path(folder, "tridag.so")
        source.write_text(SOURCE)
        # -frecursive: local arrays on the stack, so that several threads may call it
        options = ["-O2", "-frecursive", "-shared", "-fPIC"]
        subprocess.run(["gfortran", *options, str(source), "-o", str(built)], check=True)
        return ctypes.CDLL(str(built))


solve = jaxbind.bind(
    jaxbind.Kernel(
        library().tridag_,  # Fortran compilers append an underscore
        "(n),(n),(n),(n)->(n)",
        convention="Fortran",
        args="n, lower, diagonal, upper, r, out, info",
        status="info",
    ),
    linear="r",
)


@solve.def_transpose(traced=True)
def _(lower, diagonal, upper, cotangent):
    """The transposed matrix has its diagonals exchanged."""
    return solve(jnp.roll(upper, 1), diagonal, jnp.roll(lower, -1), cotangent)


def multiply(lower, diagonal, upper, u):
    below = jnp.concatenate([jnp.zeros(1), u[:-1]])
    above = jnp.concatenate([u[1:], jnp.zeros(1)])
    return lower * below + diagonal * u + upper * above


@solve.def_jvp(traced=True)
def _(primals, tangents):
    """From A u = r follows A du = -dA u."""
    u = solve(*primals)
    return -solve(*primals[:3], multiply(*tangents[:3], u))


def temperature(conductivity, start, steps=50):
    """Implicit steps of heat conduction in a rod with cold ends."""
    between = (conductivity[1:] + conductivity[:-1]) / 2
    below = jnp.concatenate([conductivity[:1], between])
    above = jnp.concatenate([between, conductivity[-1:]])

    def step(u, _):
        return solve(-below, 1 + below + above, -above, u), None

    return jax.lax.scan(step, start, length=steps)[0]


def main():
    x = np.linspace(0, 1, 60)
    truth = 0.5 + 1.5 * (np.abs(x - 0.6) < 0.15)
    starts = np.stack([np.exp(-((x - c) ** 2) / 0.002) for c in np.linspace(0.1, 0.9, 9)])
    run = jax.vmap(temperature, (None, 0))  # one foreign call a step for all nine
    data = run(truth, starts)

    def misfit(log_k):
        smooth = jnp.sum(jnp.diff(log_k) ** 2)
        return jnp.sum((run(jnp.exp(log_k), starts) - data) ** 2) + 1e-6 * smooth

    start = jnp.zeros(x.size)
    print(f"misfit at the start {misfit(start):.4f}")
    found = jax.scipy.optimize.minimize(misfit, start, method="BFGS", options={"maxiter": 200}).x
    error = np.sqrt(np.mean((jnp.exp(found) - truth) ** 2))
    print(f"misfit at the end   {misfit(found):.2e}; rms error of the conductivity {error:.3f}")
    assert error < 0.2

    gradient = jax.grad(misfit)(start)
    h = 1e-6 * np.sin(np.arange(x.size))
    numerical = (misfit(start + h) - misfit(start - h)) / 2
    np.testing.assert_allclose(gradient @ h, numerical, rtol=1e-5)


if __name__ == "__main__":
    main()
