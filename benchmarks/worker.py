"""Measure one column (one way to call a function) in this process; prints JSON.

Run by ``run.py``, once per column and round: ``python worker.py COLUMN [--quick]``.
Every time is in microseconds, per call (or per step, per element).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

HANDLERS = r"""
#include <stdint.h>
#include "xla/ffi/api/c_api.h"
static int metadata(XLA_FFI_CallFrame* frame) {
  XLA_FFI_Metadata_Extension* extension = (XLA_FFI_Metadata_Extension*)frame->extension_start;
  if (!extension || extension->extension_base.type != XLA_FFI_Extension_Metadata) return 0;
  extension->metadata->api_version = frame->api->api_version;
  return 1;
}
XLA_FFI_Error* nothing(XLA_FFI_CallFrame* frame) {
  metadata(frame);
  return 0;
}
XLA_FFI_Error* square(XLA_FFI_CallFrame* frame) {
  if (metadata(frame)) return 0;
  XLA_FFI_Buffer* x = (XLA_FFI_Buffer*)frame->args.args[0];
  XLA_FFI_Buffer* y = (XLA_FFI_Buffer*)frame->rets.rets[0];
  int64_t count = 1;
  for (int64_t i = 0; i < x->rank; ++i) count *= x->dims[i];
  const double* in = (const double*)x->data;
  double* out = (double*)y->data;
  for (int64_t i = 0; i < count; ++i) out[i] = in[i] * in[i];
  return 0;
}
"""


def c_handlers() -> ctypes.CDLL:
    folder = tempfile.mkdtemp()
    source, library = os.path.join(folder, "handlers.c"), os.path.join(folder, "handlers.so")
    with open(source, "w", encoding="utf-8") as file:
        file.write(HANDLERS)
    include = f"-I{jax.ffi.include_dir()}"
    subprocess.run(["cc", "-O3", "-shared", "-fPIC", include, source, "-o", library], check=True)
    return ctypes.CDLL(library)


def functions(column: str) -> dict[str, Any]:
    """``square`` and ``nothing`` (leaves its result alone), as JAX functions of one array."""
    if column == "native":
        return {"square": lambda x: x * x, "nothing": None, "fresh": lambda: lambda x: x * x}
    if column == "pure_callback":

        def callback(function: Callable) -> Callable:
            return lambda x: jax.pure_callback(
                function, jax.ShapeDtypeStruct(x.shape, x.dtype), x, vmap_method="sequential"
            )

        return {
            "square": callback(lambda x: np.multiply(x, x)),
            "nothing": callback(lambda x: x),
            "fresh": lambda: callback(lambda x: np.multiply(x, x)),
        }
    if column == "ffi_call":
        library = c_handlers()
        for name in ("square", "nothing"):
            capsule = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(f"benchmark_{name}", capsule, platform="cpu")

        def foreign(name: str) -> Callable:
            return lambda x: jax.ffi.ffi_call(
                f"benchmark_{name}",
                jax.ShapeDtypeStruct(x.shape, x.dtype),
                vmap_method="broadcast_all",
            )(x)

        return {
            "square": foreign("square"),
            "nothing": foreign("nothing"),
            "fresh": lambda: foreign("square"),
        }
    import jaxbind

    if column == "jaxbind 1.3":

        def square(out: tuple, args: tuple, kwargs_dump: Any) -> None:
            np.multiply(args[0], args[0], out=out[0])

        def nothing(out: tuple, args: tuple, kwargs_dump: Any) -> None:
            pass

        def shape(x: Any, **kwargs: Any) -> tuple:
            return ((x.shape, x.dtype),)

        def legacy(function: Callable) -> Callable:
            bound = jaxbind.get_linear_call(function, function, shape, shape)
            return lambda x: bound(x)[0]

        return {
            "square": legacy(square),
            "nothing": legacy(nothing),
            "fresh": lambda: legacy(lambda out, args, dump: square(out, args, dump)),
        }

    def ours(function: Callable, **options: Any) -> Callable:
        return jaxbind.bind(out=lambda x: x, **options)(function)

    def in_place(x: np.ndarray, *, out: np.ndarray) -> None:
        np.multiply(x, x, out=out)

    def idle(x: np.ndarray, *, out: np.ndarray) -> None:
        pass

    options = {"vectorized": True} if column == "jaxbind vectorized" else {}
    return {
        "square": ours(in_place, **options),
        "nothing": ours(idle, **options),
        "fresh": lambda: ours(lambda x, *, out: in_place(x, out=out), **options),
    }


def per_call(run: Callable[[], Any], seconds: float) -> float:
    """Median time of ``run`` in microseconds, over samples of ``seconds`` in all."""
    run()
    start = time.perf_counter()
    run()
    once = max(time.perf_counter() - start, 1e-9)
    inner = max(1, round(seconds / 8 / once))
    samples = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(inner):
            run()
        samples.append((time.perf_counter() - start) / inner)
    return statistics.median(samples) * 1e6


def stepped(function: Callable, steps: int) -> Callable:
    def scanned(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (function(c), None), x, None, length=steps)[0]

    return jax.jit(scanned)


def chained(functions: list[Callable]) -> Callable:
    def program(x: jax.Array) -> jax.Array:
        for function in functions:
            x = function(x)
        return x

    return program


def measure(column: str, quick: bool) -> dict[str, float]:
    seconds = 0.1 if quick else 0.4
    made = functions(column)
    square, nothing = made["square"], made["nothing"]
    x = jnp.ones(8)
    found: dict[str, float] = {}

    def record(case: str, run: Callable[[], Any], count: int = 1) -> None:
        found[case] = per_call(run, seconds) / count

    jitted = jax.jit(square)
    record("jitted call", lambda: jitted(x).block_until_ready())
    program = jax.jit(chained([square] * 100))
    record("100 calls in a program", lambda: program(x).block_until_ready(), 100)
    scan = stepped(square, 1000)
    record("1000-step scan", lambda: scan(x).block_until_ready(), 1000)
    batch = jnp.ones((1000, 8))
    mapped = jax.jit(jax.vmap(square))
    record("vmap over 1000", lambda: mapped(batch).block_until_ready(), 1000)
    if column.startswith("jaxbind"):
        record("the batch of 1000, mapped", lambda: mapped(batch).block_until_ready())
        record("the batch of 1000, one call", lambda: jitted(batch).block_until_ready())
    record("eager call", lambda: square(x).block_until_ready())
    eager_map = jax.vmap(square)
    record("eager vmap over 1000", lambda: eager_map(batch).block_until_ready())
    big = jnp.ones(10_000_000)
    record("80 MB in, 80 MB out", lambda: jitted(big).block_until_ready())
    if nothing is not None:
        idle = stepped(nothing, 20_000)
        record("does nothing, in a scan", lambda: idle(x).block_until_ready(), 20_000)
        idle_map = jax.jit(jax.vmap(nothing))
        record("does nothing, vmap over 1000", lambda: idle_map(batch).block_until_ready(), 1000)
        untouched = jax.jit(nothing)
        record("does nothing, 80 MB", lambda: untouched(big).block_until_ready())
    if column == "native":
        numbers = np.ones(10_000_000)
        record("NumPy: 80 MB in, 80 MB out", lambda: np.multiply(numbers, numbers))
        sample = np.ones((1000, 8))
        record("NumPy: the batch of 1000", lambda: np.multiply(sample, sample))
        record("eager jnp.sin", lambda: jnp.sin(x).block_until_ready())
    found.update(tracing_and_lowering(made["fresh"], x, 20 if quick else 50))
    return found


def tracing_and_lowering(fresh: Callable, x: jax.Array, count: int) -> dict[str, float]:
    """The marginal cost of one more distinct call in a program."""
    many = [fresh() for _ in range(count + 1)]
    times: dict[int, list[tuple[float, float]]] = {1: [], count + 1: []}
    for _ in range(5):
        for size, samples in times.items():
            jax.clear_caches()
            program = chained(many[:size])
            start = time.perf_counter()
            traced = jax.jit(program).trace(x)
            middle = time.perf_counter()
            traced.lower()
            samples.append((middle - start, time.perf_counter() - middle))
    trace, lower = (
        (min(t[i] for t in times[count + 1]) - min(t[i] for t in times[1])) / count * 1e6
        for i in range(2)
    )
    return {"tracing one call": trace, "lowering one call": lower}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("column")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    found = measure(options.column, options.quick)
    print(json.dumps({"column": options.column, "jax": jax.__version__, "times": found}))


if __name__ == "__main__":
    main()
