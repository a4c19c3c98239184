"""Time compiled functions bound by jaxbind beside SciPy, Numba, C, ffi_call and pure_callback.

``python benchmarks/compiled.py [--quick] [--output DIR]`` prints times, ratios and promises, and
writes ``compiled.json`` and ``compiled.txt``. All takes place in one process; the ways to do a
thing take turns, round after round. Needs SciPy, Numba and a C compiler.
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
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from columns import ffi_call, our_package
from report import grid, number
from worker import elapsed, ready, scanned

jaxbind = our_package()
jax.config.update("jax_enable_x64", True)

Run = Callable[[], Any]
SOURCE = r"""
#include <stdint.h>
void square(const double *x, double *y, int64_t n) {
  for (int64_t i = 0; i < n; i++) y[i] = x[i] * x[i];
}
void rows(const double *x, double *y, int64_t rows, int64_t n) {
  for (int64_t i = 0; i < rows; i++) square(x + i * n, y + i * n, n);
}
"""
# as JAX's documentation teaches it, with the types of its arguments checked
HEADER = r"""
#include "xla/ffi/api/ffi.h"
namespace ffi = xla::ffi;
ffi::Error square(ffi::Buffer<ffi::F64> x, ffi::ResultBuffer<ffi::F64> y) {
  const double* given = x.typed_data();
  double* made = y->typed_data();
  for (size_t i = 0; i < x.element_count(); i++) made[i] = given[i] * given[i];
  return ffi::Error::Success();
}
XLA_FFI_DEFINE_HANDLER_SYMBOL(
    Square, square,
    ffi::Ffi::Bind().Arg<ffi::Buffer<ffi::F64>>().Ret<ffi::Buffer<ffi::F64>>());
"""
UFUNCS = ["jv", "gammainc", "erfcx"]
STEPS, ROWS, WIDTH, MANY = 20_000, 1000, 512, 2_000_000
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def built(compiler: str, text: str, suffix: str, *options: str) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, f"square.{suffix}"), Path(folder, "square.so")
        source.write_text(text, encoding="utf-8")
        always = ["-O3", "-shared", "-fPIC", "-w"]
        subprocess.run([compiler, *always, *options, source, "-o", library], check=True)
        return ctypes.CDLL(str(library))


def library() -> ctypes.CDLL:
    return built(os.environ.get("CC", "cc"), SOURCE, "c", "-fno-inline")


def handler_in_cpp() -> Callable[[jax.Array], Any]:
    include = f"-I{jax.ffi.include_dir()}"
    found = built(os.environ.get("CXX", "c++"), HEADER, "cc", "-std=c++17", include)
    capsule = jax.ffi.pycapsule(found.Square)
    jax.ffi.register_ffi_target("benchmark_header", capsule, platform="cpu")
    return lambda x: jax.ffi.ffi_call("benchmark_header", jax.ShapeDtypeStruct(x.shape, x.dtype))(x)


def kernel_in_scan(lib: ctypes.CDLL) -> dict[str, Run]:
    """A kernel on 8 doubles, ``STEPS`` times in one program."""
    bound = jaxbind.bind(jaxbind.Kernel(lib.square, "(n)->(n)"))
    x = jnp.ones(8)
    return {
        "C handler, ffi_call": ready(jax.jit(scanned(ffi_call().square, STEPS)), x),
        "C++ handler, JAX's header": ready(jax.jit(scanned(handler_in_cpp(), STEPS)), x),
        "jaxbind.Kernel": ready(jax.jit(scanned(bound, STEPS)), x),
    }


def kernel_mapped(lib: ctypes.CDLL) -> dict[str, Run]:
    """A kernel on 1000 rows."""
    bound = jaxbind.bind(jaxbind.Kernel(lib.square, "(n)->(n)"))
    x = jnp.linspace(0.0, 1.0, ROWS * WIDTH).reshape(ROWS, WIDTH)
    given, made = np.array(x), np.empty((ROWS, WIDTH))
    array = np.ctypeslib.ndpointer(float, flags="C")
    lib.rows.argtypes = [array, array, ctypes.c_int64, ctypes.c_int64]
    return {
        "loop in C": partial(lib.rows, given, made, ROWS, WIDTH),
        "jaxbind.Kernel, vmap": ready(jax.jit(jax.vmap(bound)), x),
    }


def ufunc(name: str) -> dict[str, Run]:
    """A ufunc of SciPy on 2 million doubles."""
    function = getattr(scipy.special, name)
    x = np.linspace(0.1, 20, MANY)
    first = (1.5,) * (function.nin - 1)

    def callback(x: Any) -> Any:
        like = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return jax.pure_callback(lambda x: function(*first, np.asarray(x)), like, x)

    one, all_cores = (jaxbind.bind(function, threads=n) for n in (1, 0))
    on_device = jnp.asarray(x)
    return {
        "SciPy": lambda: function(*first, x),
        "pure_callback": ready(jax.jit(callback), on_device),
        "jaxbind, threads=1": ready(jax.jit(lambda x: one(*first, x)), on_device),
        "jaxbind, threads=0": ready(jax.jit(lambda x: all_cores(*first, x)), on_device),
    }


def numba_vectorized() -> dict[str, Run]:
    """A ufunc that Numba compiled, on 2 million doubles."""
    import numba

    @numba.vectorize(["float64(float64)"])
    def smooth(x):
        return x / (1.0 + x * x) ** 0.5

    x = np.linspace(0.1, 20, MANY)
    bound = jaxbind.bind(smooth)
    return {
        "Numba": lambda: smooth(x),
        "jaxbind": ready(jax.jit(bound), jnp.asarray(x)),
    }


def measured(ways: dict[str, Run], seconds: float, rounds: int) -> dict[str, list[float]]:
    """Microseconds of each way, taking turns."""
    repeat = {}
    for name, run in ways.items():
        run()
        run()
        repeat[name] = max(1, int(seconds / elapsed(run, 1)))
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        names = list(ways)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            found[name].append(elapsed(ways[name], repeat[name]) / repeat[name] * 1e6)
    return found


def ratio(times: dict[str, list[float]], above: str, below: str) -> float:
    return statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer and shorter samples")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    seconds, rounds = (0.05, 5) if options.quick else (0.3, 15)
    lib = library()
    cases = {
        f"kernel on 8 doubles, {STEPS} steps of a scan": (kernel_in_scan(lib), 1.15),
        f"kernel on {ROWS} x {WIDTH} doubles, vmap": (kernel_mapped(lib), 1.3),
        "numba.vectorize on 2 000 000 doubles": (numba_vectorized(), 1.0),
    }
    cases |= {f"scipy.special.{n} on 2 000 000 doubles": (ufunc(n), None) for n in UFUNCS}
    lines, promises, data = [], [["", "measured", "at most"]], {}
    for title, (ways, bound) in cases.items():
        times = measured(ways, seconds, rounds)
        data[title] = times
        first, *others = ways
        rows = [[f"  {first}", number(statistics.median(times[first])), "1"]]
        for other in others:
            median = statistics.median(times[other])
            rows.append([f"  {other}", number(median), number(ratio(times, other, first))])
        lines += [title, *grid([["", "µs", f"to {first}"], *rows]), ""]
        bounds = (
            {others[-1]: bound}
            if bound
            else dict(zip(others[1:], (1.0, 1 / 0.9 / CORES), strict=True))
        )
        for other, most in bounds.items():
            value = ratio(times, other, first)
            promises.append([f"{title}: {other} to {first}", number(value), number(most)])
        print("\n".join(lines[-len(ways) - 3 :]), flush=True)
    text = "\n".join([*lines, f"PROMISES ({CORES} cores)", *grid(promises)]) + "\n"
    print("\n".join(text.splitlines()[len(lines) :]))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "compiled.txt").write_text(text, encoding="utf-8")
    about = {"date": time.strftime("%Y-%m-%d %H:%M %Z"), "cores": CORES, "jax": jax.__version__}
    saved = {"about": about, "unit": "microseconds", "times": data}
    (options.output / "compiled.json").write_text(json.dumps(saved, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
