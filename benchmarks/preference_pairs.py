"""Pairs of images of shapes for objective=dpo: `python benchmarks/preference_pairs.py RUN OUT`.

A trained model samples several images of each of many prompts. They are drawn as training's are, so none of them is
among those that `eval=prompt_accuracy` measures. KEY.win.png is the image of a prompt that agrees best with it, and
KEY.lose.png the one that agrees worst, by the nearest scene of each (`rfdit.eval.metrics.prompt_accuracy`). A prompt
whose images all agree as well has no pair.
"""

import argparse
import io
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from rfdit.data.shapes.scenes import draw
from rfdit.data.tar.write import write_tar
from rfdit.eval.metrics.prompt_accuracy import judge
from rfdit.image_grid import to_pil
from rfdit.loading import load
from rfdit.sampler import Pipeline


def drawn_prompts(count: int, *, seed: int) -> list[str]:
    """Captions of scenes as training draws them."""
    return [draw(random.Random(f"{seed}/preferences/{i}"))[0].caption for i in range(count)]


def agreement(images: UInt8[Tensor, "n 3 H W"], prompt: str) -> Float[Tensor, "n"]:
    """The share of what a prompt says that is right in each image."""
    tested, correct = judge(images, [prompt] * len(images))
    return correct.sum(1) / tested.sum(1)


def pairs(
    pipeline: Pipeline, prompts: list[str], *, images: int, seed: int, found: list[Float[Tensor, "n"]]
) -> Iterator[dict[str, str | bytes]]:
    """The samples of the prompts that have a best and a worst image.

    images: of each prompt. found: gets the agreement of the images of every prompt.
    """
    for number, prompt in enumerate(prompts):
        made = pipeline([prompt] * images, seed=seed, first_key=number * images)
        found.append(agreement(made, prompt))
        best, worst = int(found[-1].argmax()), int(found[-1].argmin())
        if found[-1][best] > found[-1][worst]:
            yield {
                "__key__": f"{number:06d}",
                "win.png": encoded(made[best]),
                "lose.png": encoded(made[worst]),
                "txt": prompt.encode(),
            }


def encoded(image: UInt8[Tensor, "3 H W"]) -> bytes:
    png = io.BytesIO()
    to_pil(image).save(png, format="PNG")
    return png.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", help="what `rfdit.load` takes")
    parser.add_argument("out", type=Path, help="folder of the shard")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--images", type=int, default=8, help="images of each prompt")
    parser.add_argument("--steps", type=int, help="of the run's sampler; its own number by default")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    pipeline = load(args.run).pipeline
    if args.steps is not None:
        pipeline.sampler.steps = args.steps
    prompts, found = drawn_prompts(args.prompts, seed=args.seed), []
    args.out.mkdir(parents=True, exist_ok=True)
    samples = pairs(pipeline, prompts, images=args.images, seed=args.seed, found=found)
    count = write_tar(args.out / "00000.tar", samples)
    right = (torch.cat(found) == 1).float().mean()
    print(f"{count} pairs of {len(prompts)} prompts; {right:.3f} of all images are right in everything")


if __name__ == "__main__":
    main()
