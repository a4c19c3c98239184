"""Time calls from programs on a GPU: this package and `jax.pure_callback`, taking turns.

    python benchmarks/gpu.py

Adds one to n doubles. The last column is the same in JAX alone, with no call to the host: what
launching a program costs.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxbind


def by_callback(x):
    struct = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(lambda v: np.asarray(v) + 1, struct, x)


FUNCTIONS = {
    "pure_callback": by_callback,
    "jaxbind": jaxbind.bind(lambda v: v + 1, "()->()", vectorized=True),
    "jaxbind, a ufunc": lambda x: add(x, 1.0),
    "JAX alone": lambda x: x + 1,
}
add = jaxbind.bind(np.add)
ROUNDS = 9


def seconds(compiled, x, calls):
    started = time.perf_counter()
    for _ in range(calls):
        result = compiled(x)
    jax.block_until_ready(result)
    return (time.perf_counter() - started) / calls


def main():
    jax.config.update("jax_enable_x64", True)
    device = jax.devices("gpu")[0]
    print(f"{device.device_kind}, JAX {jax.__version__}, jaxbind {jaxbind.__version__}")
    print(f"{'n':>9}  " + "  ".join(f"{name:>20}" for name in FUNCTIONS))
    for n, calls in ((8, 300), (10_000, 200), (1_000_000, 30), (10_000_000, 4)):
        x = jax.device_put(jnp.arange(float(n)), device)
        compiled = {name: jax.jit(function) for name, function in FUNCTIONS.items()}
        times = {name: [] for name in compiled}
        for function in compiled.values():
            np.testing.assert_array_equal(function(x), np.arange(float(n)) + 1)
        for _ in range(ROUNDS):
            for name, function in compiled.items():
                times[name].append(seconds(function, x, calls))
        shown = []
        for found in times.values():
            ratio = statistics.median(
                a / b for a, b in zip(found, times["pure_callback"], strict=True)
            )
            shown.append(f"{1e6 * statistics.median(found):11.1f} us {ratio:5.2f}")
        print(f"{n:9}  " + "  ".join(f"{text:>20}" for text in shown), flush=True)


if __name__ == "__main__":
    main()
