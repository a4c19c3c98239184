"""Prints the table of the functions for the documentation."""

from __future__ import annotations

import jax.scipy.special

from jaxbind.contrib.special import FUNCTIONS, Entry

HEAD = """\
| function | derivatives in | source | checked at | complex | `jax.scipy` |
| --- | --- | --- | --- | --- | --- |"""


def table() -> str:
    """All functions in Markdown, beside what ``jax.scipy.special`` has."""
    return "\n".join([HEAD, *(_row(FUNCTIONS[name]) for name in sorted(FUNCTIONS))])


def _row(entry: Entry) -> str:
    operands = entry.binding.definition.parameters.operands[: len(entry.domain)]
    moving = [o for o, has in zip(operands, entry.differentiable, strict=True) if has]
    places = [f"{o}: {place}" for o, place in zip(operands, entry.domain, strict=True)]
    marks = [entry.analytic, hasattr(jax.scipy.special, entry.name)]
    cells = [
        f"`{entry.name}({', '.join(operands)})`",
        ", ".join(moving) or "none",
        entry.source,
        "; ".join(places),
        *("yes" if mark else "" for mark in marks),
    ]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(table())
