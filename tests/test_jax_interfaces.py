"""The private interfaces of JAX that `jaxbind._jax` uses are where it looks for them."""

import operator
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxbind
from jaxbind import _jax

# Without most of them something is lost (see where they are used) that other tests notice later.
PRIVATE = """
    core:trace_ctx.trace core:trace_ctx.set_trace core:abstract_token
    dispatch:prim_requires_devices_during_lowering
    mesh:thread_resources.env.physical_mesh
    custom_partitioning:_sharding_callbacks
    xla_bridge:backends_are_initialized
    interpreters.pxla:ExecuteReplicated.__call__
    callback:IOEffect callback:OrderedIOEffect callback:_callback_op_sharding
    effects:lowerable_effects.add_type
    ffi:build_ffi_lowering_function
    interpreters.mlir:set_sharding
    util:weakref_cache_key_types
    lax.lax:_reduce_lower lax.slicing:_scatter_lower
    lax.windowed_reductions:_generic_reduce_window_lower
    lax.windowed_reductions:_select_and_scatter_lower
    source_info_util:register_exclusion traceback_util:register_exclusion
"""


@pytest.mark.parametrize("name", PRIVATE.split())
def test_is_there(name):
    module, _, path = name.partition(":")
    assert operator.attrgetter(path)(import_module(f"jax._src.{module}")) is not None


def test_the_guard_refuses_operations_and_compiled_functions():
    compiled = jax.jit(jnp.sin)
    compiled(1.0)
    enter, leave = _jax.GUARD
    before = enter()
    try:
        for call in (jnp.sin, compiled):
            with pytest.raises(_jax.CalledJax, match="allow_jax=True"):
                call(1.0)
    finally:
        leave(before)
    np.testing.assert_allclose(compiled(1.0), np.sin(1.0), rtol=1e-6)


@jaxbind.bind("(n),(n)->()")
def dot(x, y):
    return x @ y


def calls_dot(x):
    return dot(x, jnp.ones(3))


@pytest.mark.parametrize("how", [jax.jit, jax.grad, jax.vmap, jax.make_jaxpr, lambda f: f])
def test_tracebacks_are_of_the_users_frames(how):
    with pytest.raises(ValueError, match="size 3 of core dimension n") as caught:
        how(calls_dot)(jnp.ones((2, 2)) if how is jax.vmap else jnp.ones(2))
    own = [str(entry.path) for entry in caught.traceback if "jaxbind/_" in str(entry.path)]
    # a call outside of JAX's transformations is not JAX's to shorten
    assert len(own) <= (how not in (jax.jit, jax.grad, jax.vmap, jax.make_jaxpr))


def test_programs_name_the_users_lines():
    text = jax.jit(calls_dot).lower(jnp.ones(3)).as_text(debug_info=True)
    line = calls_dot.__code__.co_firstlineno + 1
    assert f'test_jax_interfaces.py":{line}' in text
    assert "jaxbind/_" not in text
