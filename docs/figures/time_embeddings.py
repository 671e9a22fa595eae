"""python docs/figures/time_embeddings.py: the figures of docs/learn/time_embeddings.md."""

import matplotlib.pyplot as plt
import torch
from style import GREY, save
from torch import Tensor

from rfdit.model.layers.embeddings import sinusoid

T = torch.linspace(0, 1, 2001, dtype=torch.float64)


def likeness() -> None:
    """How far apart two times must be before their embeddings differ, for both scales of time."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 2.7), sharey=True)
    for ax, limit in ((left, 1.0), (right, 0.02)):
        distance = torch.linspace(0, limit, 500)
        for scale in (1, 1000):
            cosines = sinusoid(scale * distance, 256)[:, :128].mean(1)
            ax.plot(distance, cosines, label=f"Emb of {scale} t" if scale > 1 else "Emb of t")
        ax.set(xlabel="|t - t'|", ylim=(0, 1.05))
    left.set(ylabel="cosine", title="over all distances")
    right.set(title="near 0")
    left.legend()
    save(figure, "time_likeness")


def fitted(features: Tensor, target: Tensor, ridge: float = 1e-6) -> Tensor:
    """The ridge regression of a function of t on features of t."""
    gram = features.T @ features / len(features)
    right = features.T @ target / len(features)
    return features @ torch.linalg.solve(gram + ridge * torch.eye(len(gram), dtype=gram.dtype), right)


def resolution() -> None:
    """The factor 1 / sqrt(V(t)) of the exact velocity for data of std 0.02, read off three embeddings."""
    target = 1 / ((1 - T) ** 2 * 0.02**2 + T**2).sqrt()
    one = torch.ones_like(T)
    features = {
        "t itself": torch.stack([one, T], dim=1),
        "Emb of t": torch.cat([one[:, None], sinusoid(T, 256).double()], dim=1),
        "Emb of 1000 t": torch.cat([one[:, None], sinusoid(1000 * T, 256).double()], dim=1),
    }
    figure, ax = plt.subplots(figsize=(5.4, 2.9))
    ax.plot(T, target, color=GREY, lw=3, alpha=0.6, label="1 / sqrt(V(t))")
    for name, values in features.items():
        ax.plot(T, fitted(values, target), label=f"linear in {name}")
    ax.set(xlabel="t", xlim=(0, 0.3), ylim=(-5, 55))
    ax.legend(fontsize=8)
    save(figure, "time_resolution")


if __name__ == "__main__":
    likeness()
    resolution()
