"""The model card that goes with exported weights."""

from typing import Any

from rfdit.checkpoint.saved_run import SavedRun

SETTINGS = ["width", "depth", "num_heads", "patch_size", "input_size", "qk_norm", "positions"]
TRAINED = "Trained with rectified flow."


def model_card(saved: SavedRun, weights: str, *, library: str, usage: str, origin: str = TRAINED) -> str:
    """Markdown with the hub's header: what the model is and how to use it.

    library: the hub's name of the library that loads it. usage: Python that generates an image.
    origin: a sentence.
    """
    parameters = sum(tensor.numel() for tensor in saved.weights(weights).values())
    rows = {
        "network": _name(saved.config["model"]),
        **{key: saved.config["model"][key] for key in SETTINGS if key in saved.config["model"]},
        "predicts": _name(saved.config["prediction"]).removesuffix("Prediction").lower(),
        "conditioned on": _condition(saved),
        "parameters": f"{parameters:,}",
        "weights": f"{weights}, at step {saved.step}",
        "latents": ", ".join(f"{key} {value}" for key, value in saved.latents.items()),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"""---
library_name: {library}
tags: [{"class-conditional" if saved.knows_labels else "text-to-image"}, rectified-flow, diffusion-transformer, rfdit]
---

# {_name(saved.config["model"])}

{origin} Written by rfdit, for which t = 0 is data, t = 1 is noise, z_t = (1 - t) data + t noise, and the
velocity v = noise - data.

| | |
| --- | --- |
{table}

```python
{usage}
```

Before this is published, its owner has to add: the licence, the training data, what it is for, and where it fails.
"""


def _name(node: dict[str, Any]) -> str:
    return str(node["_target_"]).rpartition(".")[2]


def _condition(saved: SavedRun) -> str:
    if saved.knows_labels:
        return f"{saved.num_classes} class labels"
    return f"captions ({_name(saved.config['text_encoder'])})"
