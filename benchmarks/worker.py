"""Measure one column, in a process of its own, on request.

``python worker.py COLUMN`` answers lines of JSON on its standard output: first a greeting with
versions, then, to each request ``{"case": ..., "seconds": ..., "samples": ...}`` on its standard
input, ``{"times": {name: [sample, ...]}}`` or ``{"error": traceback}``. Times are in
microseconds.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from columns import COLUMNS, Column, make

jax.config.update("jax_enable_x64", True)

Run = Callable[[], Any]
Samples = dict[str, list[float]]

LARGE = 10_000_000  # doubles: 80 MB
ROWS = 1000
STEPS, MANY_STEPS = 1000, 20_000
CHAIN = 100
DISTINCT = 50  # calls more in the longer one of the two programs that are traced and lowered


class Timer:
    """Takes ``samples`` samples of at least ``seconds`` each."""

    def __init__(self, seconds: float, samples: int) -> None:
        self.seconds = seconds
        self.samples = samples

    def __call__(self, run: Run, calls: int = 1) -> list[float]:
        """Microseconds per call, where ``run`` makes ``calls`` calls."""
        run()  # compiles
        repeat = 1
        while (took := elapsed(run, repeat)) < self.seconds:
            repeat = max(2 * repeat, math.ceil(1.2 * self.seconds / took * repeat))
        samples = self.samples if took < 0.2 else min(self.samples, 3)
        return [elapsed(run, repeat) / repeat / calls * 1e6 for _ in range(samples)]


def elapsed(run: Run, repeat: int) -> float:
    start = time.perf_counter()
    for _ in range(repeat):
        run()
    return time.perf_counter() - start


def ready(function: Callable[..., Any], x: jax.Array) -> Run:
    return lambda: function(x).block_until_ready()


def chained(functions: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def program(x: Any) -> Any:
        for function in functions:
            x = function(x)
        return x

    return program


def scanned(function: Callable[[Any], Any], steps: int) -> Callable[[Any], Any]:
    return lambda x: jax.lax.scan(lambda c, _: (function(c), None), x, None, length=steps)[0]


# Ones, since their squares neither grow nor vanish in a program of many.


def small() -> jax.Array:
    return jnp.ones(8)


def batch() -> jax.Array:
    return jnp.ones((ROWS, 8))


def jitted_call(column: Column, timer: Timer) -> Samples:
    return {"jitted call": timer(ready(jax.jit(column.square), small()))}


def calls_in_program(column: Column, timer: Timer) -> Samples:
    program = jax.jit(chained([column.square] * CHAIN))
    return {"each of 100 calls": timer(ready(program, small()), CHAIN)}


def scan(column: Column, timer: Timer) -> Samples:
    program = jax.jit(scanned(column.square, STEPS))
    return {"each step of a scan": timer(ready(program, small()), STEPS)}


def mapped(column: Column, timer: Timer) -> Samples:
    program = jax.jit(jax.vmap(column.square))
    return {"each of vmap over 1000": timer(ready(program, batch()), ROWS)}


def whole_batch(column: Column, timer: Timer) -> Samples:
    return {"one call on 1000 rows": timer(ready(jax.jit(column.square), batch()))}


def eager_call(column: Column, timer: Timer) -> Samples:
    return {"eager call": timer(ready(column.square, small()))}


def eager_vmap(column: Column, timer: Timer) -> Samples:
    """A new ``vmap`` of the same function each time, as in a loop that somebody wrote."""
    x = batch()

    def run() -> None:
        jax.vmap(column.square)(x).block_until_ready()

    times = timer(run)
    before, repeat = len(compilations), 5
    elapsed(run, repeat)
    return {
        "eager vmap over 1000": times,
        "compilations per eager vmap": [(len(compilations) - before) / repeat],
    }


def large(column: Column, timer: Timer) -> Samples:
    x = jnp.linspace(-1.0, 1.0, LARGE)
    function = jax.jit(column.square)
    if not np.array_equal(function(x), np.square(np.asarray(x))):
        raise ArithmeticError("wrong result on 80 MB")
    return {"80 MB in, 80 MB out": timer(ready(function, x))}


def nothing_in_scan(column: Column, timer: Timer) -> Samples:
    if column.nothing is None:
        return {}
    program = jax.jit(scanned(column.nothing, MANY_STEPS))
    return {"does nothing, in a scan": timer(ready(program, small()), MANY_STEPS)}


def nothing_mapped(column: Column, timer: Timer) -> Samples:
    if column.nothing is None:
        return {}
    program = jax.jit(jax.vmap(column.nothing))
    return {"does nothing, vmap over 1000": timer(ready(program, batch()), ROWS)}


def nothing_large(column: Column, timer: Timer) -> Samples:
    if column.nothing is None:
        return {}
    return {"does nothing, 80 MB": timer(ready(jax.jit(column.nothing), jnp.ones(LARGE)))}


def tracing_and_lowering(column: Column, timer: Timer) -> Samples:
    """What one more distinct call adds to a program, each program new to JAX."""
    x, number = small(), 1  # `make` used call number 0

    def spent(size: int) -> tuple[float, float]:
        nonlocal number
        program = chained([column.fresh(number + i) for i in range(size)])
        number += size
        start = time.perf_counter()
        traced = jax.jit(program).trace(x)
        middle = time.perf_counter()
        traced.lower()
        return middle - start, time.perf_counter() - middle

    spent(1)
    short, long = [], []
    for _ in range(max(timer.samples, 5)):
        short.append(spent(1))
        long.append(spent(1 + DISTINCT))
    found = {}
    for i, case in enumerate(("tracing one call", "lowering one call")):
        one = statistics.median(times[i] for times in short)
        found[case] = [(times[i] - one) / DISTINCT * 1e6 for times in long]
    return found


def references(column: Column, timer: Timer) -> Samples:
    """What the promises compare with, beside the columns: NumPy alone, eager operations."""
    del column
    x, rows, numbers = small(), np.ones((ROWS, 8)), np.ones(LARGE)
    return {
        "eager jnp.multiply": timer(lambda: jnp.multiply(x, x).block_until_ready()),
        "eager jnp.sin": timer(lambda: jnp.sin(x).block_until_ready()),
        "NumPy alone, 1000 rows": timer(lambda: np.multiply(rows, rows)),
        "NumPy alone, 80 MB": timer(lambda: np.multiply(numbers, numbers)),
    }


CASES: dict[str, Callable[[Column, Timer], Samples]] = {
    function.__name__: function
    for function in (
        nothing_in_scan,
        nothing_mapped,
        scan,
        calls_in_program,
        mapped,
        whole_batch,
        jitted_call,
        eager_call,
        eager_vmap,
        references,
        large,
        nothing_large,
        tracing_and_lowering,
    )
}

compilations: list[float] = []  # how long each took


def note_compilation(event: str, duration_secs: float, **details: Any) -> None:
    del details
    if event == "/jax/core/compile/backend_compile_duration":
        compilations.append(duration_secs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("column", choices=COLUMNS)
    name = parser.parse_args().column
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints must not be taken for a reply

    def reply(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies, flush=True)

    jax.monitoring.register_event_duration_secs_listener(note_compilation)
    column = make(name)
    versions = {package: version(package) for package in ("jax", "jaxlib", "numpy")}
    if name.startswith("jaxbind"):
        versions["jaxbind"] = sys.modules["jaxbind"].__dict__.get("__version__", "1.3.1")
    reply({"python": sys.version.split()[0], **versions})
    for line in sys.stdin:
        request = json.loads(line)
        timer = Timer(request["seconds"], request["samples"])
        try:
            reply({"times": CASES[request["case"]](column, timer)})
        except Exception:
            reply({"error": traceback.format_exc(limit=-3)})


if __name__ == "__main__":
    main()
