"""metrics.csv keeps every row, and new columns may come late."""

import csv
from pathlib import Path

import pytest

from rfdit.run.folder import read_metrics
from rfdit.run.row_sums import sums_file
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


def test_a_full_disk_is_told_with_the_files_name(tmp_path: Path) -> None:
    logger = MetricsCSV(folder=str(tmp_path))
    for step in (1, 2):
        logger.log_metrics({"a": float(step)}, step=step)
        if step == 2:
            (tmp_path / "metrics.csv").unlink()
            (tmp_path / "metrics.csv").symlink_to("/dev/full")
            with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.csv'"):
                logger.save()
        else:
            logger.save()


@pytest.mark.parametrize(
    ("line", "cut"), [("2,x", False), ("2", False), ("x,2", False), ("2,1,1", False), ("3", True)]
)
def test_a_row_that_is_not_of_numbers_is_named_unless_a_kill_has_cut_it(
    tmp_path: Path, line: str, cut: bool
) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text(f"step,a\n1,1.0\n{line}\n" + ("" if cut else "3,3.0\n"))
    if cut:
        assert read_metrics(file) == [{"step": "1", "a": "1.0"}]
    else:
        with pytest.raises(ValueError, match=r"metrics\.csv is damaged: line 3 is not a row of numbers"):
            read_metrics(file)


def logged(folder: Path, *steps: int) -> MetricsCSV:
    logger = MetricsCSV(folder=str(folder))
    for step in steps:
        logger.log_metrics({"a": float(step)}, step=step)
        logger.save()
    return logger


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("2,2.0", "2,3.0"),
        ("step,a\r\n1,1.0\r\n2,2.0\r\n3,3.0\r\n4,4.0\r\n", ""),
        ("4,4.0\r\n", "\0\0\0"),
        ("2,2.0\r\n", ""),
        ("2,2.0\r\n", "2,2.0\r\n2,2.0\r\n"),
        ("step,a", "step,b"),
        ("4,4.0", "4,4.5"),
    ],
)
def test_a_row_that_has_changed_is_told(tmp_path: Path, old: str, new: str) -> None:
    logged(tmp_path, 1, 2, 3, 4)
    file = tmp_path / "metrics.csv"
    file.write_bytes(file.read_bytes().replace(old.encode(), new.encode()))
    with pytest.raises(ValueError, match=r"metrics\.csv is damaged: line \d is not what was written"):
        read_metrics(file)


def test_a_kill_at_any_moment_of_a_write_leaves_rows_that_can_be_read(tmp_path: Path) -> None:
    logger = logged(tmp_path, 1, 2)
    file = tmp_path / "metrics.csv"
    before, sums = file.read_bytes(), sums_file(tmp_path / "metrics.csv").read_bytes()
    logger.log_metrics({"a": 3.0}, step=3)
    logger.save()
    appended = file.read_bytes()
    for end in range(len(before), len(appended)):  # the sums are written first, so that they are there
        file.write_bytes(appended[:end])
        assert [row["step"] for row in read_metrics(file)] == ["1", "2"]
    logger.log_metrics({"late": 4.0}, step=2)
    file.write_bytes(appended)
    logger.save()  # writes the rows anew
    added = sums_file(file).read_bytes()
    sums_file(file).write_bytes(sums + added)  # what was added before the rows, and not yet tidied
    assert [row["late"] for row in read_metrics(file)] == ["", "4.0", ""]
