"""One HTML page that needs nothing beside it. All text that comes from runs is escaped."""

import base64
from collections.abc import Sequence
from html import escape

from rfdit.reporting.grids import Sheet
from rfdit.reporting.metrics import Protocol
from rfdit.reporting.plots import Plot
from rfdit.reporting.runs import Run
from rfdit.reporting.table import Head, Value

# Nothing is loaded from anywhere, whatever a caption might hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 1280px; margin: 0 auto;
  padding: 1.2rem 1.6rem 3rem; }
h1 { font-size: 1.5rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
p, ul { margin: .4rem 0; } .quiet { color: #555; font-size: .86rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #444; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
th button { font: inherit; font-weight: 600; border: 0; background: none; padding: 0; cursor: pointer; color: inherit; }
th button::after { content: "\\2195" / ""; color: #999; padding-left: .25rem; }
th[aria-sort=ascending] button::after { content: "\\2191" / ""; color: #000; }
th[aria-sort=descending] button::after { content: "\\2193" / ""; color: #000; }
tbody tr:hover { background: #f3f6fa; }
.failed { color: #a33b00; font-weight: 600; } .unfinished { color: #555; font-style: italic; }
figure { margin: 0; break-inside: avoid; } figure img { max-width: 100%; height: auto; }
figcaption { font-size: .86rem; margin: .25rem 0 .4rem; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 520px), 1fr)); gap: 1.4rem; }
.sheets { display: grid; grid-template-columns: repeat(auto-fill, minmax(280px, 1fr)); gap: 1rem; }
.sheets img { width: 100%; }
code { font-family: ui-monospace, monospace; font-size: .82rem; overflow-wrap: anywhere; }
dt { font-weight: 600; margin-top: .7rem; } dd { margin: .1rem 0 0 0; }
@media print { body { max-width: none; padding: 0; font-size: 10pt; } th button::after { content: ""; }
  .wide { overflow: visible; } table { font-size: 7.5pt; } th, td { padding: .15rem .3rem; }
  .plots { grid-template-columns: 1fr 1fr; } .sheets { grid-template-columns: repeat(3, 1fr); } }
"""

SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), column = head.cellIndex, body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const numeric = head.classList.contains("number");
    const value = (row) => row.cells[column].dataset.value;
    const order = (a, b) => numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
    const rows = Array.from(body.rows).sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === "" || y === "") return (x === "") - (y === "");  // what is missing stays below
      return up ? order(x, y) : order(y, x);
    });
    body.append(...rows);
  });
}
"""


def table(heads: Sequence[Head], rows: Sequence[Sequence[Value]]) -> str:
    """The sortable table."""
    titles = "".join(
        f'<th{_class(head)} title="{escape(head.meaning)}"><button type="button">{escape(head.title)}</button></th>'
        for head in heads
    )
    body = "".join(
        f"<tr>{''.join(_cell(head, value) for head, value in zip(heads, values, strict=True))}</tr>"
        for values in rows
    )
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def _class(head: Head) -> str:
    return ' class="number"' if head.form else ""


def _cell(head: Head, value: Value) -> str:
    raw = "" if value is None else str(value)
    shown = "\N{EN DASH}" if raw == "" else format(value, head.form) if head.form else raw
    marked = f' class="{escape(raw)}"' if head.title == "state" else _class(head)
    return f'<td{marked} data-value="{escape(raw)}">{escape(shown)}</td>'


def figures(plots: Sequence[Plot]) -> str:
    """The plots with their notes."""
    parts = []
    for plot in plots:
        data = base64.b64encode(plot.bytes("svg")).decode()
        notes = " ".join(plot.notes)
        parts.append(
            f"<figure><figcaption><strong>{escape(plot.title)}.</strong> {escape(notes)}</figcaption>"
            f'<img alt="{escape(plot.title)}" src="data:image/svg+xml;base64,{data}"></figure>'
        )
    return f'<div class="plots">{"".join(parts)}</div>'


def sheets(found: Sequence[Sheet]) -> str:
    """The runs' sheets, side by side."""
    parts = []
    for sheet in found:
        data = base64.b64encode(sheet.jpeg).decode()
        title = f"{sheet.run}, step {sheet.step:,}"
        parts.append(
            f"<figure><figcaption>{escape(title)}</figcaption>"
            f'<img alt="samples of {escape(title)}" src="data:image/jpeg;base64,{data}"></figure>'
        )
    return f'<div class="sheets">{"".join(parts)}</div>'


def protocols(found: Sequence[Protocol]) -> str:
    """The footnotes of metrics, and what sets protocols of the same metric apart."""
    lines = []
    for protocol in found:
        differs = "".join(f"<li>{escape(one)}</li>" for one in protocol.differences)
        warning = (
            f"<p>Not comparable without care with numbers of ({protocol.other}):</p><ul>{differs}</ul>"
            if differs
            else ""
        )
        lines.append(
            f"<dt>({escape(protocol.letter)}) {escape(protocol.evaluation)}</dt>"
            f'<dd>{warning}<p class="quiet">{escape(protocol.text)}</p></dd>'
        )
    return f"<dl>{''.join(lines)}</dl>"


def states(runs: Sequence[Run], skipped: Sequence[str]) -> str:
    """Runs that are not finished, and folders that could not be read."""
    lines = [f"<li>{_state(run)}</li>" for run in runs if run.state.name != "finished"]
    lines += [f"<li>skipped: {escape(reason)}</li>" for reason in skipped]
    return f"<ul>{''.join(lines)}</ul>" if lines else ""


def _state(run: Run) -> str:
    name, kind = escape(run.name), escape(run.state.name)
    if run.state.error is not None:
        said = escape(run.state.error)
    else:
        wanted = (run.config.get("trainer") or {}).get("max_steps")
        said = (
            f"logged up to step {run.steps:,} of {escape(str(wanted))}; it was stopped or killed, or runs now"
        )
    return f'<strong>{name}</strong> <span class="{kind}">{kind}</span>: {said}'


def commands(runs: Sequence[Run]) -> str:
    """What makes each run again."""
    parts = []
    for run in runs:
        git = run.environment.get("git")
        commit = ""
        if isinstance(git, dict):
            changed = ", with changes that are not in it" if git.get("modified") else ""
            commit = f'<p class="quiet">at commit {escape(str(git.get("commit")))}{changed}</p>'
        parts.append(f"<dt>{escape(run.name)}</dt><dd><code>{escape(run.command)}</code>{commit}</dd>")
    return f"<dl>{''.join(parts)}</dl>"


def page(title: str, lead: str, sections: Sequence[tuple[str, str]]) -> str:
    """The whole page. sections: headings and their HTML; those without any are left out."""
    body = "".join(f"<section><h2>{escape(head)}</h2>{html}</section>" for head, html in sections if html)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{STYLE}</style></head>'
        f"<body><h1>{escape(title)}</h1><p>{escape(lead)}</p>{body}<script>{SCRIPT}</script></body></html>\n"
    )
