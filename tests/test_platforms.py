"""`def_impl`: what takes the function's place on another platform (lowered for it, not run)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbind
from jaxbind import _jax, _partition

pytestmark = pytest.mark.usefixtures("x64")
x = np.random.default_rng(0).normal(size=(4, 5))


def made():
    @jaxbind.bind("(n)->(n),()")
    def f(v, *, power=2):
        return v**power, np.sum(v)

    @f.def_impl("gpu")
    def _(v, *, power):
        return v**power, jnp.sum(v)

    return f


def lowered(function, *args, platform="cuda"):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("platform", ["cuda", "rocm"])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.vmap, lambda f: jax.vmap(jax.vmap(f))])
def test_the_implementation_stands_in_the_program(platform, wrap):
    text = lowered(wrap(made()), np.stack([x, x]), platform=platform)
    assert "custom_call" not in text and "stablehlo.reduce" in text
    assert "@jaxbind" in lowered(wrap(made()), np.stack([x, x]), platform="cpu")


@pytest.mark.parametrize("wrap", [lambda f: f, jax.vmap, lambda f: jax.vmap(jax.vmap(f))])
def test_without_one_programs_for_cuda_call_the_function(wrap):
    """The same call as on the CPU; `test_gpu` runs it."""
    f = jaxbind.bind(np.square, "(n)->(n)")
    f.def_vjp(lambda p, ct: 2 * p[0] * ct)
    calls = []
    for platform in ("cpu", "cuda"):
        text = lowered(wrap(f), np.stack([x, x]), platform=platform)
        calls.append([line for line in text.splitlines() if "custom_call" in line])
    assert calls[0] == calls[1] and "@jaxbind" in calls[0][0]
    gradient = jax.grad(lambda v: jnp.sum(f(v)))
    assert "@jaxbind" in lowered(gradient, x[0])
    with pytest.raises(NotImplementedError, match="platform rocm"):
        lowered(gradient, x[0], platform="rocm")


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_what_each_device_calls(monkeypatch, platform):
    """What the partitioner lowers, which needs several devices to be asked."""
    monkeypatch.setattr(_partition, "may_split", lambda ctx, call: call.loop > 0)
    monkeypatch.setattr(
        _partition,
        "lower",
        lambda ctx, operands, call, shard, text: _jax.lower_traced(shard)(ctx, *operands),
    )
    f = jaxbind.bind(np.square, "(n)->(n)")
    assert "@jaxbind" in lowered(jax.vmap(f), x, platform=platform)


def test_on_the_cpu_the_function_is_called():
    f = made()
    got = jax.jit(jax.vmap(f))(x)
    np.testing.assert_array_equal(got[0], x**2)
    np.testing.assert_array_equal(got[1], [np.sum(row) for row in x])


def test_one_program_for_two_platforms():
    f = jaxbind.bind(np.square, "(n)->(n)", vectorized=True, name="test_platforms.square")
    f.def_impl("tpu")(jnp.square)
    checks = jaxbind.export_checks()
    exported = jax.export.export(jax.jit(f), platforms=("cpu", "tpu"), disabled_checks=checks)(x)
    assert exported.platforms == ("cpu", "tpu")
    np.testing.assert_array_equal(exported.call(x), x**2)


def test_each_platform_of_one_program_has_its_own():
    f = jaxbind.bind(np.sin, vectorized=True, name="test_platforms.sin")
    f.def_impl("cuda")(jnp.sin)
    f.def_impl("tpu")(jnp.cos)
    checks = jaxbind.export_checks()
    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(jax.jit(f), platforms=platforms, disabled_checks=checks)(x)
    text = exported.mlir_module()
    assert [text.count(f"stablehlo.{name}") for name in ("sine", "cosine")] == [1, 1]
    assert text.count("custom_call @jaxbind") == 1
    np.testing.assert_array_equal(exported.call(x), np.sin(x))
    with pytest.raises(NotImplementedError, match="platform rocm;"):
        jax.export.export(jax.jit(f), platforms=("tpu", "rocm"), disabled_checks=checks)(x)


def test_derivatives_have_implementations_of_their_own():
    f = made()
    f.def_vjp(lambda p, ct, *, power: (ct[0] * power * p[0] ** (power - 1) + ct[1],))
    gradient = jax.grad(lambda v: jnp.sum(f(v)[0]) + f(v)[1])
    with pytest.raises(NotImplementedError, match=r"f\.vjp\.def_impl\('rocm'\)"):
        lowered(gradient, x[0], platform="rocm")
    f.vjp.def_impl("cuda")(lambda p, ct, *, power: (ct[0] * power * p[0] + ct[1],))
    assert "custom_call" not in lowered(gradient, x[0])


def test_what_is_wrong_says_so():
    f = made()
    with pytest.raises(NotImplementedError, match=r"platform tpu; .* or give f\.def_impl\('tpu'\)"):
        lowered(f, x[0], platform="tpu")
    f.def_impl("tpu")(lambda v, *, power: (v[:2], 0.0))
    with pytest.raises(TypeError, match=r"f.def_impl: the implementation returned float64\[2\]"):
        lowered(f, x[0], platform="tpu")
    with pytest.raises(ValueError, match="on the CPU the bound function itself is called"):
        f.def_impl("cpu")
    with pytest.raises(TypeError, match=r"def_impl\(<function"):
        f.def_impl(lambda v: v)
    with pytest.raises(TypeError, match="got 3, which is not callable"):
        f.def_impl("tpu")(3)
