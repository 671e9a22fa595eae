"""A page about runs: read, compare, plot, write. See conf/report.yaml."""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from rfdit.command_line import explain_errors
from rfdit.config import CONFIG_DIR, register, validate
from rfdit.reporting import page
from rfdit.reporting.grids import Sheet, choose_sheets, read_sheet, same_noise
from rfdit.reporting.metrics import find_columns, find_protocols, pick_column
from rfdit.reporting.plots import Plot, compute_plot, gmacs_plot, loss_plot, steps_plot
from rfdit.reporting.runs import Run, find_runs, read_run, swept_settings
from rfdit.reporting.table import as_csv, heads, row


@dataclass
class ReportConfig:
    """`report.yaml`."""

    runs: str
    out: str | None
    metric: str | None


def read_runs(root: Path) -> tuple[list[Run], list[str]]:
    """The runs below a folder, and why others are left out; raises ValueError if there is none."""
    runs, skipped = [], []
    for folder in find_runs(root):
        try:
            runs.append(read_run(folder, root))
        except (ValueError, OSError) as error:
            skipped.append(str(error))
            print(f"skipped: {error}", flush=True)
    if not runs:
        raise ValueError(f"runs={root} holds no run that can be read")
    return runs, skipped


def read_sheets(runs: list[Run]) -> tuple[int | None, list[Sheet], list[str]]:
    """The step and the sheets of samples at it, and why others are left out."""
    step, chosen = choose_sheets(runs)
    found, skipped = [], []
    for run, (at, file) in chosen.items():
        try:
            found.append(read_sheet(run, at, file))
        except ValueError as error:
            skipped.append(str(error))
            print(f"skipped: {error}", flush=True)
    return step, found, skipped


def write_report(root: Path, out: Path, metric: str | None) -> Path:
    """Writes report.html, report.csv, report_protocols.json and a PNG of each plot; returns the page."""
    runs, skipped = read_runs(root)
    protocols = find_protocols(runs)
    columns = find_columns(protocols)
    column = pick_column(metric, runs, columns)
    swept = swept_settings(runs)
    titles = heads(swept, columns)
    rows = [row(run, swept, columns) for run in runs]
    about = [draw(runs, column) for draw in (steps_plot, compute_plot, gmacs_plot) if column]
    plots: list[Plot] = [plot for plot in [loss_plot(runs), *about] if plot is not None]
    step, sheets, unread = read_sheets(runs)

    out.mkdir(parents=True, exist_ok=True)
    (out / "report.csv").write_text(as_csv(titles, rows))
    footnotes = {p.letter: {"evaluation": p.evaluation, "protocol": p.settings.as_dict()} for p in protocols}
    (out / "report_protocols.json").write_text(json.dumps(footnotes, indent=1) + "\n")
    for plot in plots:
        (out / f"report_{plot.name}.png").write_bytes(plot.bytes("png"))
    noise = "the same noise" if same_noise(runs) else "different noise"
    when = f"at step {step:,}" if step is not None else "at each run's last step"
    sections = [
        ("Runs", page.table(titles, rows)),
        ("Protocols of the metrics", page.protocols(protocols) if protocols else ""),
        ("Not finished", page.states(runs, [*skipped, *unread])),
        ("Plots", page.figures(plots) if plots else ""),
        (f"Samples from {noise}, {when}", page.sheets(sheets) if sheets else ""),
        ("Make each run again", page.commands(runs)),
    ]
    file = out / "report.html"
    file.write_text(page.page(f"Runs in {root.name or root.resolve().name}", _lead(runs, skipped), sections))
    return file


def _lead(runs: list[Run], skipped: list[str]) -> str:
    counts = Counter(run.state.name for run in runs)
    parts = [f"{counts[name]} {name}" for name in ("finished", "failed", "unfinished") if counts[name]]
    parts += [f"{len(skipped)} that cannot be read"] if skipped else []
    commits = {str(git.get("commit"))[:12] for r in runs if isinstance(git := r.environment.get("git"), dict)}
    return (
        f"{len(runs) + len(skipped)} runs: {', '.join(parts)}. "
        + (f"Commit {', '.join(sorted(commits))}. " if commits else "")
        + "Click a column's title to sort."
    )


@hydra.main(config_path=str(CONFIG_DIR), config_name="report", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    with explain_errors("report", ValueError, OSError):
        config = validate(cfg)
        root = Path(config["runs"]).expanduser()
        file = write_report(
            root, Path(config["out"]).expanduser() if config["out"] else root, config["metric"]
        )
        print(f"report of {root} is in {file}", flush=True)


def main() -> None:
    """The entry of `python -m rfdit.report`; a first argument that is a folder means runs=FOLDER."""
    register()
    ConfigStore.instance().store(name="report_schema", node=ReportConfig)
    first = sys.argv[1] if len(sys.argv) > 1 else "-"
    if not first.startswith("-") and ("=" not in first or Path(first).is_dir()):
        folder = first.replace("'", r"\'")
        sys.argv[1] = f"runs='{folder}'"  # in quotes: a sweep's folders have = and , in their names
    with explain_errors("report"):
        _main()


if __name__ == "__main__":
    main()
