"""`Report`: what came of every law, as a table to print, a page and a picture."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxbind.testing._check import Check, Result
from jaxbind.testing._violation import LawViolation
from jaxbind.testing.laws import LAWS

MARKS = {"passed": "✓", "violated": "✗", "skipped": "·", "": " "}
COLOURS = {"passed": "\33[32m", "violated": "\33[1;31m", "skipped": "\33[2m"}
_RESET = "\33[0m"

Progress = Callable[[str, str, int, int], None]


@dataclass
class Row:
    """One binding and what came of its laws, in the order of `LAWS`."""

    label: str
    check: Check
    results: dict[str, Result] = field(default_factory=dict)

    @property
    def violations(self) -> list[LawViolation]:
        """In the order in which one explains the next."""
        found = [self.results[law.name].violation for law in self.check.laws()]
        return [violation for violation in found if violation is not None]


@dataclass
class Report:
    """What came of checking some bindings; `str` of it is a table.

    Attributes:
      rows: one per binding.
      seconds: how long it took.
    """

    rows: list[Row]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether no law is broken."""
        return not self.violations

    @property
    def violations(self) -> list[LawViolation]:
        """All broken laws, binding by binding."""
        return [violation for row in self.rows for violation in row.violations]

    def counts(self) -> dict[str, int]:
        """How many laws hold, are broken, and were skipped."""
        found: dict[str, int] = {"passed": 0, "violated": 0, "skipped": 0}
        for row in self.rows:
            for result in row.results.values():
                found[result.status] += 1
        return found

    def __str__(self) -> str:
        return self.text()

    def text(self, colour: bool = False) -> str:
        """The table, a summary, and the first violation in full.

        Args:
          colour: with the colours of terminals.
        """
        parts = [self._list(colour) if len(self.rows) == 1 else self._table(colour)]
        parts.append(self.summary())
        if self.violations:
            parts.append(_painted(str(self.violations[0]), "violated", colour, first_line=True))
        return "\n\n".join(parts)

    def summary(self) -> str:
        counts = self.counts()
        bindings = f"{len(self.rows)} binding{'s' * (len(self.rows) != 1)}"
        broken = f"{counts['violated']} broken" if counts["violated"] else "none broken"
        return (
            f"{bindings}: {counts['passed']} laws hold, {broken},"
            f" {counts['skipped']} skipped, in {self.seconds:.1f} s"
        )

    def _list(self, colour: bool) -> str:
        """One binding: a line per law."""
        row = self.rows[0]
        lines = [row.label]
        width = max(map(len, row.results), default=0)
        for name, result in row.results.items():
            what = result.reason or LAWS[name].statement
            if result.status == "passed":
                what = f"{what} ({result.examples} examples)"
            mark = _painted(MARKS[result.status], result.status, colour)
            dim = _painted(_short(what), "skipped" if result.status == "skipped" else "", colour)
            lines.append(f"  {mark} {name:{width}}  {dim}")
        return "\n".join(lines)

    def _table(self, colour: bool) -> str:
        """Bindings down, laws across, under a staircase of their names."""
        names = [name for name in LAWS if any(name in row.results for row in self.rows)]
        width = max((len(row.label) for row in self.rows), default=0)
        lines = [f"{'':{width}}  {'│ ' * index}┌ {name}" for index, name in enumerate(names)]
        for row in self.rows:
            marks = []
            for name in names:
                status = row.results[name].status if name in row.results else ""
                marks.append(_painted(MARKS[status], status, colour))
            lines.append(f"{row.label:{width}}  {' '.join(marks)}")
        return "\n".join(lines)

    def to_html(self, path: str | Path) -> None:
        """Write one self-contained page: the table, all messages, and a plot per binding.

        Raises:
          ImportError: without matplotlib.
        """
        from jaxbind.testing._html import page

        Path(path).write_text(page(self), encoding="utf-8")

    def plot(self, path: str | Path) -> None:
        """Draw what the numerical laws rest on, as PNG (or what the file's name says).

        For each binding the error of differences against their step, and its Jacobian from J v,
        from Jᵀ w and by differences.

        Raises:
          ImportError: without matplotlib.
        """
        from jaxbind.testing._plot import figure

        figure(self.rows).savefig(path, dpi=150)


def _short(text: str, width: int = 100) -> str:
    line = text.splitlines()[0] if text else ""
    return line if len(line) <= width else line[: width - 1] + "…"


def _painted(text: str, status: str, colour: bool, first_line: bool = False) -> str:
    if not colour or status not in COLOURS:
        return text
    head, newline, rest = text.partition("\n") if first_line else (text, "", "")
    return f"{COLOURS[status]}{head}{_RESET}{newline}{rest}"


def report(*bindings: Any, progress: Progress | None = None, **keywords: Any) -> Report:
    """Try every law on drawn examples, and tell what came of each; does not raise for violations.

    Args:
      bindings: one or more.
      progress: called before each law with the binding's and the law's name, how many laws have
        been tried and how many there are.
      keywords: those of `check`.

    Raises:
      ValueError: if inputs cannot be drawn, or the function raises for all of them.
    """
    started = time.perf_counter()
    checks = [Check.of(f, keywords) for f in bindings]
    for check in checks:  # before time is spent on any
        if check.options.inputs is None:
            check.drawing()
    total = sum(len(check.laws()) for check in checks)
    rows = []
    done = 0
    for check, label in zip(checks, labels([c.subject.label for c in checks]), strict=True):
        row = Row(label, check)
        found = {}
        for law in check.laws():
            if progress is not None:
                progress(label, law.name, done, total)
            found[law.name] = check.run(law)
            done += 1
        row.results = {name: found[name] for name in LAWS if name in found}
        rows.append(row)
    return Report(rows, time.perf_counter() - started)


def labels(names: Sequence[str]) -> list[str]:
    """Names with numbers behind those that occur more than once."""
    found: list[str] = []
    for name in names:
        count = sum(name == other or other.startswith(f"{name}@") for other in found)
        found.append(f"{name}@{count + 1}" if name in found else name)
    return found
