"""Ranks: recognising the launcher that started this one, and starting the others."""

import os
import sys

import pytest

from rfdit.processes.launch import (
    RANK_VARIABLES,
    LocalRanks,
    RankFailedError,
    check_ranks,
    is_launched,
)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*RANK_VARIABLES, "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("variables", "launched"),
    [
        ({}, False),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "3", "WORLD_SIZE": "4"}, True),
        ({"SLURM_NTASKS": "4"}, True),
        ({"SLURM_NTASKS": "1"}, False),  # one task that has a whole machine
        ({"SLURM_NTASKS": "8", "SLURM_JOB_NAME": "bash"}, False),  # a shell within an allocation
    ],
)
def test_who_starts_ranks(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], launched: bool) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_launched() == launched
    assert LocalRanks(command=[], count=4).count == (1 if launched else 4)


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
    """submitit's local executor starts as many processes as requested, which do not know of each other."""
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


def test_its_own_worker_s_death_stays() -> None:
    with pytest.raises(RuntimeError, match="is killed by signal"):
        fail("raise SystemExit(3)", RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))


def test_its_own_error_stays() -> None:
    with pytest.raises(ValueError, match="mine"):
        fail("import time; time.sleep(600)", ValueError("mine"))


def run_beside(other: str, error: Exception | None) -> None:
    """Rank 0 ends, with an error or without, when another rank that runs a program has ended."""
    with LocalRanks(command=[sys.executable, "-c", other], count=2) as ranks:
        ranks.start()
        ranks._ranks[0].wait()
        if error is not None:
            raise error


@pytest.mark.parametrize("error", [RuntimeError("closed"), OSError("the disk"), ValueError("bad"), None])
def test_a_killed_rank_is_named_whatever_its_end_led_to(error: Exception | None) -> None:
    with pytest.raises(RankFailedError, match="rank 1 was killed by SIGKILL"):
        run_beside("import os; os.kill(os.getpid(), 9)", error)


def test_a_rank_that_fails_beside_one_that_succeeds_is_named() -> None:
    with pytest.raises(RankFailedError, match="rank 1 failed; its error is printed above"):
        run_beside("raise SystemExit(3)", None)
