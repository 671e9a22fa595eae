"""What a folder of many pictures says of them, so that only the same run goes on in it."""

import json
from typing import Any

from rfdit.data.unfinished_files import remove_abandoned, write_locked
from rfdit.sampling.output import Job

RECORD = "request.json"


def agree(job: Job, **more: Any) -> None:
    """Writes the record, or compares it with the one that is there; removes what a killed run left unfinished.

    Raises ValueError, naming the differences, if the folder holds other pictures.
    """
    job.folder.mkdir(parents=True, exist_ok=True)
    place = job.folder / RECORD
    mine = json.loads(json.dumps(job.settings | more))
    if place.exists():
        theirs = json.loads(place.read_text())
        mine_flat, theirs_flat = _flat(mine), _flat(theirs)
        different = [
            f"{name}={theirs_flat.get(name)} (now {mine_flat.get(name)})"
            for name in sorted(mine_flat.keys() | theirs_flat.keys())
            if mine_flat.get(name) != theirs_flat.get(name)
        ]
        if different:
            raise ValueError(
                f"out={job.folder} holds pictures that were made otherwise: {', '.join(different)}; set what they "
                "have, or give another out"
            )
    else:
        text = json.dumps(mine, indent=2) + "\n"
        write_locked(place, lambda file: file.write(text.encode()))
    remove_abandoned(job.folder)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one, with dotted names."""
    if not isinstance(node, dict):
        return {prefix.rstrip("."): node}
    return {k: v for name, child in node.items() for k, v in _flat(child, f"{prefix}{name}.").items()}
