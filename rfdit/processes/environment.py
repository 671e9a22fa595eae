"""The rank in the environment of a launched process. Imports no torch, so that a program knows it while it starts."""

import os


def rank_of_environment() -> int:
    """The rank that torchrun, SLURM or `LocalRanks` has given to this process; 0 for one that was started alone."""
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)
