"""The report agrees with the run folders, for any number of runs, and names broken ones."""

import csv
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import rfdit.commands.report
from rfdit.commands.report import write_report
from rfdit.cost.plan import make_plan
from rfdit.reporting.metrics import find_footnotes, find_metrics, pick_metric
from rfdit.reporting.plots import steps_plot
from rfdit.reporting.runs import read_run
from rfdit.run.state import mark_failed
from tests.support.commands.composing import composed
from tests.support.training.runs import MakeRun, evaluation


def report(make_run: MakeRun, tmp_path: Path, metric: str | None = None) -> tuple[str, list[dict[str, str]]]:
    """The page's HTML and the table's rows."""
    page = write_report(tmp_path / "runs", tmp_path / "out", metric)
    with (tmp_path / "out/report.csv").open(newline="") as file:
        return page.read_text(), list(csv.DictReader(file))


def test_numbers_are_those_of_the_folder(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", "patch=p4", losses=[1 / step for step in range(1, 41)])
    make_run("b", "patch=p8")
    page, rows = report(make_run, tmp_path)
    plan = make_plan(
        composed(
            "plan",
            "model.width=24",
            "model.num_heads=2",
            "patch=p4",
            "trainer.accelerator=cpu",
            "peak_tflops=1",
        ),
        "",
    )
    first = rows[0]
    assert (first["run"], first["state"], first["patch"], rows[1]["patch"]) == ("a", "finished", "p4", "p8")
    assert "model.width" not in first  # all have the same
    assert int(first["parameters"]) == plan.parameters
    assert float(first["forward pass"]) == pytest.approx(plan.macs / 1e9)
    assert float(first["compute"]) == pytest.approx(3 * plan.macs * 8 * 40)
    assert float(first["train/loss"]) == pytest.approx(sum(1 / s for s in (37, 38, 39, 40)) / 4)
    assert float(first["val/loss"]) == pytest.approx(1 / 36 / 2)
    assert float(first["speed"]) == 100
    assert int(first["steps"]) == 40
    assert "python train.py model.width=24 model.num_heads=2" in page
    assert "run_dir=" not in page
    for name in ("train_loss", "val_loss", "compute", "gmacs"):
        assert Image.open(tmp_path / f"out/report_{name}.png").size[0] > 600


def heads(page: str) -> dict[str, str]:
    """The titles of the page's columns, and their units."""
    found = re.findall(r'<th.*><button type="button">(.*)</button>\n<small>(.*)</small>', page)
    return dict(found)


def test_a_run_with_the_default_shows_its_value(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("default")
    make_run("typed", "patch=p8", "optimizer=adamw", "seed=0", "schedule.warmup_steps=50")
    make_run("experiment", "experiment=demo")
    _, rows = report(make_run, tmp_path)
    names = ("patch", "optimizer", "schedule.warmup_steps", "experiment")
    assert {row["run"]: tuple(row[name] for name in names) for row in rows} == {
        "default": ("p4", "adamw", "100", ""),
        "typed": ("p8", "adamw", "50", ""),
        "experiment": ("p4", "muon", "30", "demo"),
    }
    assert "seed" not in rows[0]  # it was typed, as the default


def test_every_number_has_a_unit_and_what_is_alike_has_no_column(make_run: MakeRun, tmp_path: Path) -> None:
    for name, fid in (("a", 9.0), ("b", 8.0)):
        make_run(name, f"optimizer.lr={fid}e-4", evaluations=[evaluation(10, fid)], losses=[fid] * 10)
    page, _ = report(make_run, tmp_path)
    assert heads(page) == {
        "run": "", "optimizer.lr": "setting", "train/loss": "MSE \N{DOWNWARDS ARROW}",
        "val/loss": "MSE \N{DOWNWARDS ARROW}", "fid (a)": "distance \N{DOWNWARDS ARROW}",
    }  # fmt: skip
    alike = page[page.index("The same in all runs:") :].partition("</p>")[0]
    for words in ("state finished;", "speed 100 images/s;", "steps 10;", "GMACs/image;"):
        assert words in alike
    assert "M MACs." in alike or "G MACs." in alike


def test_the_best_run_is_marked(make_run: MakeRun, tmp_path: Path) -> None:
    for name, fid, accuracy in (("a", 9.0, 0.5), ("b", 8.0, 0.25)):
        values = {"values": {"fid": fid, "scene": accuracy, "unknown": fid}}
        make_run(name, evaluations=[evaluation(10, fid) | values])
    page, _ = report(make_run, tmp_path)
    assert "The best run by fid (a) is <strong>b</strong>: 8." in page
    assert re.findall(r'best" data-value="([\d.]+)"', page) == ["0.5", "8.0"]
    assert page.count('<span class="mark" title="best fid (a)">') == 1


def test_settings_of_the_watch_stand_behind_the_numbers(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", "patch=p4", "data.num_workers=1")
    make_run("b", "patch=p8", "data.num_workers=2")
    _, rows = report(make_run, tmp_path)
    titles = list(rows[0])
    assert titles.index("patch") < titles.index("parameters") < titles.index("data.num_workers")
    assert (rows[0]["data.num_workers"], rows[1]["data.num_workers"]) == ("1", "2")


def test_the_page_needs_nothing_beside_it(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a")
    page, _ = report(make_run, tmp_path)
    assert set(re.findall(r'(?:src|href)="(\w+:\w+)', page)) == {"data:image"}
    assert not re.search(r"<link|@import|<script src|url\(", page)
    assert len(page) < 1_000_000


def test_what_runs_say_is_text_and_not_html(make_run: MakeRun, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    folder = make_run("<b>bold", evaluations=[evaluation(10, 1.0, weights={"name": evil})])
    (folder / "overrides.txt").write_text(f"data.caption={evil}\n")
    mark_failed(folder, evil, ValueError(evil))
    page, _ = report(make_run, tmp_path)
    assert evil not in page
    assert "<b>bold" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3


def test_protocols_stand_apart_and_say_how(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", evaluations=[evaluation(5, 30.0), evaluation(10, 20.0)])
    other = evaluation(10, 10.0, steps=50) | {"name": "fid50k"}  # the name does not hide what differs
    make_run("b", evaluations=[other])
    page, rows = report(make_run, tmp_path)
    assert (rows[0]["fid (a)"], rows[0]["fid (b)"]) == ("20.0", "")
    assert (rows[1]["fid (a)"], rows[1]["fid (b)"]) == ("", "10.0")
    assert "with numbers of (a):</p>\n<ul><li>steps=50 (there 25)</li></ul>" in page
    assert "sampler.solver.name=Euler" in page
    written = json.loads((tmp_path / "out/report_protocols.json").read_text())
    assert written["b"]["protocol"]["steps"] == 50


def test_protocols_that_share_no_metric_are_not_compared(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a", evaluations=[evaluation(10, 1.0), evaluation(10, 0.5, steps=9) | {"values": {"colour": 1}}])
    page, rows = report(make_run, tmp_path)
    assert (rows[0]["fid (a)"], rows[0]["colour (b)"]) == ("1.0", "1.0")
    assert "Compare with care" not in page


def test_a_reference_of_another_name_is_the_same(make_run: MakeRun, tmp_path: Path) -> None:
    reference = {"name": "one.npz", "sha256": "ab" * 32, "images": 100}
    make_run("a", evaluations=[evaluation(10, 1.0, reference=reference)])
    make_run("b", evaluations=[evaluation(10, 2.0, reference=reference | {"name": "two.npz"})])
    _, rows = report(make_run, tmp_path)
    assert [row["fid (a)"] for row in rows] == ["1.0", "2.0"]


def test_missing_numbers_and_torn_lines_are_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("a", evaluations=[evaluation(10, 1.0)])
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write('{"name": "qui\n')  # by a kill, before the run went on
        file.write(json.dumps(evaluation(11, float("nan")) | {"name": "quick", "seconds": 1.0}) + "\n")
    _, rows = report(make_run, tmp_path)
    assert rows[0]["fid (a)"] == "1.0"


def test_a_dollar_in_a_name_does_not_start_a_formula(make_run: MakeRun, tmp_path: Path) -> None:
    make_run(r"a=$\x$", evaluations=[evaluation(10, 1.0) | {"values": {r"$\y$": 2.0}}])
    page, _ = report(make_run, tmp_path)
    assert r"$\y$ (a)" in page


def test_what_is_plotted(make_run: MakeRun) -> None:
    folders = [make_run("a", evaluations=[evaluation(10, 20.0)]), make_run("b")]
    root = folders[0].parent
    runs = [read_run(folder, root) for folder in folders]
    metrics = find_metrics(find_footnotes(runs))
    for name, title in ((None, "fid (a)"), ("fid", "fid (a)"), ("val/loss", "val/loss")):
        found = pick_metric(name, runs, metrics)
        assert found is not None
        assert found.title == title
    assert pick_metric(None, runs[1:], []).title == "val/loss"  # type: ignore[union-attr]
    with pytest.raises(
        ValueError, match=r"metric=kid is not in these runs; there is fid, val/loss, train/loss"
    ):
        pick_metric("kid", runs, metrics)


def test_evaluations_are_plotted_over_training(make_run: MakeRun, tmp_path: Path) -> None:
    often = make_run("often", evaluations=[evaluation(5, 20.0), evaluation(10, 12.5)])
    make_run("once", evaluations=[evaluation(10, 11.0)])
    runs = [read_run(often, often.parent), read_run(often.parent / "once", often.parent)]
    metric = find_metrics(find_footnotes(runs))[0]
    plot = steps_plot(runs, metric)
    assert plot is not None
    (line,) = plot.figure.axes[0].lines
    assert np.asarray(line.get_xydata()).tolist() == [[5, 20.0], [10, 12.5]]
    assert line.get_label() == "often"
    assert steps_plot(runs[1:], metric) is None
    assert "FID (a) over training" in report(make_run, tmp_path)[0]
    assert Image.open(tmp_path / "out/report_steps.png").size[0] > 600


def test_a_power_law_takes_three_runs(make_run: MakeRun, tmp_path: Path) -> None:
    for place, patch in enumerate(("p2", "p4", "p8")):
        page, _ = report(make_run, tmp_path) if place == 2 else ("", [])
        assert place < 2 or "No power law: it takes three points" in page
        make_run(patch, f"patch={patch}", evaluations=[evaluation(10, 10.0 * 2**place)])
    page, _ = report(make_run, tmp_path)
    assert "6 points" not in page
    assert page.count(", 3 points, where") == 2


def test_a_run_that_was_stopped_early_does_not_move_the_others(make_run: MakeRun, tmp_path: Path) -> None:
    for place, patch in enumerate(("p2", "p4", "p8")):
        numbers = [evaluation(5, 90.0), evaluation(10, 10.0 * 2**place)]
        make_run(patch, f"patch={patch}", evaluations=numbers)
    make_run("stopped", "patch=p8", evaluations=[evaluation(5, 1000.0)], finished=False)
    page, _ = report(make_run, tmp_path)
    assert "against the network&#39;s cost, at step 10." in page
    assert "Left out: 1 unfinished run." in page
    assert page.count(", 3 points, where") == 2


def test_whether_samples_are_of_the_same_noise(make_run: MakeRun, tmp_path: Path) -> None:
    make_run("a")
    make_run("b", "callbacks.grid.inputs=[x]")
    assert "Samples from the same noise, at step 10" in report(make_run, tmp_path)[0]
    make_run("c", "callbacks.grid.seed=1")
    assert "Samples from different noise, at step 10" in report(make_run, tmp_path)[0]


def test_states_and_folders_that_cannot_be_read(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("good")
    make_run("killed", finished=False, grid=None)
    with (tmp_path / "runs/killed/metrics.csv").open("a") as file:
        file.write("10,0.0")  # the last line is cut
    mark_failed(tmp_path / "runs/early", "model.num_heads=5 does not divide", ValueError("x"))
    (make_run("broken") / "config.yaml").write_text("model: [")
    (make_run("torn") / "metrics.csv").write_text("step,train/loss\nx,y\n1,2\n")
    (make_run("text") / "finished.json").write_text("{")
    (make_run("image") / "samples/step_00000010.png").write_text("not an image")
    (tmp_path / "runs/.submitit").mkdir()
    (tmp_path / "runs/.submitit/config.yaml").write_text("")
    page, rows = report(make_run, tmp_path)
    assert {row["run"]: row["state"] for row in rows} == {
        "early": "failed", "good": "finished", "killed": "unfinished", "image": "finished",
    }  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 4
    assert all(line.startswith("skipped: ") for line in printed)
    assert "model.num_heads=5 does not divide" in page
    assert "logged up to step 10 of 1400" in page


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
DEEP = '{"a":' * 200_000 + "1" + "}" * 200_000


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.yaml", LAUGHS),
        ("config.yaml", "[" * 500),
        ("config.yaml", "a: " + "x" * (1 << 21)),
        ("config.yaml", "model: !!python/object/apply:os.system [touch ran]"),
        ("config.yaml", "model: !!timestamp 2001-01-01"),
        ("config.yaml", "[1, 2]"),
        ("config.yaml", "trainer: [1]"),
        ("config.yaml", "data: {batch_size: many}"),
        ("finished.json", DEEP),
        ("finished.json", "[1]"),
        ("finished.json", '{"step": "x", "metrics": {}}'),
        ("finished.json", '{"step": 1, "metrics": [1]}'),
        ("overrides.txt", b"\xff"),
        ("environment.jsonl", b"\xff"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_whatever_is_in_a_run_folder_the_others_are_reported(
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    file: str,
    text: str | bytes,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run("good")
    (make_run("bad") / file).write_bytes(text.encode() if isinstance(text, str) else text)
    _, rows = report(make_run, tmp_path)
    assert [row["run"] for row in rows] == ["good"]
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"skipped: {tmp_path}/runs/bad")
    assert not Path("ran").exists()


def test_a_damaged_row_of_evaluations_costs_itself_alone(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("a", evaluations=[evaluation(10, 1.0)])
    with (folder / "evaluations.jsonl").open("a") as file:
        file.write('{"step": "x", "name": "a", "values": {}, "protocol": {}}\n')
    with pytest.warns(UserWarning, match=r"runs/a/evaluations\.jsonl: line 2 is left out: its step is 'x'"):
        _, rows = report(make_run, tmp_path)
    assert rows[0]["fid (a)"] == "1.0"


def test_the_cost_of_a_run_without_end_is_not_counted(make_run: MakeRun, tmp_path: Path) -> None:
    for setting, value in (("depth", 10**9), ("num_heads", 0), ("patch_size", 0)):
        folder = make_run(f"{setting}{value}")
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["model"][setting] = value
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    _, rows = report(make_run, tmp_path)
    assert [row["parameters"] for row in rows] == [""] * 3


def test_a_strangers_run_builds_nothing(make_run: MakeRun, tmp_path: Path) -> None:
    folder = make_run("stranger")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"] = {"_target_": "pathlib.Path.touch", "self": str(tmp_path / "touched")}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    _, rows = report(make_run, tmp_path)
    assert rows[0]["parameters"] == rows[0]["forward pass"] == ""
    assert not (tmp_path / "touched").exists()


def test_a_run_with_settings_that_its_network_does_not_take_has_no_cost(
    make_run: MakeRun, tmp_path: Path
) -> None:
    folder = make_run("edited")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["model"]["rope"] = True
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    _, rows = report(make_run, tmp_path)
    assert [(row["run"], row["parameters"]) for row in rows] == [("edited", "")]


@pytest.mark.slow
def test_the_command_line(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("sweep/patch=p4,size=s")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["report", *arguments])
        rfdit.commands.report.main()

    call("runs")
    assert (tmp_path / "runs/report.html").exists()
    call("runs/sweep/patch=p4,size=s", "out=one", "metric=train/loss")
    assert "report of runs/sweep/patch=p4,size=s is in one/report.html" in capsys.readouterr().out
    call("runs=runs", "out=two")
    assert (tmp_path / "two/report.csv").exists()
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["nowhere"], "runs=nowhere is not a folder"),
        (["empty"], "runs=empty holds no run"),
        ([], "runs is not set"),
        (["runs", "metric=clip"], "metric=clip is not in these runs"),
    ):
        with pytest.raises(SystemExit, match=message):
            call(*arguments)
