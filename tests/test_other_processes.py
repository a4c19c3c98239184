"""Programs that leave the process: `jax.export` and the persistent compilation cache."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from amount import every

import jaxbind
from jaxbind._static import Static

MODULE = """
import numpy as np, scipy.special
import jaxbind

@jaxbind.bind("(m,n),(n)->(m)", multilinear=("a", "x"))
def matvec(a, x, *, scale=1.0):
    return scale * (a @ x)
matvec.def_transpose("a")(lambda x, ct, *, scale: scale * np.outer(ct, x))
matvec.def_transpose("x")(lambda a, ct, *, scale: scale * (a.T @ ct))

@jaxbind.bind("(n)->(n)")
def cubed(x):
    return x**3
cubed.def_partials(lambda x: 3 * x**2)

jv = jaxbind.bind(scipy.special.jv)
half = jaxbind.bind(lambda x: x / 2, "()->()")

@jaxbind.bind("(n)->(n)", linear=True)
def smooth(x, *, width, plan):
    return plan * x
smooth.def_plan(lambda x, *, width: np.full(x.shape, width))
named = jaxbind.bind(lambda x: x + 1, "()->()", name="mine/plus_one")
"""

PREAMBLE = """
import sys
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
"""


@pytest.fixture
def run(tmp_path):
    """Run a program in a new process that can import ``mine``; returns what it prints."""
    (tmp_path / "mine.py").write_text(MODULE)

    def run(program, *, fails=False, **environment):
        paths = [str(tmp_path), str(Path(jaxbind.__file__).parent.parent)]
        done = subprocess.run(
            [sys.executable, "-c", PREAMBLE + program],
            cwd=tmp_path,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(paths),
                "PYTHONDONTWRITEBYTECODE": "1",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=120,
        )
        if fails:
            assert done.returncode == 1, done
            return done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout

    run.folder = tmp_path
    return run


# Export -------------------------------------------------------------------------------------------

EXPORT = """
import jaxbind, mine
a, x = np.arange(12.0).reshape(3, 4), np.arange(4.0)
"""
SAVE = """
e = jax.export.export(jax.jit(f), disabled_checks=jaxbind.export_checks())(*args)
open("saved", "wb").write(e.serialize(vjp_order=2))
"""
LOAD = """
import jaxbind
e = jax.export.deserialize(open("saved", "rb").read())
assert "mine" not in sys.modules
"""


def test_static_parameters_and_derivatives(run):
    run(EXPORT + "f, args = lambda a, x: jnp.sum(mine.matvec(a, x, scale=2.5) ** 2), (a, x)" + SAVE)
    out = run(
        LOAD
        + """
a, x = np.arange(12.0).reshape(3, 4), np.arange(4.0)
value = lambda a, x: jnp.sum((2.5 * (a @ x)) ** 2)
np.testing.assert_allclose(e.call(a, x), value(a, x))
for i in (0, 1):
    np.testing.assert_allclose(jax.grad(e.call, i)(a, x), jax.grad(value, i)(a, x))
second = lambda f: jax.grad(lambda x: jnp.sum(jax.grad(f, 1)(a, x) ** 2))(x)
np.testing.assert_allclose(second(e.call), second(value))
print("mine" in sys.modules, "pickle" in str(open("saved", "rb").read()))
"""
    )
    assert out.split() == ["True", "False"]


@pytest.mark.parametrize(
    "f, args, wanted",
    every(
        2,
        [
            ("jax.vmap(mine.cubed)", "(x,)", "x**3"),
            ("lambda x: mine.half(x)", "(x,)", "x / 2"),
            ("jax.grad(lambda x: jnp.sum(mine.cubed(x)))", "(x,)", "3 * x**2"),
            ("lambda x: mine.jv(1.5, x)", "(x,)", "scipy.special.jv(1.5, x)"),
            ("lambda x: mine.smooth(x, width=3.0)", "(x,)", "3 * x"),
        ],
    ),
    ids=["vmap", "lambda", "grad", "ufunc", "plan"],
)
def test_symbolic_shapes(run, f, args, wanted):
    run(
        EXPORT
        + "b, n = jax.export.symbolic_shape('b, n')\n"
        + f"f, args = {f}, (jax.ShapeDtypeStruct((b, n), 'float64'),)\n"
        + SAVE.replace("vjp_order=2", "")
    )
    run(
        LOAD
        + f"""
import scipy.special
for shape in ((2, 3), (1, 5), (4, 1)):
    x = np.random.default_rng(0).uniform(0.1, 5, shape)
    np.testing.assert_allclose(e.call(x), {wanted}, rtol=1e-13)
"""
    )


def test_closures_say_so_when_they_are_exported():
    inner = jaxbind.bind(lambda x: x + 1, "()->()")
    with pytest.raises(ValueError, match=r"<lambda> cannot be exported: .* cannot import. Bind it"):
        jax.export.export(jax.jit(inner), disabled_checks=jaxbind.export_checks())(1.0)


class Mode:
    def __init__(self, factor):
        self.factor = factor

    def __repr__(self):
        return f"Mode({self.factor})"


def scale(x, *, mode):
    return mode.factor * x


scale = jaxbind.bind("()->()")(scale)


def test_static_parameters_that_are_no_literals_say_so():
    f = jax.jit(lambda x: scale(x, mode=Mode(2.0)))
    assert f(3.0) == 6
    with pytest.raises(ValueError, match=r"static parameter mode=Mode\(2.0\), which is no literal"):
        jax.export.export(f, disabled_checks=jaxbind.export_checks())(1.0)


@pytest.mark.parametrize("value", [float("inf"), (1.0, -float("inf")), "inf", ("x inf", 2)])
def test_static_parameters_with_infinity(value):
    static = Static({"a": value})
    assert Static.parse(static.literal()) == static


@pytest.mark.slow
def test_names_that_are_given(run):
    run(EXPORT + "f, args = mine.named, (1.0,)" + SAVE.replace("vjp_order=2", ""))
    said = run(LOAD + "jaxbind.bind(abs, '()->()')(1.0)\ne.call(1.0)", fails=True)
    assert "nothing is bound under the name mine/plus_one in this process" in said
    run(LOAD + "import mine\nassert e.call(1.0) == 2")


@pytest.mark.parametrize(
    "change, said",
    [
        (("cubed", "quartic"), "module mine has no cubed"),
        (('"(n)->(n)"', '"(n)->(1)"'), "had the signature (n)->(n); it is (n)->(1) now"),
        (("import jaxbind", "import nowhere\nimport jaxbind"), "No module named 'nowhere'"),
        (("def cubed(x)", "cubed = 3\ndef other(x)"), "cubed is no binding any more but a"),
    ],
    ids=["gone", "signature", "import", "kind"],
)
def test_programs_of_another_version_say_what_has_changed(run, change, said):
    run(EXPORT + "f, args = mine.cubed, (x,)" + SAVE.replace("vjp_order=2", ""))
    text = MODULE.replace(*change)
    if change[1].startswith("cubed = 3"):
        text = text.replace("cubed.def_partials", "other.def_partials").replace(
            '@jaxbind.bind("(n)->(n)")\ncubed = 3\n', 'cubed = 3\n@jaxbind.bind("(n)->(n)")\n'
        )
    (run.folder / "mine.py").write_text(text)
    error = run(LOAD + "e.call(np.arange(4.0)).block_until_ready()", fails=True)
    assert said in error, error


# The persistent cache -----------------------------------------------------------------------------

CACHED = """
hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None)
x = np.arange(4.0)
"""


@pytest.fixture
def caching(run):
    return {
        "JAX_COMPILATION_CACHE_DIR": str(run.folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def test_importable_bindings_hit_and_run_this_processs_function(run, caching):
    program = CACHED + "import mine\nprint(jax.jit(lambda x: mine.cubed(x) + 1)(x), len(hits) > 0)"
    assert run(program, **caching).split("]")[1].strip() == "False"
    assert run(program, **caching) == "[ 1.  2.  9. 28.] True\n"
    (run.folder / "mine.py").write_text(MODULE.replace("x**3", "x**4"))
    assert run(program, **caching) == "[ 1.  2. 17. 82.] True\n"


def test_plans_are_made_again_after_a_hit(run, caching):
    program = CACHED + "import mine\nprint(mine.smooth(x, width=2.5), len(hits) > 0)"
    run(program, **caching)
    assert run(program, **caching) == "[0.  2.5 5.  7.5] True\n"


SHARDED = """
import mine
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
split = NamedSharding(Mesh(np.array(jax.devices()), ("d",)), P("d"))
X = jax.device_put(np.arange(32.0).reshape(8, 4), split)
programs = {
    "value": lambda X: mine.cubed(X) * 3,
    "two alike": lambda X: mine.cubed(X) + mine.cubed(X + 1),
    "gradient": jax.grad(lambda X: jnp.sum(mine.cubed(X))),
    "plan": lambda X: mine.smooth(X, width=2.5) + 1,
    "not all split": lambda X: jax.vmap(lambda x: mine.matvec(2 * jnp.eye(4), x))(X),
}
for name, program in programs.items():
    hits.clear()
    compiled = jax.jit(program).lower(X).compile()
    found = len(hits)
    assert "all-gather" not in compiled.as_text(), name
    assert compiled(X).sharding == split, name
    print(float(compiled(X).sum()), found)
"""


def test_programs_on_several_devices_hit(run, caching):
    """JAX writes an address into programs that `custom_partitioning` splits."""
    x = 1.0 * sum(range(32))
    cubes = [k**3 for k in range(33)]
    squares = [3 * k**2 for k in range(32)]
    value, next_value = sum(cubes[:32]), sum(cubes[1:])
    wanted = [3 * value, value + next_value, sum(squares), 2.5 * x + 32, 2 * x]
    for hits in (0, 1):
        out = run(CACHED + SHARDED, **caching).splitlines()
        assert out == [f"{float(value)} {hits}" for value in wanted]


def test_closures_never_hit(run, caching):
    program = """
import jaxbind
def make(k):
    return jaxbind.bind(lambda x: k * x, "()->()")
f = make(FACTOR)
print(jax.jit(f)(2.0))
"""
    for factor in (3, 4, 3):
        out = run(CACHED + program.replace("FACTOR", str(factor)), **caching)
        assert float(out) == 2 * factor


def test_a_stale_entry_says_so(run, caching):
    """The cache's key has the signature in it: another one is another program."""
    program = CACHED + "import mine\nprint(mine.cubed(x).shape)"
    assert run(program, **caching) == "(4,)\n"
    (run.folder / "mine.py").write_text(
        MODULE.replace('"(n)->(n)"', '"(n)->(1)"').replace("x**3", "x[:1]")
    )
    assert run(program, **caching) == "(1,)\n"


def test_rules_of_a_binding_may_be_missing_in_the_other_process(run):
    run(
        EXPORT
        + "mine.cubed.def_jvp(lambda p, t: 3 * p[0]**2 * t[0])\n"
        + "f, args = lambda x: jax.jvp(mine.cubed, (x,), (x,))[1], (x,)"
        + SAVE.replace("vjp_order=2", "")
    )
    error = run(LOAD + "e.call(np.arange(4.0)).block_until_ready()", fails=True)
    assert "the function is there, but its derivative 'jvp" in error


# Children -----------------------------------------------------------------------------------------

FORKED = """
import os, signal, warnings
import jaxbind, mine
warnings.simplefilter("ignore")
x = np.arange(4.0)
compiled = jax.jit(lambda x: mine.cubed(x) + 1)
later = jax.jit(lambda x: mine.cubed(x) + 2)
USED
def attempt(call):
    sys.stdout.flush()
    child = os.fork()
    if not child:
        signal.alarm(10)
        try:
            print("value", np.asarray(call())[1])
        except Exception as error:
            print("refused" if "child of fork" in str(error) else error)
        sys.stdout.flush()
        os._exit(0)  # as multiprocessing does: JAX itself crashes when such a child exits
    assert os.waitpid(child, 0)[1] == 0
attempt(lambda: mine.cubed(x))
attempt(lambda: compiled(x))
attempt(lambda: later(x))
attempt(lambda: jax.vmap(mine.cubed)(np.ones((3, 4)))[1])
print("parent", mine.cubed(x)[1])
"""


def test_children_of_fork_do_what_is_compiled_and_refuse_the_rest(run):
    out = run(FORKED.replace("USED", "jax.block_until_ready((mine.cubed(x), compiled(x)))"))
    assert out.split() == ["value", "1.0", "value", "2.0", "refused", "refused", "parent", "1.0"]


def test_children_of_fork_work_where_jax_was_not_used(run):
    out = run(FORKED.replace("USED", ""))
    assert out.split() == [
        "value",
        "1.0",
        "value",
        "2.0",
        "value",
        "3.0",
        "value",
        "1.0",
        "parent",
        "1.0",
    ]


def test_children_of_fork_forget_the_calls_of_other_threads(run):
    """They would wait for them when they leave."""
    run(
        """
import atexit, os, signal, threading, time, warnings
import jaxbind
warnings.simplefilter("ignore")
slow = jaxbind.bind(lambda x: time.sleep(1) or x, "()->()")
thread = threading.Thread(target=slow, args=(1.0,))
thread.start()
time.sleep(0.5)
child = os.fork()
if not child:
    signal.alarm(10)
    atexit._run_exitfuncs()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
thread.join()
"""
    )


POOL = """
import concurrent.futures, multiprocessing
import jaxbind, mine
if __name__ == "__main__":
    jax.block_until_ready(mine.cubed(np.arange(3.0)))
    with concurrent.futures.ProcessPoolExecutor(2, multiprocessing.get_context("METHOD")) as pool:
        out = list(pool.map(mine.cubed, [np.full(2, k) for k in (1.0, 2.0, 3.0)]))
    print(*[int(o[0]) for o in out])
"""


@pytest.mark.parametrize("method", every(2, ["spawn", "forkserver"]))
def test_pools_of_processes(run, method):
    (run.folder / "main.py").write_text(PREAMBLE + POOL.replace("METHOD", method))
    assert run("import runpy; runpy.run_path('main.py', run_name='__main__')") == "1 8 27\n"


JOBLIB = """
import mine
from joblib import Parallel, delayed

def slope(k):
    return jax.grad(lambda x: mine.cubed(x).sum())(np.full(2, k))

if __name__ == "__main__":
    jax.block_until_ready(mine.cubed(np.arange(3.0)))
    for backend in ("loky", "threading"):
        pool = Parallel(2, backend=backend)
        cubes = pool(delayed(mine.cubed)(np.full(2, k)) for k in (1.0, 2.0))
        slopes = pool(delayed(slope)(k) for k in (1.0, 2.0))
        print(*[int(o[0]) for o in cubes + slopes])
"""


@pytest.mark.slow
def test_joblib(run):
    pytest.importorskip("joblib")
    (run.folder / "main.py").write_text(PREAMBLE + JOBLIB)
    assert run("import runpy; runpy.run_path('main.py', run_name='__main__')") == "1 8 3 12\n" * 2


# Functions of a script ------------------------------------------------------------------------


SCRIPT = """
import jax, jaxbind, multiprocessing, sys
from pathlib import Path

@jaxbind.bind("()->()")
def mine(x):
    return {factor} * x

def load():
    print(jax.export.deserialize(bytearray(Path("saved").read_bytes())).call(2.0), flush=True)

if __name__ == "__main__":
    if sys.argv[1] == "save":
        exported = jax.export.export(jax.jit(mine), disabled_checks=jaxbind.export_checks())(1.0)
        Path("saved").write_bytes(exported.serialize())
    if sys.argv[1] == "spawn":
        child = multiprocessing.get_context("spawn").Process(target=load)
        child.start()
        child.join()
    else:
        load()
"""


@pytest.mark.slow
def test_a_function_of_a_script_is_not_that_of_another(tmp_path):
    def script(name, what):
        path = str(Path(jaxbind.__file__).parent.parent)
        return subprocess.run(
            [sys.executable, name, what],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=120,
        )

    (tmp_path / "first.py").write_text(SCRIPT.format(factor=2))
    (tmp_path / "second.py").write_text(SCRIPT.format(factor=777))
    assert script("first.py", "save").stdout == "4.0\n"
    assert script("first.py", "load").stdout == "4.0\n"
    assert script("first.py", "spawn").stdout == "4.0\n"
    done = script("second.py", "load")
    assert done.returncode == 1 and not done.stdout
    assert "had the script first.py; it is second.py now" in done.stderr
