"""metrics.csv keeps every row, and new columns may come late."""

import csv
from pathlib import Path

from rfdit.training.metrics_csv import MetricsCSV


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_values_of_one_step_share_a_row(tmp_path: Path) -> None:
    logger = MetricsCSV(folder=str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=1)
    logger.save()
    logger.log_metrics({"b": 2.0, "epoch": 0}, step=1)
    logger.log_metrics({"a": 3.0}, step=2)
    logger.save()
    assert rows(tmp_path) == [{"step": "1", "a": "1.0", "b": "2.0"}, {"step": "2", "a": "3.0", "b": ""}]
    logger.finalize("success")
    assert len(rows(tmp_path)) == 2


def test_what_was_saved_is_in_the_file_and_may_be_completed(tmp_path: Path) -> None:
    logger = MetricsCSV(folder=str(tmp_path))
    for step in (1, 2, 3):
        logger.log_metrics({"a": float(step), "val": 0.125}, step=step)
        logger.save()
        assert [row["step"] for row in rows(tmp_path)] == [str(n) for n in range(1, step + 1)]
    logger.log_metrics({"val": 7.0}, step=3)  # a shorter row than before
    logger.log_metrics({"a": 4.0}, step=4)
    logger.sync()
    assert [(row["a"], row["val"]) for row in rows(tmp_path)] == [
        ("1.0", "0.125"), ("2.0", "0.125"), ("3.0", "7.0"), ("4.0", ""),
    ]  # fmt: skip


def test_the_same_values_again_are_not_written_again(tmp_path: Path) -> None:
    logger = MetricsCSV(folder=str(tmp_path))
    logger.log_metrics({"a": 1.0}, step=1)
    logger.save()
    written = (tmp_path / "metrics.csv").stat()
    logger.log_metrics({"a": 1.0}, step=1)
    logger.sync()
    again = (tmp_path / "metrics.csv").stat()
    assert (again.st_ino, again.st_mtime_ns) == (written.st_ino, written.st_mtime_ns)


def test_nan_is_the_same_value_as_nan(tmp_path: Path) -> None:
    logger = MetricsCSV(folder=str(tmp_path))
    logger.log_metrics({"a": float("nan")}, step=1)
    logger.save()
    written = (tmp_path / "metrics.csv").stat()
    logger.log_metrics({"a": float("nan")}, step=1)
    logger.save()
    assert (tmp_path / "metrics.csv").stat().st_ino == written.st_ino


def test_a_value_of_an_earlier_step_joins_its_row(tmp_path: Path) -> None:
    logger = MetricsCSV(folder=str(tmp_path))
    for step in (1, 2):
        logger.log_metrics({"a": float(step)}, step=step)
        logger.save()
    logger.log_metrics({"late": 5.0}, step=1)
    logger.save()
    assert [list(row.values()) for row in rows(tmp_path)] == [["1", "1.0", "5.0"], ["2", "2.0", ""]]
    logger.log_metrics({"a": 3.0}, step=3)
    logger.save()
    assert [row["a"] for row in rows(tmp_path)] == ["1.0", "2.0", "3.0"]


def test_late_columns_and_a_resume(tmp_path: Path) -> None:
    first = MetricsCSV(folder=str(tmp_path))
    for step in (1, 2, 3):
        first.log_metrics({"a": float(step)}, step=step)
        first.save()
    first.finalize("interrupted")
    second = MetricsCSV(folder=str(tmp_path))
    second.log_metrics({"a": 30.0, "late": 1.0}, step=3)
    second.finalize("success")
    assert [(row["step"], row["a"], row["late"]) for row in rows(tmp_path)] == [
        ("1", "1.0", ""), ("2", "2.0", ""), ("3", "30.0", "1.0"),
    ]  # fmt: skip
