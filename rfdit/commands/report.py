"""A page about the runs below a folder. Settings: conf/report.yaml."""

import json
import sys
from collections import Counter
from pathlib import Path

from omegaconf import DictConfig

from rfdit.config.build import validate
from rfdit.config.command import command
from rfdit.config.overrides import setting
from rfdit.reporting.metrics import LOSSES, Metric, best_run, find_footnotes, find_metrics, pick_metric
from rfdit.reporting.page import render_page
from rfdit.reporting.plots import make_plots
from rfdit.reporting.runs import read_runs
from rfdit.reporting.sheets import read_sheets, same_noise
from rfdit.reporting.table import make_columns, varying, write_csv
from rfdit.storage.atomic import write_bytes, write_text
from rfdit.storage.folders import make_folder


def write_report(root: Path, out: Path, metric: str | None) -> Path:
    """Writes report.html, report.csv, report_protocols.json and a PNG of each plot; returns the page."""
    runs, unread_runs = read_runs(root)
    footnotes = find_footnotes(runs)
    metrics = find_metrics(footnotes)
    chosen = pick_metric(metric, runs, metrics)
    plots = make_plots(runs, chosen)
    columns = make_columns(runs, [*map(Metric, LOSSES), *metrics])
    shown, alike = varying(columns, runs)
    step, sheets, unread_sheets = read_sheets(runs)
    for reason in [*unread_runs, *unread_sheets]:
        print(f"skipped: {reason}", flush=True)

    make_folder(out, setting="out")
    write_text(out / "report.csv", write_csv(columns, runs))
    protocols = {n.letter: {"evaluation": n.evaluations, "protocol": n.protocol.as_dict()} for n in footnotes}
    write_text(out / "report_protocols.json", json.dumps(protocols, indent=1) + "\n")
    for plot in plots:
        write_bytes(out / f"report_{plot.name}.png", plot.bytes("png"))
    page = render_page(
        title=f"Runs in {root.name or root.resolve().name}",
        runs=runs,
        unread_runs=unread_runs,
        states=Counter(run.state.name for run in runs),
        commits=sorted({str(run.git["commit"])[:12] for run in runs if run.git}),
        columns=shown,
        alike=alike,
        bests={column.title: column.best(runs) for column in shown},
        metric=chosen,
        best=best_run(runs, chosen),
        footnotes=footnotes,
        plots=plots,
        sheets=sheets,
        unread_sheets=unread_sheets,
        sheet_step=step,
        same_noise=same_noise(runs),
    )
    file = out / "report.html"
    write_text(file, page)
    return file


@command("report")
def _main(cfg: DictConfig) -> None:
    config = validate(cfg)
    root = Path(config["runs"]).expanduser()
    file = write_report(root, Path(config["out"]).expanduser() if config["out"] else root, config["metric"])
    print(f"report of {root} is in {file}", flush=True)


def main() -> None:
    """The entry of `rfdit report`; a first argument that is a folder means runs=FOLDER."""
    first = sys.argv[1] if len(sys.argv) > 1 else "-"
    if not first.startswith("-") and ("=" not in first or Path(first).is_dir()):
        sys.argv[1] = setting("runs", first)
    _main()
