"""Find a wrong gradient that runs without complaint.

JAXbind 1.3's first demonstration binds FFTs and gives their *adjoints* where JAX wants their
*transposes*: without an error, without a warning, and with wrong gradients. `jaxbind.testing`
finds it from the declaration alone, and says what to write instead.

    pip install "jaxbind[testing]"
    python examples/find_the_bug.py
"""

import jax
import jax.numpy as jnp
import numpy as np

import jaxbind
from jaxbind import testing


def bind_fft(transpose):
    """``numpy.fft.fft``, which is linear, with a rule for its transpose."""
    fft = jaxbind.bind(np.fft.fft, "(n)->(n)", linear=True)
    fft.def_transpose(transpose)
    return fft


# The adjoint of the FFT is n times its inverse. It is what one writes first.
wrong = bind_fft(lambda cotangent: cotangent.shape[-1] * np.fft.ifft(cotangent))


def energy(fft, x):
    """A real loss of a complex spectrum, of which one wants the gradient."""
    return jnp.sum(jnp.abs(fft(x.astype(complex)) - 1j) ** 2)


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    x = jnp.asarray([0.3, -1.0, 2.0, 0.5])

    print("The gradient that the adjoint gives, and the one of jax.numpy:")
    print("  ", jax.grad(lambda x: energy(wrong, x))(x))
    print("  ", jax.grad(lambda x: energy(jnp.fft.fft, x))(x))

    print("\nNothing complained. Ask what was declared:\n")
    try:
        testing.check(wrong, seed=0)
    except testing.LawViolation as violation:
        print(violation)
        assert violation.law == "adjoint"
        assert violation.diagnosis.kind == "conjugate"
    else:
        raise AssertionError("the wrong rule was not found")

    # As the message says: conj(adjoint(conj(cotangent))), which is the FFT itself.
    right = bind_fft(np.fft.fft)
    testing.check(right, seed=0)
    np.testing.assert_allclose(
        jax.grad(lambda x: energy(right, x))(x),
        jax.grad(lambda x: energy(jnp.fft.fft, x))(x),
        rtol=1e-12,
    )
    print("\nWith the transpose in its place every law holds, and the gradient is right.")


if __name__ == "__main__":
    main()
