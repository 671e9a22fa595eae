"""What the configuration computes: functions that YAML calls by name."""

import hashlib
from collections.abc import Sequence

LONGEST_NAME = 200  # of a folder, in bytes; file systems end at 255


def latent_size(resolution: int | Sequence[int], downsampling: int) -> int | list[int]:
    """The side, or (height, width), of the latents of images of a resolution; in YAML `${latent_size:...}`."""
    sides = [resolution] if isinstance(resolution, int) else list(resolution)
    if any(side % downsampling for side in sides):
        raise ValueError(
            f"data.resolution={resolution} is no multiple of autoencoder.downsampling={downsampling}"
        )
    sizes = [side // downsampling for side in sides]
    return sizes[0] if isinstance(resolution, int) else sizes


def folder_name(text: str) -> str:
    """The text itself without slashes, or a shorter one that differs where it does; in YAML `${folder_name:...}`."""
    text = text.replace("/", "%2F")
    if len(text.encode()) <= LONGEST_NAME:
        return text
    return f"{text[:100]}...{hashlib.sha256(text.encode()).hexdigest()[:12]}"
