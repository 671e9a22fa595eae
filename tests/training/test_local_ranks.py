"""Who has placed this process, and who starts the others."""

import os
import sys

import pytest

from rfdit.training.local_ranks import (
    PLACE,
    LocalRanks,
    RankFailedError,
    check_ranks,
    is_placed,
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PLACE, "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "placed"),
    [
        ({}, False),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "3", "WORLD_SIZE": "4"}, True),
        ({"SLURM_NTASKS": "4"}, True),
        ({"SLURM_NTASKS": "1"}, False),  # one task that has a whole machine
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"}, False),  # a shell within an allocation
    ],
)
def test_who_places_ranks(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], placed: bool) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_placed() == placed
    assert LocalRanks(command=[], count=4).count == (1 if placed else 4)


@pytest.mark.parametrize("variables", [{"LOCAL_RANK": "0", "WORLD_SIZE": "2"}, {"SLURM_NTASKS": "2"}])
@pytest.mark.parametrize("devices", [1, 4])
def test_another_number_of_ranks_was_started(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], devices: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match=rf"trainer\.devices={devices} .* number of ranks that were started, 2"
    ):
        check_ranks(devices, 1)


def test_tasks_that_could_not_meet_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit's local executor starts as many processes as it is told, and tells them nothing of each other."""
    monkeypatch.setenv("SUBMITIT_LOCAL_NTASKS", "2")
    with pytest.raises(
        ValueError, match=r"hydra\.launcher\.tasks_per_node=2 of submitit_local .* leave it at 1"
    ):
        check_ranks(2, 1)
    monkeypatch.setenv("SUBMITIT_LOCAL_NTASKS", "1")
    check_ranks(2, 1)


def test_what_a_run_leaves_in_the_environment_is_gone_for_the_next() -> None:
    before = dict(os.environ)
    with LocalRanks(command=[], count=1):
        os.environ["LOCAL_RANK"] = "0"  # as Lightning's own launcher does
    assert dict(os.environ) == before


def test_several_machines_need_a_launcher() -> None:
    with pytest.raises(ValueError, match=r"trainer\.num_nodes=2 needs torchrun or a scheduler"):
        check_ranks(8, 2)


def test_each_rank_is_told_its_place_and_the_environment_is_put_back(
    capfd: pytest.CaptureFixture[str],
) -> None:
    before = dict(os.environ)
    program = (
        "import os; print(*(os.environ[n] for n in ('LOCAL_RANK', 'WORLD_SIZE', 'MASTER_PORT')), flush=True)"
    )
    with LocalRanks(command=[sys.executable, "-c", program], count=3) as ranks:
        ranks.start()
        port = os.environ["MASTER_PORT"]
        assert os.environ["LOCAL_RANK"] == "0"
    assert sorted(capfd.readouterr().out.splitlines()) == [f"1 3 {port}", f"2 3 {port}"]
    assert dict(os.environ) == before


def fail(other: str, error: Exception) -> None:
    """Rank 0 fails beside another rank that runs a program."""
    with LocalRanks(command=[sys.executable, "-c", other], count=2) as ranks:
        ranks.start()
        raise error


def test_an_error_of_being_alone_is_told_as_the_other_ranks_failure() -> None:
    with pytest.raises(RankFailedError, match="rank 1 failed"):
        fail("raise SystemExit(3)", RuntimeError("Connection closed by peer"))


def test_its_own_error_stays() -> None:
    with pytest.raises(ValueError, match="mine"):
        fail("import time; time.sleep(600)", ValueError("mine"))
