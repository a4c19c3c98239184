"""How a process ends, whatever is going on."""

import subprocess
import sys

import pytest

PREAMBLE = """
import sys, threading, time
import jax, jax.numpy as jnp, numpy as np
import jaxbind

def slow(v):
    time.sleep(0.4)
    return v + 1

def heavy(f):
    return jax.jit(lambda v: f(jnp.sort(jnp.sin(v)) @ jnp.ones((len(v), 8))))

f = jaxbind.bind(slow, "(n)->(n)")
operand = jnp.ones(400_000)
work = heavy(f)
x = np.arange(3.0)
"""

PROGRAMS = {
    # name: (program, exit status, the last of stderr, stdout)
    "calls in flight": (
        """
several = heavy(lambda v: jax.vmap(f)(v[:2, None]))
results = [several(operand), several(operand), work(operand), work(operand)]
""", 0, "", ""),
    "an open file": (  # closed when the module is cleared, which nothing may keep alive
        """
def double(v):
    return 2 * v
double = jaxbind.bind(double, '(n)->(n)')
double(x)
jax.jit(jax.vmap(double))(jnp.ones((2, 3)))
import os
class File:
    def __del__(self, write=os.write): write(1, b'closed')
file = File()
""", 0, "", "closed"),
    "pending exception": (
        "work(operand); raise ValueError('pending')", 1, "ValueError: pending", ""),
    "exit": ("work(operand); sys.exit(3)", 3, "", ""),
    "exit in an eager call": ("jaxbind.bind(lambda v: sys.exit(7), '(n)->(n)')(x)", 7, "", ""),
    "os._exit": ("work(operand); import os; os._exit(5)", 5, "", ""),
    "os._exit in a function": (
        "import os; jaxbind.bind(lambda v: os._exit(6), '(n)->(n)')(x)", 6, "", ""),
    "os._exit in a function of another thread": (
        """
import os
last = jaxbind.bind(lambda v: time.sleep(0.1) or os._exit(6), '(n)->(n)')
threading.Thread(target=lambda: last(x)).start()
work(operand)
time.sleep(5)
""", 6, "", ""),
    "failing calls in flight": (
        """
try:
    jaxbind.bind(lambda v: sys.exit(7), '(n)->(n)')(x)
except SystemExit as error:
    assert error.code == 7 and 'SystemExit: 7' in str(error.__context__)
results = [heavy(jaxbind.bind(lambda v: time.sleep(0.3) or fail(), '(n)->(n)'))(operand)
           for fail in (lambda: sys.exit(7), lambda: 1 / 0)]
""", 0, "", ""),
    "daemon threads that call": (
        """
def bind_and_call():
    while True:
        jaxbind.bind(lambda v: v, '(n)->(n)')(x)
small = jax.jit(jaxbind.bind(lambda v: time.sleep(0.001) or v, '(n)->(n)'))
def call():
    while True:
        small(x)
for target in [bind_and_call] + 5 * [call]:
    threading.Thread(target=target, daemon=True).start()
work(operand)
time.sleep(0.5)
""", 0, "", ""),
    "daemon threads that JAX alone would end with an abort": (
        """
small = jax.jit(lambda v: v + 1)
def call():
    while True:
        small(x)
for _ in range(6):
    threading.Thread(target=call, daemon=True).start()
time.sleep(0.3)
""", 0, "", ""),
    "a daemon thread that fails": (
        """
def fail():
    work(operand)
    raise ValueError('its own')
threading.Thread(target=fail, daemon=True).start()
time.sleep(1)
""", 0, "ValueError: its own", ""),
    "a thread that still calls": (
        """
def later():
    for _ in range(3):
        work(operand).block_until_ready()
    print('done')
threading.Thread(target=later).start()
""", 0, "", "done"),
    "calls at exit": (
        """
import atexit
def last():
    try:
        print('value', f(x)[0])
    except jax.errors.JaxRuntimeError as error:
        print('refused', error)
atexit.register(last)
f(x)
""", 0, "", ""),
    "a finaliser that drops a program": (
        """
compiled = jax.jit(f).lower(x).compile()
sys.modules['keeper'] = compiled
class Last:
    def __del__(self):
        global compiled
        compiled = None
last = Last()
del f
compiled(x)
""", 0, "", ""),
    "module cleared": (
        "work(operand); del jaxbind, f, work; sys.modules.pop('jaxbind')", 0, "", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_process_ends_cleanly(name):
    program, status, stderr, stdout = PROGRAMS[name]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREAMBLE + program],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status, done.stderr
    if stderr:
        assert done.stderr.strip().endswith(stderr)
    else:
        assert done.stderr == ""
    if name == "calls at exit":  # as late as that JAX may refuse, but neither hang nor crash
        assert done.stdout.startswith(("value 1.0", "refused"))
    else:
        assert done.stdout.strip() == stdout
