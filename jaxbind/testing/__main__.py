"""``python -m jaxbind.testing package.module``: check the bindings that a module defines."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxbind.testing._options import Options
from jaxbind.testing._report import Report, report
from jaxbind.testing._subject import binding_of


class UsageError(Exception):
    """What was asked for cannot be done."""


def load(target: str) -> ModuleType:
    """A module by its name, or by the path of its file."""
    if target.endswith(".py"):
        path = Path(target)
        if not path.exists():
            raise UsageError(f"there is no file {target}")
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[path.stem] = module
        sys.path.insert(0, str(path.parent))
        spec.loader.exec_module(module)
        return module
    return importlib.import_module(target)


def find(target: str) -> list[tuple[str, Any]]:
    """The bindings that ``module``, or ``module:name``, names.

    Raises:
      UsageError: if there are none.
    """
    place, _, name = target.partition(":")
    try:
        module = load(place)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # a script may end itself
        raise UsageError(f"cannot import {place}: {type(error).__name__}: {error}") from None
    if name:
        found: Any = module
        for part in name.split("."):
            if not hasattr(found, part):
                raise UsageError(f"{place} has no {name}")
            found = getattr(found, part)
        if binding_of(found) is None:
            raise UsageError(f"{target} is a {type(found).__name__}; it must be a binding")
        return [(name, found)]
    bindings: dict[int, tuple[str, Any]] = {}
    for key, value in vars(module).items():
        binding = binding_of(value)
        if binding is not None and binding.definition.parent is None:
            bindings.setdefault(id(value), (key, value))
    if not bindings:
        raise UsageError(f"{place} defines no bindings (jaxbind.bind) at its top level")
    return list(bindings.values())


class Ticker:
    """A line of progress on a terminal."""

    def __init__(self, stream: Any, total: int):
        self.stream = stream
        self.total = total
        self.done = 0
        self.shown = bool(getattr(stream, "isatty", lambda: False)())
        self.started = time.perf_counter()

    def __call__(self, label: str, law: str, done: int, total: int) -> None:
        del done
        if self.shown:
            share = self.done / max(1, self.total * total)
            bar = "█" * int(20 * share) + "░" * (20 - int(20 * share))
            seconds = time.perf_counter() - self.started
            self.stream.write(f"\r\33[K{bar} {seconds:4.0f} s  {label}: {law}")
            self.stream.flush()
        self.done += 1

    def clear(self) -> None:
        if self.shown:
            self.stream.write("\r\33[K")
            self.stream.flush()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m jaxbind.testing",
        description="Check the laws of bindings: is what was declared about them true?",
        epilog="Exits with 1 if a law is broken, with 2 if something cannot be checked.",
    )
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="TARGET",
        help="package.module, package.module:name, or a file",
    )
    parser.add_argument("--laws", nargs="+", metavar="LAW", help="only these laws")
    parser.add_argument("--max-examples", type=int, help="default: of the Hypothesis profile")
    parser.add_argument("--seed", type=int, help="find the same examples again")
    parser.add_argument("--html", metavar="FILE", help="write a page")
    parser.add_argument("--plot", metavar="FILE", help="write a picture (PNG, SVG, PDF)")
    options = parser.parse_args(arguments)
    keywords = {
        name: value
        for name, value in (
            ("laws", options.laws),
            ("max_examples", options.max_examples),
            ("seed", options.seed),
        )
        if value is not None
    }
    try:
        if options.max_examples is not None and options.max_examples < 1:
            raise UsageError(f"--max-examples {options.max_examples}: it must be at least 1")
        Options(**keywords)
        for path in filter(None, (options.html, options.plot)):
            if not Path(path).absolute().parent.is_dir():
                raise UsageError(f"{path} cannot be written: there is no such directory")
        bindings = [found for target in options.targets for found in find(target)]
    except (UsageError, ValueError) as error:
        print(f"python -m jaxbind.testing: {error}", file=sys.stderr)
        return 2

    started = time.perf_counter()
    ticker = Ticker(sys.stderr, len(bindings))
    rows, refused = [], []
    for name, binding in bindings:
        try:
            found = report(binding, progress=ticker, **keywords)
        except Exception as error:
            refused.append(f"{name} cannot be checked: {error}")
            continue
        found.rows[0].label = name
        rows += found.rows
    ticker.clear()
    whole = Report(rows, time.perf_counter() - started)
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    if rows:
        print(whole.text(colour))
    for text in refused:
        print(f"\n{text}", file=sys.stderr)
    for path, write in ((options.html, whole.to_html), (options.plot, whole.plot)):
        if not rows or not path:
            continue
        try:
            write(path)
        except (OSError, ValueError, ImportError) as error:  # no permission, format, or matplotlib
            refused.append(f"{path} cannot be written: {error}")
            print(f"\n{refused[-1]}", file=sys.stderr)
        else:
            print(f"\nwrote {path}")
    if not whole.ok:
        return 1
    return 2 if refused else 0


if __name__ == "__main__":
    sys.exit(main())
