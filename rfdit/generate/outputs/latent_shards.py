"""`output=latents`: pairs of noise and the latent that it becomes, which `data=latents coupling=recorded` reads."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from webdataset import TarWriter

from rfdit.counted import counted
from rfdit.data.latents.decoder import EXTENSION, check_dtype, pack
from rfdit.data.latents.manifest import MANIFEST, LatentManifest
from rfdit.generate.outputs.output import GeneratedImage, Job, open_resumable, ranges
from rfdit.generate.request import SampleRequest
from rfdit.generate.uses.use import GivesLatents, Use
from rfdit.limits import Count
from rfdit.sampler import Solver, StochasticSolver
from rfdit.storage.atomic import write_bytes
from rfdit.storage.finished import is_finished, write_finished


class LatentShards:
    """00000.tar and so on, and latents.json; a sample is KEY.safetensors, KEY.txt or KEY.cls, and KEY.json.

    KEY.safetensors has the latent, as `rfdit encode` writes it, and the seed and the key of its noise, which is
    a function of them. latents.json has the latent contract, and the model and the sampler that the latents are of.

    pairs_per_shard: a run that is killed loses the shard that it was writing.
    dtype: of the stored latents: fp32, fp16, bf16, or auto.
    """

    def __init__(self, *, pairs_per_shard: Count = 1000, dtype: str = "fp32") -> None:
        check_dtype(dtype, setting="output.dtype")
        self.pairs_per_shard, self.dtype = pairs_per_shard, dtype

    def check_pairs(self, use: Use, request: SampleRequest, solver: Solver | StochasticSolver) -> None:
        """As of `TakesLatents`."""
        if not isinstance(use, GivesLatents):
            raise ValueError(
                "output=latents records what noise becomes, and these images are not made of noise alone; give "
                "use=from_noise, or another output"
            )
        if request.scales is not None:
            raise ValueError(
                f"scales={list(request.scales)} makes several latents of one noise, and output=latents records one; "
                "give guidance.scale=..."
            )
        if isinstance(solver, StochasticSolver):
            raise ValueError(
                f"sampler.solver={type(solver).__name__} draws noise in every step, and output=latents records what "
                "the first noise becomes; use sampler=euler or heun"
            )

    def open(self, job: Job) -> None:
        open_resumable(job, pairs_per_shard=self.pairs_per_shard, dtype=self.dtype)
        write_bytes(job.folder / MANIFEST, self._manifest(job).to_json(), durable=True)

    def pieces(self, job: Job) -> list[Sequence[int]]:
        return ranges(len(job.sheet.specs), self.pairs_per_shard)

    def missing(self, job: Job, numbers: Sequence[int]) -> list[int]:
        return [number for number in numbers if not is_finished(self._shard(job, number))]

    def write(self, job: Job, number: int, images: Iterator[GeneratedImage]) -> None:
        height, width = job.settings["image_size"]

        def fill(file: BinaryIO) -> None:
            with TarWriter(file, encoder=False, mtime=0) as tar:
                for generated in images:
                    tar.write(self._files(generated, (height, width)))

        write_finished(self._shard(job, number), fill)

    def close(self, job: Job) -> str:
        shards = len(self.pieces(job))
        return f"{counted(len(job.sheet.specs), 'pair')} in {counted(shards, 'shard')} in {job.folder}"

    def _files(self, generated: GeneratedImage, size: tuple[int, int]) -> dict[str, str | bytes]:
        """A sample as TarWriter takes it."""
        spec = generated.spec
        files = {
            "txt" if isinstance(spec.input, str) else "cls": str(spec.input).encode(),
            "json": json.dumps(spec.as_dict(), ensure_ascii=False).encode(),
        }
        latents = pack(
            generated.image,
            None,
            dtype=self.dtype,
            files=files,
            original=size,
            size=size,
            noise=(spec.seed, spec.key),
        )
        return {"__key__": f"{generated.index:08d}", EXTENSION: latents, **files}

    def _manifest(self, job: Job) -> LatentManifest:
        about, config = job.settings, job.settings["config"]
        settings = {name: config[name] for name in ("sampler", "weights", "negative", "micro")}
        digests = {name: about[name] for name in ("weights_sha256", "guide_sha256") if name in about}
        return LatentManifest(
            latents=about["latents"],
            resolution=about["image_size"],
            dtype=self.dtype,
            autoencoder=about["autoencoder"],
            text_encoder=None,
            weights=about["autoencoder_weights"],
            arithmetic=about["autoencoder_arithmetic"],
            decoder={},
            filters={},
            shards={f"{number:05d}": about["checkpoint"] for number in range(len(self.pieces(job)))},
            command=job.command,
            recorded=settings | digests | {"arithmetic": about["arithmetic"]},
        )

    def _shard(self, job: Job, number: int) -> Path:
        return job.folder / f"{number:05d}.tar"
