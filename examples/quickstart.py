"""Bind, differentiate, map, compile: what jaxbind does, on one page."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

import jaxbind

jax.config.update("jax_enable_x64", True)


# Shapes as NumPy gufuncs write them; the function sees and returns NumPy arrays.
@jaxbind.bind("(),()->()", vectorized=True)
def f(x1, x2):
    return x1 * x2**2


@f.def_jvp  # NumPy in, NumPy out
def _(primals, tangents):
    (x1, x2), (dx1, dx2) = primals, tangents
    return x2**2 * dx1 + 2 * x1 * x2 * dx2


@f.def_vjp
def _(primals, cotangent):
    x1, x2 = primals
    return x2**2 * cotangent, 2 * x1 * x2 * cotangent


# Shapes computed by a function; static parameters are keyword-only; `out` is written in place.
@jaxbind.bind(
    out=lambda x, *, factor: jax.ShapeDtypeStruct((factor * x.size,), x.dtype), linear=True
)
def upsample(x, *, factor, out):
    out[...] = np.repeat(x, factor)


@upsample.def_transpose
def _(cotangent, *, factor, out):
    cotangent.reshape(-1, factor).sum(axis=1, out=out)


# Anything callable: a ufunc of SciPy, with the derivative that the textbooks give (DLMF 10.6.1).
jv = jaxbind.bind(scipy.special.jv)
jv.def_partials(None, lambda v, x: (jv(v - 1, x) - jv(v + 1, x)) / 2)


def main() -> None:
    def twin(x1, x2):  # the same in jax.numpy, to compare with
        return x1 * x2**2

    x1, x2 = jnp.linspace(0.0, 1.0, 5), jnp.linspace(1.0, 2.0, 5)

    print("f(2, 3) =", f(2.0, 3.0))
    assert f(2.0, 3.0) == 18.0
    np.testing.assert_allclose(f(x1, x2[:, None]), twin(x1, x2[:, None]))  # broadcasts

    print("its gradient there:", jax.grad(f, argnums=(0, 1))(2.0, 3.0))
    for transform in (jax.grad, jax.value_and_grad, jax.jacfwd, jax.jacrev):
        got = jax.jit(jax.vmap(transform(f, argnums=(0, 1))))(x1, x2)
        want = jax.vmap(transform(twin, argnums=(0, 1)))(x1, x2)
        jax.tree.map(np.testing.assert_allclose, got, want)

    y = jax.jit(upsample, static_argnames="factor")(x1, factor=3)
    print("upsampled:", y.shape)
    assert y.shape == (15,)

    def energy(x):
        return jnp.sum(upsample(x, factor=3) ** 2)

    # the second derivative needs no more rules: the function is linear
    np.testing.assert_allclose(jax.hessian(energy)(x1), 6 * np.eye(5))

    x = jnp.linspace(0.1, 10.0, 7)
    slope = jax.vmap(jax.grad(jv, argnums=1), in_axes=(None, 0))(1.5, x)
    print("J'_1.5 at", x[0], "is", slope[0])
    np.testing.assert_allclose(slope, scipy.special.jvp(1.5, x), rtol=1e-12)
    curvature = jax.vmap(jax.grad(jax.grad(jv, 1), 1), in_axes=(None, 0))(1.5, x)
    np.testing.assert_allclose(curvature, scipy.special.jvp(1.5, x, 2), rtol=1e-12)
    print("all right")


if __name__ == "__main__":
    main()
