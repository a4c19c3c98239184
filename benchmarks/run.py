"""Time jaxbind beside native JAX, pure_callback, ffi_call and the published JAXbind 1.3.1.

``python benchmarks/run.py [--quick] [--output DIR]`` prints a table and the promises, and writes
``times.json``, ``times.txt`` and ``times.png``. Every column runs in a process of its own; for
each case the columns take turns, and there are several rounds, each with new processes, so that
a machine whose speed drifts treats all alike. The published package has the same import name,
so it gets an environment of its own (made with pip in ``benchmarks/.envs``, or
``--published-python PATH``). A column that cannot be measured is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import venv
from importlib.metadata import version
from pathlib import Path
from typing import Any

import report
from plot import plot
from report import NATIVE, PUBLISHED, SHOWN, YARDSTICKS, Results

HERE = Path(__file__).resolve().parent
CASES = [
    "nothing_in_scan",
    "nothing_mapped",
    "scan",
    "calls_in_program",
    "mapped",
    "whole_batch",
    "jitted_call",
    "eager_call",
    "references",
    "eager_vmap",
    "large",
    "nothing_large",
    "tracing_and_lowering",
]
PATIENCE = 600  # seconds for one case of one column


class WorkerError(RuntimeError):
    """A column could not be measured."""


class Worker:
    """A process that measures one column."""

    def __init__(self, column: str, python: str) -> None:
        environment = dict(os.environ)
        if python != sys.executable:
            environment.pop("PYTHONPATH", None)
        self.errors = tempfile.TemporaryFile("w+")  # open as long as the process
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), column],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            text=True,
        )
        self.versions = self.reply()

    def reply(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        alarm = threading.Timer(PATIENCE, self.process.kill)
        alarm.start()
        line = self.process.stdout.readline()
        alarm.cancel()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines()[-8:]
            raise WorkerError("\n".join([f"ended with {self.process.returncode}", *said]))
        return json.loads(line)

    def measure(self, case: str, seconds: float, samples: int) -> dict[str, list[float]]:
        assert self.process.stdin is not None
        request = {"case": case, "seconds": seconds, "samples": samples}
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `reply` says why
        answer = self.reply()
        if "error" in answer:
            print(f"  {case}: {answer['error']}", file=sys.stderr)
        return answer.get("times", {})

    def close(self) -> None:
        try:
            self.process.communicate(timeout=30)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            self.process.kill()
            self.process.wait()
        self.errors.close()


def works(python: Path | str) -> bool:
    """Whether JAXbind 1.3.1 computes squares there, with the JAX that is there."""
    try:
        Worker(PUBLISHED, str(python)).close()
    except (WorkerError, OSError):
        return False
    return True


def published_python() -> str | None:
    """An environment with jaxbind 1.3.1, with the JAX of this one if the two get on."""
    ours = version("jax")
    folder = HERE / ".envs" / f"jaxbind-1.3.1-for-jax-{ours}-python-{platform.python_version()}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if (folder / "ready").exists():
        return str(python)
    for jax in (f"jax=={ours}", "jax"):
        print(f"making an environment with jaxbind==1.3.1 and {jax} ...", flush=True)
        try:
            venv.create(folder, with_pip=True, clear=True)
            install = [python, "-m", "pip", "install", "-q", "jaxbind==1.3.1", jax]
            subprocess.run(install, check=True)
        except (subprocess.CalledProcessError, OSError) as error:
            print(f"  {error}", file=sys.stderr)
            continue
        if works(python):
            (folder / "ready").touch()
            return str(python)
    print("no environment with jaxbind 1.3.1: its column is left out", file=sys.stderr)
    return None


def one_round(
    columns: dict[str, tuple[str, str]], seconds: float, samples: int, results: Results
) -> None:
    """Start a process per column, and let them take turns at each case."""
    found: report.Round = {}
    workers: dict[str, Worker] = {}
    versions = results.about.setdefault("versions", {})
    for name, (column, python) in columns.items():
        try:
            workers[name] = Worker(column, python)
        except (WorkerError, OSError) as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
        else:
            versions[name] = workers[name].versions
            found[name] = {}
    turn = len(results.rounds)
    for case in CASES:
        print(f"round {turn + 1}: {case}", flush=True)
        names = list(workers)
        first = turn % max(len(names), 1)  # nobody is always the first
        for name in names[first:] + names[:first]:
            if case == "references" and name != NATIVE:
                continue
            try:
                found[name] |= workers[name].measure(case, seconds, samples)
            except WorkerError as error:
                print(f"{name}: stopped at {case}: {error}", file=sys.stderr)
                workers.pop(name).close()
    for worker in workers.values():
        worker.close()
    results.rounds.append(found)


def about() -> dict[str, Any]:
    """What the machine is."""
    processor = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = named[0] if named else processor
    pages = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "processor": processor,
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "transparent huge pages": pages.read_text().strip() if pages.exists() else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="short samples, two rounds")
    parser.add_argument("--rounds", type=int, help="default: 5, or 2 if --quick")
    parser.add_argument("--output", type=Path, default=Path("benchmark-results"))
    parser.add_argument("--published-python", help="an interpreter that has jaxbind 1.3.1")
    options = parser.parse_args()

    columns = {name: (name, sys.executable) for name in SHOWN}
    other = options.published_python or published_python()
    del columns[PUBLISHED]
    if other:
        columns[PUBLISHED] = (PUBLISHED, other)
        columns |= {there: (here, other) for here, there in YARDSTICKS.items()}
    results = Results(about())
    seconds, samples = (0.004, 3) if options.quick else (0.025, 7)
    for _ in range(options.rounds or (2 if options.quick else 5)):
        one_round(columns, seconds, samples, results)

    options.output.mkdir(parents=True, exist_ok=True)
    data = json.dumps(results.as_json(), indent=1, ensure_ascii=False)
    (options.output / "times.json").write_text(data, encoding="utf-8")
    text = report.text(results)
    (options.output / "times.txt").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    plot(results, options.output / "times.png")


if __name__ == "__main__":
    main()
