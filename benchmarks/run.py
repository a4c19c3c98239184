"""Time jaxbind beside native JAX, pure_callback, ffi_call and the published JAXbind 1.3.1.

``python benchmarks/run.py [--quick] [--rounds N] [--output DIR]`` prints a table and the
promises, and writes ``times.json``, ``times.txt`` and ``times.png``. The columns take turns,
several rounds, so that a machine whose speed drifts treats all alike; figures are medians over
the rounds, ratios are within a round. The published package has the same import name, so it
gets an environment of its own (made with pip in ``benchmarks/.envs``, or
``--published-python PATH``).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
COLUMNS = ["native", "pure_callback", "ffi_call", "jaxbind 1.3", "jaxbind", "jaxbind vectorized"]
TITLES = {"ffi_call": "ffi_call (C)", "native": "native JAX"}
Rounds = list[dict[str, dict[str, float]]]


def published_python(given: str | None) -> str:
    """The interpreter of an environment with jaxbind 1.3.1."""
    if given:
        return given
    folder = HERE / ".envs" / "published"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        print("making an environment for jaxbind 1.3.1 ...", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        import jax

        wanted = ["jaxbind==1.3.1", f"jax=={jax.__version__}"]
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True)
        (folder / "ready").touch()
    return str(python)


def one(column: str, python: str, quick: bool) -> dict[str, float]:
    command = [python, str(HERE / "worker.py"), column] + ["--quick"] * quick
    environment = dict(os.environ)
    if python != sys.executable:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        print(f"  {column}: failed\n{done.stderr[-2000:]}", file=sys.stderr)
        return {}
    return json.loads(done.stdout.splitlines()[-1])["times"]


def median(rounds: Rounds, column: str, case: str) -> float | None:
    values = [r[column][case] for r in rounds if case in r.get(column, {})]
    return statistics.median(values) if values else None


def ratio(rounds: Rounds, above: tuple[str, str], below: tuple[str, str]) -> float | None:
    """Median over the rounds of the ratio within a round."""
    values = [
        r[above[0]][above[1]] / r[below[0]][below[1]]
        for r in rounds
        if above[1] in r.get(above[0], {}) and below[1] in r.get(below[0], {})
    ]
    return statistics.median(values) if values else None


def table(rounds: Rounds) -> str:
    cases = list(dict.fromkeys(c for r in rounds for times in r.values() for c in times))
    width = max(map(len, cases))
    lines = [" " * width + "".join(f"{TITLES.get(c, c):>20}" for c in COLUMNS)]
    for case in cases:
        base = median(rounds, "native", case)
        cells = []
        for column in COLUMNS:
            value = median(rounds, column, case)
            text = "-" if value is None else f"{value:.4g}"
            if value is not None and base and column != "native":
                text += f" ({value / base:.3g}x)"
            cells.append(f"{text:>20}")
        lines.append(f"{case:<{width}}" + "".join(cells))
    return "\n".join(["microseconds, and ratios to native JAX", *lines])


OURS, C, OLD, BACK = "jaxbind", "ffi_call", "jaxbind 1.3", "pure_callback"
IDLE, IDLE_MAP = "does nothing, in a scan", "does nothing, vmap over 1000"
EAGER, BIG = "eager call", "80 MB in, 80 MB out"

PROMISES = [
    ("a do-nothing function in a scan, to the C handler", (OURS, IDLE), (C, IDLE), 2.2),
    ("the same, to JAXbind 1.3.1", (OURS, IDLE), (OLD, IDLE), 1 / 10),
    ("the same, to pure_callback", (OURS, IDLE), (BACK, IDLE), 1 / 200),
    ("vmap over 1000, overhead to JAXbind 1.3.1", (OURS, IDLE_MAP), (OLD, IDLE_MAP), 1 / 12),
    (
        "vectorized vmap, to one call on the whole batch",
        ("jaxbind vectorized", "the batch of 1000, mapped"),
        ("jaxbind vectorized", "the batch of 1000, one call"),
        1.2,
    ),
    ("eager call, to eager x * x", (OURS, EAGER), ("native", EAGER), 1.5),
    ("eager call, to eager jnp.sin", (OURS, EAGER), ("native", "eager jnp.sin"), 1.5),
    ("80 MB, to NumPy allocating its result", (OURS, BIG), ("native", f"NumPy: {BIG}"), 1.5),
]

LIMITS = [
    ("touching nothing of 80 MB, microseconds", "does nothing, 80 MB", 100.0),
    ("lowering one distinct call, microseconds", "lowering one call", 300.0),
]


def promises(rounds: Rounds) -> str:
    lines = ["promises (median of the ratios within a round)"]

    def add(text: str, value: float | None, bound: float) -> None:
        verdict = "-" if value is None else ("ok" if value <= bound else "MISSED")
        shown = "not measured" if value is None else f"{value:.4g}"
        lines.append(f"  {text:<56}{shown:>14}   at most {bound:<8.4g}{verdict}")

    for text, above, below, bound in PROMISES:
        add(text, ratio(rounds, above, below), bound)
    for text, case, bound in LIMITS:
        add(text, median(rounds, "jaxbind", case), bound)
    return "\n".join(lines)


def plot(rounds: Rounds, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = {
        "inside a program (µs per call)": [
            "does nothing, in a scan", "1000-step scan", "100 calls in a program", "vmap over 1000",
        ],
        "from Python (µs)": ["jitted call", "eager call", "eager vmap over 1000"],
        "large arrays (µs)": ["80 MB in, 80 MB out", "does nothing, 80 MB"],
        "compiling (µs per distinct call)": ["tracing one call", "lowering one call"],
    }  # fmt: skip
    shades = ["#999999", "#cc6677", "#ddaa33", "#aa4499", "#117733", "#44aa99"]
    colours = dict(zip(COLUMNS, shades, strict=True))
    figure, axes = plt.subplots(2, 2, figsize=(13, 9), layout="constrained")
    for axis, (title, cases) in zip(axes.flat, groups.items(), strict=True):
        for row, case in enumerate(cases):
            for place, column in enumerate(COLUMNS):
                value = median(rounds, column, case)
                if value is None:
                    continue
                y = row + (place - 2.5) * 0.14
                axis.barh(y, value, height=0.13, color=colours[column])
                axis.text(value * 1.08, y, f"{value:.3g}", va="center", fontsize=7.5)
        axis.set_xscale("log")
        axis.set_yticks(range(len(cases)), cases)
        axis.invert_yaxis()
        axis.set_title(title, loc="left")
        axis.margins(x=0.18)
        axis.grid(axis="x", alpha=0.3)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[c]) for c in COLUMNS]
    labels = [TITLES.get(c, c) for c in COLUMNS]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(COLUMNS), frameon=False)
    figure.suptitle("One call of x*x on 8 doubles, and what surrounds it")
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="short samples, one round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--published-python", help="an interpreter that has jaxbind 1.3.1")
    options = parser.parse_args()
    pythons = dict.fromkeys(COLUMNS, sys.executable)
    pythons["jaxbind 1.3"] = published_python(options.published_python)
    rounds: Rounds = []
    for number in range(1 if options.quick else options.rounds):
        found = {}
        for column in COLUMNS:
            print(f"round {number + 1}: {column}", flush=True)
            found[column] = one(column, pythons[column], options.quick)
        rounds.append(found)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "times.json").write_text(json.dumps(rounds, indent=1))
    text = f"{table(rounds)}\n\n{promises(rounds)}\n"
    (options.output / "times.txt").write_text(text)
    print(text)
    plot(rounds, options.output / "times.png")


if __name__ == "__main__":
    main()
