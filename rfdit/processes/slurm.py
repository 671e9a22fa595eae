"""The job of SLURM that this process belongs to, and its return to the queue."""

import os
import subprocess


def slurm_job() -> str | None:
    """The number of the job, with that of its task in a job array; None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    if array and task:
        return f"{array}_{task}"
    return os.environ.get("SLURM_JOB_ID")


def requeue(job: str) -> str | None:
    """Put a job back into the queue, which soon ends this process; returns why that failed, or None."""
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        return f"scontrol: {error.strerror}"
    return None if done.returncode == 0 else (done.stderr.strip() or f"exit code {done.returncode}")
