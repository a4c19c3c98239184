"""The interface of JAXbind 1.3, against jax.numpy and DUCC called directly."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

import jaxbind
from jaxbind import get_linear_call, get_nonlinear_call, load_kwargs

pytestmark = pytest.mark.usefixtures("x64")


def shapes_like(*positions):
    def abstract(*args, **kwargs):
        del kwargs
        return tuple((args[p].shape, args[p].dtype) for p in positions)

    return abstract


def test_nonlinear_as_in_the_paper():
    def f(out, args, kwargs_dump):
        assert isinstance(out, tuple) and isinstance(args, tuple)
        x1, x2 = args
        out[0][()] = x1 * x2 ** load_kwargs(kwargs_dump)["power"]

    def f_jvp(out, args, kwargs_dump):
        p = load_kwargs(kwargs_dump)["power"]
        x1, x2, dx1, dx2 = args
        out[0][()] = x2**p * dx1 + p * x1 * x2 ** (p - 1) * dx2

    def f_vjp(out, args, kwargs_dump):
        p = load_kwargs(kwargs_dump)["power"]
        x1, x2, dy = args
        out[0][()] = x2**p * dy
        out[1][()] = p * x1 * x2 ** (p - 1) * dy

    f_jax = get_nonlinear_call(f, (f_jvp, f_vjp), shapes_like(0), shapes_like(0, 0))
    x1, x2 = jnp.full((4, 3), 4.0), jnp.full((4, 3), 2.0)
    result = f_jax(x1, x2, power=3)
    assert isinstance(result, list)
    np.testing.assert_array_equal(result[0], x1 * x2**3)
    check_grads(lambda *a: f_jax(*a, power=3), (x1, x2), order=1, eps=1e-3)
    twin = jax.vmap(jax.grad(lambda a, b: (a * b**3).sum(), (0, 1)), (0, None))
    got = jax.vmap(jax.grad(lambda a, b: f_jax(a, b, power=3)[0].sum(), (0, 1)), (0, None))(
        x1, x2[0]
    )
    jax.tree.map(np.testing.assert_allclose, got, twin(x1, x2[0]))
    # only one argument differentiated: the rule still writes both cotangents
    np.testing.assert_allclose(
        jax.grad(lambda b: f_jax(x1, b, power=3)[0].sum())(x2), 3 * x1 * x2**2
    )


def test_fixed_arguments_and_multilinear_functions():
    def mul(out, args, kwargs_dump):
        table, a, b = args
        out[0][()] = table * a * b

    def transpose_a(out, args, kwargs_dump):
        table, b, ct = args
        out[0][()] = table * b * ct

    f = get_linear_call(
        mul,
        (None, transpose_a, transpose_a),
        shapes_like(1),
        (None, shapes_like(1), shapes_like(1)),
        first_n_args_fixed=1,
    )
    table, a, b = (np.arange(3.0) + k for k in range(3))

    def total(function):
        return lambda a, b: jnp.sum(jnp.sin(function(a, b)))

    bound, twin = total(lambda a, b: f(table, a, b)[0]), total(lambda a, b: table * a * b)
    for transform in (jax.grad, jax.hessian):
        jax.tree.map(
            lambda g, w: np.testing.assert_allclose(g, w, atol=1e-12),
            transform(bound, (0, 1))(a, b),
            transform(twin, (0, 1))(a, b),
        )


@pytest.mark.parametrize("place", ["front", "back"])
@pytest.mark.parametrize("axes", [(0, 0), (1, 0), (0, None), (None, 1)])
def test_functions_that_batch_by_themselves(place, axes):
    """Outer product ``x[i] y[j]``; the result's batch axis is where `abstract` says."""
    seen = []

    def split(v, batch):
        """Batch axes in front, newest first."""
        return np.moveaxis(v, batch[::-1], range(len(batch))) if batch else v

    def outer(out, args, kwargs_dump):
        batch = load_kwargs(kwargs_dump)["batch_axes"]
        seen.append(batch)
        if batch is None:
            out[0][()] = np.multiply.outer(*args)
            return
        x, y = (split(v, b) for v, b in zip(args, batch, strict=True))
        result = x[..., :, None] * y[..., None, :]
        if place == "back" and (batch[0] or batch[1]):
            result = np.moveaxis(result, 0, -1)
        out[0][()] = result

    def abstract(x, y, *, batch_axes):
        shape, batch = [x.shape[-1], y.shape[-1]], ()
        if batch_axes is not None:
            core = [
                [s for a, s in enumerate(v.shape) if a not in b]
                for v, b in zip((x, y), batch_axes, strict=True)
            ]
            size = next(v.shape[b[-1]] for v, b in zip((x, y), batch_axes, strict=True) if b)
            shape = [core[0][0], core[1][0]]
            batch = 0 if place == "front" else len(shape)
            shape.insert(batch, size)
        return ((tuple(shape), x.dtype, batch),)

    f = get_linear_call(outer, (None, None), abstract, (None, None), func_can_batch=True)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 3) if axes[0] is not None else 3)
    y = rng.standard_normal((4, 5) if axes[1] is not None else 5)
    moved = [v if a is None else np.moveaxis(v, 0, a) for v, a in zip((x, y), axes, strict=True)]
    got = jax.jit(jax.vmap(lambda *v: f(*v)[0], in_axes=axes))(*moved)
    want = jax.vmap(jnp.outer, in_axes=axes)(*moved)
    np.testing.assert_allclose(got, want)
    assert seen == [tuple(() if a is None else (0,) for a in axes)]
    np.testing.assert_allclose(
        f(x if x.ndim == 1 else x[0], y if y.ndim == 1 else y[0])[0],
        np.outer(x if x.ndim == 1 else x[0], y if y.ndim == 1 else y[0]),
    )
    assert seen[-1] is None


def test_an_abstract_function_gets_the_keywords_of_the_call_and_no_others():
    def scale(out, args, kwargs_dump):
        out[0][()] = load_kwargs(kwargs_dump)["factor"] * args[0]

    def shape(v, *, factor):
        return ((v.shape, v.dtype),)

    f = get_linear_call(scale, scale, shape, shape)
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(f(x, factor=2.0)[0], 2 * x)
    np.testing.assert_array_equal(jax.grad(lambda v: f(v, factor=2.0)[0].sum())(x), [2, 2, 2])


@pytest.mark.parametrize("argnums", [0, 1, (0, 1)])
@pytest.mark.parametrize("axes", [(0, None), (None, 0), (0, 0)])
def test_some_gradients_of_functions_that_batch_by_themselves(axes, argnums):
    """The rule writes all cotangents, also those that are not wanted, in full."""

    def spread(args, kwargs_dump):
        batch = load_kwargs(kwargs_dump)["batch_axes"]
        return [v if batch is None or b else v[None] for v, b in zip(args, batch or args)]

    def f(out, args, kwargs_dump):
        x, y = spread(args, kwargs_dump)
        out[0][()] = x * y

    def f_jvp(out, args, kwargs_dump):
        x, y, dx, dy = spread(args, kwargs_dump)
        out[0][()] = x * dy + y * dx

    def f_vjp(out, args, kwargs_dump):
        x, y, ct = spread(args, kwargs_dump)
        out[0][()] = y * ct
        out[1][()] = x * ct

    def shapes(count):
        def abstract(x, y, *rest, batch_axes):
            shape = (3,)
            if batch_axes is not None:
                shape = (next(v.shape[0] for v, b in zip((x, y, *rest), batch_axes) if b), 3)
            return ((shape, x.dtype, 0),) * count

        return abstract

    g = get_nonlinear_call(f, (f_jvp, f_vjp), shapes(1), shapes(2), func_can_batch=True)
    rng = np.random.default_rng(0)
    args = [rng.standard_normal((4, 3) if a == 0 else 3) for a in axes]
    got, want = (
        jax.vmap(jax.grad(lambda x, y: (h(x, y) ** 2).sum(), argnums), axes)(*args)
        for h in (lambda x, y: g(x, y)[0], lambda x, y: x * y)
    )
    jax.tree.map(np.testing.assert_allclose, got, want)


def test_the_shape_of_a_vector_may_be_its_size():
    def copy(out, args, kwargs_dump):
        out[0][()] = args[0]

    abstract = lambda x: ((x.size, x.dtype),)
    f = get_linear_call(copy, copy, abstract, abstract)
    x = np.arange(3.0)
    np.testing.assert_array_equal(f(x)[0], x)
    np.testing.assert_array_equal(jax.grad(lambda x: (f(x)[0] ** 2).sum())(x), 2 * x)


def test_load_kwargs_of_a_pickled_array():
    dumped = np.frombuffer(pickle.dumps({"a": 1}), np.uint8)
    assert load_kwargs(dumped) == {"a": 1}


def test_ducc_transforms():
    ducc0 = pytest.importorskip("ducc0")
    from jaxbind.contrib import jaxducc0

    rng = np.random.default_rng(0)
    z = rng.standard_normal((4, 5, 6)) + 1j * rng.standard_normal((4, 5, 6))
    transform = lambda v: jaxducc0.c2c(v, axes=(1,))[0]
    np.testing.assert_allclose(transform(z), np.fft.fft(z, axis=1))
    got = jax.jit(jax.vmap(transform, in_axes=1, out_axes=2))(z)
    np.testing.assert_allclose(got, np.moveaxis(np.fft.fft(z, axis=2), 1, 2))
    check_grads(transform, (z,), order=2, eps=1.0)
    np.testing.assert_allclose(jaxducc0.genuine_fht(z.real)[0], ducc0.fft.genuine_fht(z.real))

    lmax, nside = 6, 4
    synthesis = jaxducc0.get_healpix_sht(nside, lmax, lmax, 0)
    packed = rng.standard_normal((1, 2 * jaxducc0.nalm(lmax, lmax) - lmax - 1))
    alm = jaxducc0._realalm2alm(packed, lmax, complex)
    np.testing.assert_allclose(jaxducc0._alm2realalm(alm, lmax, float), packed)
    rings = ducc0.healpix.Healpix_Base(nside, "RING").sht_info()
    direct = ducc0.sht.synthesis(alm=alm, lmax=lmax, mmax=lmax, spin=0, **rings)
    (sky,) = synthesis(packed)
    np.testing.assert_allclose(sky, direct)
    w = rng.standard_normal(sky.shape)
    (pulled,) = jax.linear_transpose(lambda v: synthesis(v)[0], packed)(w)
    np.testing.assert_allclose(np.vdot(w, sky), np.vdot(pulled, packed))
    with jax.enable_x64(False):
        np.testing.assert_allclose(synthesis(packed)[0], direct, rtol=1e-3, atol=1e-4)


def test_the_include_directory_has_the_header():
    import os

    assert os.path.exists(os.path.join(jaxbind.get_include(), "xla_ffi.h"))
