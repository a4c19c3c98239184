"""Many Python threads call many programs on several devices at once: same bits, no end of progress.

``python tests/stress.py --seconds 300 --threads 16 --devices 4`` prints how many calls were made
and how much memory the process grew by; it fails for a wrong bit, an error, or a call that takes a
minute.
"""

from __future__ import annotations

import argparse
import faulthandler
import resource
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxbind

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--seconds", type=float, default=60)
parser.add_argument("--threads", type=int, default=16)
parser.add_argument("--devices", type=int, default=4)
options = parser.parse_args()
jax.config.update("jax_num_cpu_devices", options.devices)
jax.config.update("jax_enable_x64", True)


@jaxbind.bind("(n)->(n)")
def python(x):
    return np.cumsum(x)


@jaxbind.bind("(n)->(n)", threads=0)
def threaded(x):
    return np.sort(x) * 2


@jaxbind.bind("(n)->(n)", vectorized=True)
def whole(x):
    return x[..., ::-1] + 1


python.def_vjp(lambda p, ct: (np.cumsum(ct[::-1])[::-1],))
python.def_jvp(lambda p, t: np.cumsum(t[0]))
jv = jaxbind.bind(scipy.special.jv, threads=0, nondiff=0)
jv.def_partials(None, lambda v, x: (jv(v - 1, x) - jv(v + 1, x)) / 2)
erfcx = jaxbind.bind(scipy.special.erfcx, threads=2)


def many(x):
    for _ in range(4):
        x = python(whole(x)) * 1e-2
    return x


def scanned(x):
    return jax.lax.scan(lambda c, _: (threaded(c) / 3, python(c)[0]), x, None, length=10)


PROGRAMS = {
    "many": many,
    "mapped": lambda x: jax.vmap(threaded)(jnp.outer(jnp.arange(1.0, 33.0), x)),
    "gradient": jax.grad(lambda x: jnp.sum(python(x) ** 2)),
    "scanned": scanned,
    "ufunc": lambda x: jv(jnp.arange(8.0)[:, None], jnp.tile(jnp.abs(x), 50)),
    "ufunc gradient": jax.grad(lambda x: jnp.sum(jv(1.5, jnp.abs(x) + 1.0))),
    "nested": lambda x: erfcx(jv(0.5, threaded(jnp.abs(x)))),
}


def sharded(x):
    """A program over all devices."""
    mesh = Mesh(np.array(jax.devices()), ("d",))
    rows = jnp.outer(jnp.arange(1.0, 1.0 + 2 * options.devices), x)
    placed = jax.device_put(rows, NamedSharding(mesh, PartitionSpec("d")))
    return jax.jit(jax.vmap(lambda r: threaded(python(r))))(placed)


def main() -> None:
    faulthandler.dump_traceback_later(options.seconds + 120, exit=True)
    operands = [np.random.default_rng(i).normal(size=40) for i in range(3)]
    compiled = {name: jax.jit(program) for name, program in PROGRAMS.items()}
    wanted = {
        (name, i): jax.tree.map(np.asarray, program(x))
        for name, program in compiled.items()
        for i, x in enumerate(operands)
    }
    for device in jax.devices():  # compile all
        for name, i in wanted:
            jax.block_until_ready(compiled[name](jax.device_put(operands[i], device)))
    over_all = [np.asarray(sharded(x)) for x in operands]
    ends = 0.0
    calls, faults, longest = [0] * options.threads, [], [0.0] * options.threads
    all_devices = threading.Lock()  # JAX wants programs over several devices in one order

    def work(number: int) -> None:
        rng = np.random.default_rng(number)
        device = jax.devices()[number % options.devices]
        names = list(compiled)
        while time.monotonic() < ends and not faults:
            began = time.monotonic()
            i = int(rng.integers(len(operands)))
            try:
                if rng.random() < 0.02:
                    with all_devices:
                        got, want = np.asarray(sharded(operands[i])), over_all[i]
                    name = "sharded"
                else:
                    name = names[rng.integers(len(names))]
                    placed = jax.device_put(operands[i], device)
                    got, want = compiled[name](placed), wanted[name, i]
                jax.tree.map(np.testing.assert_array_equal, got, want)
            except BaseException as error:
                faults.append(f"{type(error).__name__} in {name}: {error}")
            calls[number] += 1
            longest[number] = max(longest[number], time.monotonic() - began)

    def run_for_all() -> None:
        threads = [threading.Thread(target=work, args=(n,)) for n in range(options.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    ends = time.monotonic() + min(2.0, options.seconds / 5)
    run_for_all()  # memory that comes with the first calls of each thread
    ends = time.monotonic() + options.seconds
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run_for_all()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert not faults, faults[0]
    assert max(longest) < 60, f"a call took {max(longest):.0f} s"
    print(f"{sum(calls)} calls, the longest {max(longest):.2f} s, {grown:.0f} MB more")


if __name__ == "__main__":
    main()
