"""JAX's transformations around any function, for `test_compositions` and its neighbours."""

import contextlib
import functools

import jax
import jax.numpy as jnp
from comparing import is_inexact, nonlinear, split, tangents_of


@contextlib.contextmanager
def configured(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


def scaled(args, factor):
    return jax.tree.map(lambda x: x * factor if is_inexact(x) else x, args)


def stacked(args, *factors):
    """The operands times several factors, along an axis in front."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *(scaled(args, k) for k in factors))


def total(tree):
    return sum(jnp.sum(x.real) for x in jax.tree.leaves(tree) if is_inexact(x))


def in_scan(function):
    """Over factors of the operands, and a carry that depends on the results."""

    def scanned(*args):
        def body(carry, factor):
            results = function(*scaled(args, factor + 0.1 * jnp.tanh(carry)))
            return total(results), results

        return jax.lax.scan(body, 0.0, jnp.linspace(0.5, 1.5, 3))

    return scanned


def in_reversed_unrolled_scan(function):
    def scanned(*args):
        def body(carry, _):
            return scaled(carry, 0.9), function(*carry)

        return jax.lax.scan(body, args, None, length=3, reverse=True, unroll=2)[1]

    return scanned


def in_cond(function):
    def chosen(*args):
        first = jnp.sum(jax.tree.leaves(args)[0].real)
        return jax.lax.cond(first > -1e9, function, lambda *a: function(*scaled(a, 2.0)), *args)

    return chosen


def in_switch(function):
    def chosen(*args):
        branches = [lambda *a, k=k: function(*scaled(a, k)) for k in (1.0, 2.0, 3.0)]
        return jax.lax.switch(jnp.asarray(1), branches, *args)

    return chosen


def in_fori_loop(function):
    def looped(*args):
        def body(i, carry):
            results = function(*scaled(args, 1 + 0.1 * i))
            return jax.tree.map(lambda c, r: c + r if is_inexact(r) else r, carry, results)

        return jax.lax.fori_loop(0, 3, body, function(*args))

    return looped


def in_map(function):
    return lambda *args: jax.lax.map(lambda a: function(*a), stacked(args, 1, 2, 3))


def in_map_of_batches(function):
    def mapped(*args):
        return jax.lax.map(lambda a: function(*a), stacked(args, 1, 2, 3), batch_size=2)

    return mapped


def in_custom_vjp(function):
    """Whose own pullback is the binding's."""

    @jax.custom_vjp
    def around(*args):
        return function(*args)

    around.defvjp(lambda *args: jax.vjp(function, *args), lambda pull, cts: pull(cts))
    return around


def in_custom_jvp(function):
    @jax.custom_jvp
    def around(*args):
        return function(*args)

    around.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return around


def linearized(function):
    """The value and the tangent along fixed directions, through `linearize`."""

    def along(*args):
        value, push = jax.linearize(function, *args)
        return value, push(*tangents_of(args))

    return along


def with_closed_over_tracers(function):
    """All operands but the first are captured."""

    def outer(*args):
        return jax.jit(lambda first: function(first, *args[1:]))(args[0])

    return outer


def checkpoint(policy):
    return functools.partial(jax.checkpoint, policy=policy)


policies = jax.checkpoint_policies
WRAPPERS = {
    "jit": jax.jit,
    "nested-jit": lambda f: jax.jit(lambda *a: jax.jit(jax.jit(f))(*a)),
    "checkpoint": jax.checkpoint,
    "checkpoint-everything": checkpoint(policies.everything_saveable),
    "checkpoint-dots": checkpoint(policies.dots_saveable),
    "checkpoint-in-scan": lambda f: in_scan(jax.checkpoint(f)),
    "scan": in_scan,
    "reversed-scan": in_reversed_unrolled_scan,
    "cond": in_cond,
    "switch": in_switch,
    "fori_loop": in_fori_loop,
    "map": in_map,
    "map-of-batches": in_map_of_batches,
    "custom_vjp": in_custom_vjp,
    "custom_jvp": in_custom_jvp,
    "linearize": linearized,
    "closure": with_closed_over_tracers,
}

NO_FORWARD = {"custom_vjp"}

#: several at once, so that every kind of function meets most of them
NESTS = {
    "checkpoint-in-cond-in-scan": lambda f: in_scan(in_cond(jax.checkpoint(f))),
    "jit-in-reversed-scan": lambda f: in_reversed_unrolled_scan(jax.jit(f)),
    "switch-in-custom_jvp-in-map": lambda f: in_map(in_custom_jvp(in_switch(f))),
}


def first_derivatives(function, argnums, forward=True):
    """Value, tangent and gradient, in one program."""

    def every(*args):
        chosen, around = split(args, argnums)
        found = [around(function)(*chosen)]
        if forward:
            found.append(jax.jvp(around(function), chosen, tangents_of(chosen))[1])
        loss = nonlinear(around(function))
        found.append(jax.grad(loss, range(len(chosen)), allow_int=True)(*chosen))
        return found

    return every
