"""The figures of a run: medians, ratios, table and promises."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

Round = dict[str, dict[str, list[float]]]  # column -> case -> samples

NATIVE, C, CALLBACK, PUBLISHED = "native", "ffi_call", "pure_callback", "jaxbind 1.3"
OURS, RETURNING, VECTORIZED = "jaxbind", "jaxbind returning", "jaxbind vectorized"
SHOWN = [NATIVE, CALLBACK, C, PUBLISHED, OURS, RETURNING, VECTORIZED]
TITLES = {
    NATIVE: "native JAX",
    C: "ffi_call (C)",
    PUBLISHED: "JAXbind 1.3.1",
    OURS: "jaxbind",
    RETURNING: "jaxbind returning",
    VECTORIZED: "jaxbind vectorized",
}
# the same columns in the environment of JAXbind 1.3.1, to tell its JAX from this one
YARDSTICKS = {NATIVE: "native, 1.3.1's JAX", C: "ffi_call, 1.3.1's JAX"}

# the cases, as `worker.py` names them
IDLE, IDLE_MAP = "does nothing, in a scan", "does nothing, vmap over 1000"
IDLE_LARGE = "does nothing, 80 MB"
MAP, WHOLE, EAGER = "each of vmap over 1000", "one call on 1000 rows", "eager call"
LARGE, LOWERING = "80 MB in, 80 MB out", "lowering one call"
GROUPS = {
    "Inside a compiled program (per call)": [
        IDLE,
        "each step of a scan",
        "each of 100 calls",
        IDLE_MAP,
        MAP,
    ],
    "From Python": ["jitted call", EAGER, WHOLE, "eager vmap over 1000"],
    "80 MB": [LARGE, IDLE_LARGE],
    "Compiling (one more distinct call)": ["tracing one call", LOWERING],
}
COMPILATIONS = "compilations per eager vmap"
MULTIPLY, SINE = "eager jnp.multiply", "eager jnp.sin"
NUMPY_ROWS, NUMPY_LARGE = "NumPy alone, 1000 rows", "NumPy alone, 80 MB"
REFERENCES = [MULTIPLY, SINE, NUMPY_ROWS, NUMPY_LARGE]


@dataclass
class Results:
    """All samples of a run, and what the run was."""

    about: dict[str, Any] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)

    def medians(self, column: str, case: str) -> list[float | None]:
        """One median per round."""
        samples = [r.get(column, {}).get(case) for r in self.rounds]
        return [statistics.median(s) if s else None for s in samples]

    def median(self, column: str, case: str) -> float | None:
        """Median over the rounds of the medians of each."""
        found = [m for m in self.medians(column, case) if m is not None]
        return statistics.median(found) if found else None

    def quartiles(self, column: str, case: str) -> tuple[float, float] | None:
        """First and third quartile of all samples."""
        samples = [s for r in self.rounds for s in r.get(column, {}).get(case, [])]
        if len(samples) < 2:
            return None
        first, _, third = statistics.quantiles(samples, n=4, method="inclusive")
        return first, third

    def ratio(self, above: tuple[str, str], below: tuple[str, str]) -> float | None:
        """Median over the rounds of the ratio of two (column, case) within a round."""
        pairs = zip(self.medians(*above), self.medians(*below), strict=True)
        ratios = [a / b for a, b in pairs if a is not None and b]
        return statistics.median(ratios) if ratios else None

    def as_json(self) -> dict[str, Any]:
        """Everything, summaries first."""
        columns = list(dict.fromkeys(c for r in self.rounds for c in r))
        summaries: dict[str, Any] = {}
        for column in columns:
            cases = dict.fromkeys(c for r in self.rounds for c in r.get(column, {}))
            for case in cases:
                quartiles = self.quartiles(column, case)
                summaries.setdefault(case, {})[column] = {
                    "median": self.median(column, case),
                    "quartiles": quartiles,
                    "interquartile_range": quartiles and quartiles[1] - quartiles[0],
                    "to_native": self.ratio((column, case), (NATIVE, case)),
                    "to_jaxbind": self.ratio((column, case), (OURS, case)),
                }
        return {
            "about": self.about,
            "unit": "microseconds",
            "summaries": summaries,
            "promises": [promise.judged(self) for promise in PROMISES],
            "rounds": self.rounds,
        }


def number(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}" if abs(value) >= 1 else f"{value:.3g}"


def grid(rows: list[list[str]]) -> list[str]:
    """The first column flush left, the others flush right."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def table(results: Results) -> str:
    """Times, ratios to native JAX, and ratios to this package."""
    columns = [c for c in SHOWN if any(c in r for r in results.rounds)]
    cases = [case for cases in GROUPS.values() for case in cases]
    head = [TITLES.get(c, c) for c in columns]

    def compared(base: str) -> list[list[str]]:
        others = [c for c in columns if c != base]
        rows = [["", *(TITLES.get(c, c) for c in others)]]
        for case in cases:
            cells = [number(results.ratio((c, case), (base, case))) for c in others]
            if any(cell != "-" for cell in cells):
                rows.append([case, *cells])
        return rows

    times = [["", *head]]
    for case in [*cases, COMPILATIONS]:
        times.append([case, *(number(results.median(c, case)) for c in columns)])
    lines = ["MICROSECONDS (medians)", *grid(times), ""]
    for case in REFERENCES:
        if (value := results.median(NATIVE, case)) is not None:
            lines.append(f"{case}: {number(value)}")
    if NATIVE in columns:
        title = "TIMES NATIVE JAX (medians of ratios within a round)"
        lines += ["", title, *grid(compared(NATIVE))]
    if OURS in columns:
        lines += ["", "TIMES JAXBIND (likewise)", *grid(compared(OURS))]
    return "\n".join(lines)


def yardsticks(results: Results) -> str:
    """How the environment of JAXbind 1.3.1 differs from this one."""
    rows = [["", "native JAX", "ffi_call (C)"]]
    for case in [case for cases in GROUPS.values() for case in cases]:
        ratios = [results.ratio((there, case), (here, case)) for here, there in YARDSTICKS.items()]
        if any(ratios):
            rows.append([case, *map(number, ratios)])
    if len(rows) == 1:
        return ""
    there = results.about.get("versions", {}).get(PUBLISHED, {})
    title = f"YARDSTICK: JAXbind's environment (jax {there.get('jax', '?')}) to this one"
    return "\n".join([title, *grid(rows)])


@dataclass(frozen=True)
class Promise:
    """That ``above``, or its ratio to ``below`` times ``scale``, is at most ``bound``."""

    text: str
    bound: float
    above: tuple[str, str]
    below: tuple[str, str] | None = None
    scale: float = 1.0
    unit: str = "x"

    def measured(self, results: Results) -> float | None:
        if self.below is None:
            value = results.median(*self.above)
        else:
            value = results.ratio(self.above, self.below)
        return None if value is None else value * self.scale

    def judged(self, results: Results) -> dict[str, Any]:
        value = self.measured(results)
        verdict = "not measured" if value is None else "ok" if value <= self.bound else "MISSED"
        return {
            "promise": self.text,
            "measured": value,
            "bound": self.bound,
            "unit": self.unit,
            "verdict": verdict,
        }


PROMISES = [
    Promise("do-nothing function in a scan, to the C handler", 2.2, (OURS, IDLE), (C, IDLE)),
    Promise(
        "do-nothing function in a scan, to JAXbind 1.3.1", 1 / 10, (OURS, IDLE), (PUBLISHED, IDLE)
    ),
    Promise(
        "do-nothing function in a scan, to pure_callback", 1 / 200, (OURS, IDLE), (CALLBACK, IDLE)
    ),
    Promise(
        "vmap over 1000, overhead per element, to JAXbind 1.3.1",
        1 / 12,
        (OURS, IDLE_MAP),
        (PUBLISHED, IDLE_MAP),
    ),
    Promise(
        "vmap over 1000, vectorized, to one call on the whole batch",
        1.2,
        (VECTORIZED, MAP),
        (VECTORIZED, WHOLE),
        scale=1000,
    ),
    Promise("eager call, to eager jnp.multiply", 1.5, (OURS, EAGER), (NATIVE, MULTIPLY)),
    Promise("eager call, to eager jnp.sin", 1.5, (OURS, EAGER), (NATIVE, SINE)),
    Promise("compilations per repeated eager vmap", 0, (OURS, COMPILATIONS), unit=""),
    Promise("80 MB, to NumPy allocating its result", 1.5, (OURS, LARGE), (NATIVE, NUMPY_LARGE)),
    Promise("touching nothing of 80 MB", 100, (OURS, IDLE_LARGE), unit="µs"),
    Promise("lowering one distinct call", 300, (OURS, LOWERING), unit="µs"),
]


def promises(results: Results) -> str:
    """What was promised, what was measured."""
    rows = [["", "measured", "at most", ""]]
    for promise in PROMISES:
        judged = promise.judged(results)
        unit = f" {promise.unit}".rstrip()
        value = judged["measured"]
        shown = "-" if value is None else number(value) + unit
        rows.append([promise.text, shown, number(promise.bound) + unit, judged["verdict"]])
    return "\n".join(["PROMISES", *grid(rows)])


def text(results: Results) -> str:
    """The whole report."""
    parts = [table(results), yardsticks(results), promises(results)]
    return "\n\n".join(filter(None, parts)) + "\n"
