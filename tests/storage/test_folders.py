"""Output folders that cannot be used are told by their setting, before there is anything to lose."""

from pathlib import Path

import pytest

from rfdit.storage.folders import make_folder
from tests.support.commands.command_line import CommandLine


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    make_folder(tmp_path / "a/b", setting="out")
    assert not list((tmp_path / "a/b").iterdir())


@pytest.mark.parametrize("below", ["", "/sweep"])
def test_a_file_is_not_a_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    path = Path(f"{tmp_path}/file{below}")
    with pytest.raises(ValueError, match=rf"^out={path} is a file, or below one; give a folder$"):
        make_folder(path, setting="out")


def test_a_place_that_takes_no_folders() -> None:
    with pytest.raises(ValueError, match=r"^out=/proc/x cannot be written to \(.+\); give another folder$"):
        make_folder(Path("/proc/x"), setting="out")


@pytest.mark.parametrize("sweep", [[], ["seed=0,1", "-m"]])
def test_a_run_in_a_file(cli: CommandLine, tmp_path: Path, sweep: list[str]) -> None:
    (tmp_path / "file").touch()
    message = cli.error("train", f"run_dir={tmp_path}/file/run", *sweep)
    assert message.startswith(f"run_dir={tmp_path}/file/run is a file, or below one")
