"""The lock of the one process that works in a folder."""

import errno
import fcntl
import os
import socket
from pathlib import Path

import pytest

from rfdit.storage.locks import only_process
from tests.support.commands.processes import lock_holder


def test_another_process_is_named_and_a_killed_one_holds_nothing(tmp_path: Path) -> None:
    with lock_holder(tmp_path / "new/a.lock") as process:
        with (
            pytest.raises(ValueError, match="in use by process") as refused,
            only_process(tmp_path / "new/a.lock", setting="out"),
        ):
            pass
        assert str(refused.value) == (
            f"out={tmp_path}/new is in use by process {process.pid} on {socket.gethostname()}; let it finish, or "
            "give another out"
        )
        process.kill()
        process.wait(timeout=120)
        with only_process(tmp_path / "new/a.lock", setting="out"):
            assert (tmp_path / "new/a.lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with (
        pytest.warns(UserWarning, match="a.lock cannot be locked"),
        only_process(tmp_path / "a.lock", setting="out"),
    ):
        pass
