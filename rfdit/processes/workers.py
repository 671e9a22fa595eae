"""The death of a DataLoader worker, which PyTorch reports in an error from wherever its parent just is."""

import re
import traceback

DEATH = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([\w -]+)|exited)")
RECEIVING = "_try_get_data"  # PyTorch's function in which the parent waits for its workers


def worker_death(error: BaseException | None) -> str | None:
    """A clause that says which worker has died, and from which signal if PyTorch says so; None for any other error."""
    if isinstance(error, ConnectionError | EOFError) and _while_receiving(error):
        return "a DataLoader worker ended unexpectedly"  # just now: PyTorch has not noticed yet
    if not isinstance(error, RuntimeError):
        return None
    # The signal may be told in this error, or in the one that led to it.
    found = [death for each in (error, error.__cause__) if (death := DEATH.search(str(each)))]
    if not found:
        return None
    death = next((each for each in found if each[2]), found[0])
    how = f"was killed by a signal ({death[2].strip()})" if death[2] else "ended unexpectedly"
    return f"a DataLoader worker (process {death[1]}) {how}"


def _while_receiving(error: BaseException) -> bool:
    return any(frame.f_code.co_name == RECEIVING for frame, _ in traceback.walk_tb(error.__traceback__))
