"""A report as one self-contained page."""

from __future__ import annotations

import io
from html import escape
from typing import TYPE_CHECKING

from jaxbind.testing._plot import figure
from jaxbind.testing._report import MARKS
from jaxbind.testing.laws import LAWS

if TYPE_CHECKING:
    from jaxbind.testing._report import Report, Row

_STYLE = """
:root { --ok: #1b6e3c; --bad: #b3261e; --line: #e2e2e2; --quiet: #777; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1180px; margin: 2.5rem auto;
       padding: 0 1.5rem; color: #222; background: #fff; }
h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p.summary { color: var(--quiet); margin-top: .2rem; }
table { border-collapse: collapse; margin-top: 1.5rem; }
thead th { height: 9.5rem; vertical-align: bottom; padding: 0; font-weight: 500; }
thead th div { width: 2rem; transform: translateX(1.1rem) rotate(-55deg);
               transform-origin: left bottom; white-space: nowrap; font-size: .82rem; }
tbody th { text-align: left; padding: .3rem 1.2rem .3rem 0; font-family: ui-monospace, monospace;
           font-weight: 500; white-space: nowrap; }
td { width: 2rem; text-align: center; border: 1px solid var(--line); padding: .25rem 0; }
td.passed { color: var(--ok); background: #f1f9f3; } td.skipped { color: #bbb; }
td.violated { color: #fff; background: var(--bad); font-weight: 700; }
pre { background: #fdf3f2; border-left: 4px solid var(--bad); padding: .8rem 1rem; overflow-x: auto;
      white-space: pre-wrap; font: 13px/1.5 ui-monospace, monospace; }
svg { width: 100%; height: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; }
dt { font-family: ui-monospace, monospace; } dd { margin: 0; color: #444; }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--quiet); }
"""


def page(report: Report) -> str:
    """The whole page."""
    names = [name for name in LAWS if any(name in row.results for row in report.rows)]
    head = "".join(f"<th><div>{escape(name)}</div></th>" for name in names)
    body = "".join(_table_row(row, names) for row in report.rows)
    sections = "".join(_section(row) for row in report.rows)
    laws = "".join(f"<dt>{n}</dt><dd>{escape(LAWS[n].statement)}</dd>" for n in names)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>The laws of {escape(', '.join(r.label for r in report.rows))}</title>"
        f"<style>{_STYLE}</style></head><body>"
        f"<h1>The laws of your bindings</h1><p class='summary'>{escape(report.summary())}</p>"
        f"<table><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"{sections}<h2>The laws</h2><dl>{laws}</dl></body></html>\n"
    )


def _table_row(row: Row, names: list[str]) -> str:
    cells = []
    for name in names:
        result = row.results.get(name)
        if result is None:
            cells.append("<td></td>")
            continue
        said = result.reason or f"{result.examples} examples in {result.seconds:.2f} s"
        if result.violation is not None:
            said = result.violation.found
        title = escape(f"{name}: {said}", quote=True)
        cells.append(f"<td class='{result.status}' title='{title}'>{MARKS[result.status]}</td>")
    return f"<tr><th>{escape(row.label)}</th>{''.join(cells)}</tr>"


def _section(row: Row) -> str:
    messages = "".join(f"<pre>{escape(str(v))}</pre>" for v in row.violations)
    skipped = [r for r in row.results.values() if r.status == "skipped"]
    reasons = "".join(f"<dt>{r.law}</dt><dd>{escape(r.reason)}</dd>" for r in skipped)
    details = f"<details><summary>{len(skipped)} skipped</summary><dl>{reasons}</dl></details>"
    return f"<h2>{escape(row.label)}</h2>{messages}{_svg(row)}{details if skipped else ''}"


def _svg(row: Row) -> str:
    buffer = io.StringIO()
    figure([row]).savefig(buffer, format="svg")
    text = buffer.getvalue()
    return text[text.index("<svg") :]
