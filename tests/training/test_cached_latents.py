"""A batch from the cache trains as the batch of its images does, to the last bit."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset

from rfdit.autoencoder.contract import Autoencoder
from rfdit.batch import Batch
from rfdit.commands.encode import encode
from rfdit.conditioning import LabelConditioner, TextConditioner
from rfdit.config.build import build
from rfdit.data.decode import SampleDecoder
from rfdit.data.latents.decoder import LatentDecoder
from rfdit.data.sample import Decoder, collate
from rfdit.model import DiT, MMDiT
from rfdit.network import Network
from rfdit.objective import VelocityMatching
from rfdit.objective.coupling import IndependentCoupling
from rfdit.objective.times import UniformTime
from rfdit.protocols import FlowLoss
from rfdit.training.module import FlowModule
from rfdit.training.optim import AdamW, ConstantSchedule
from tests.support.data.shards import numbered_sample

SIDE = 64


def make_cache(
    shard: Path,
    out: Path,
    *,
    autoencoder: dict[str, Any],
    text_encoder: dict[str, Any] | None,
    **changes: Any,
) -> None:
    config = {
        "out": str(out),
        "dtype": "auto",
        "batch_size": 4,
        "num_workers": 0,
        "parts": 1,
        "part": 0,
        "accelerator": "cpu",
        "data": {
            "shards": [str(shard)],
            "reader": {"_target_": "tests.support.data.list_source.ListReader"},
            "decoder": {"_target_": "rfdit.data.decode.SampleDecoder", "label_key": "json.label"},
            "filters": {"_target_": "rfdit.data.filters.Filters"},
            "resolution": SIDE,
        },
        "autoencoder": autoencoder,
        "text_encoder": text_encoder,
        "auxiliary": None,
    }
    encode(config | changes)


def first_batch(shard: Path, decoder: Decoder, n: int) -> Batch:
    raws = iter(webdataset.WebDataset(str(shard), shardshuffle=False))
    samples = [decoder(next(raws), (SIDE, SIDE)) for _ in range(n)]
    return collate(samples, torch.arange(100, 100 + n))


def flow_module(autoencoder: Autoencoder, network: Network) -> FlowModule:
    for parameter in network.parameters():  # a fresh network's output is zero whatever it is given
        torch.nn.init.normal_(parameter, std=0.1)
    objective = VelocityMatching(time=UniformTime(), coupling=IndependentCoupling())
    optimizer = AdamW(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.0, schedule=ConstantSchedule())
    return FlowModule(
        network=network, autoencoder=autoencoder, objective=objective, optimizer=optimizer, seed=3, record={}
    )


def losses(module: FlowModule, batch: Batch) -> FlowLoss:
    module.network.conditioner.drop = 0.3
    return module._loss(module.network, batch)


def assert_same(module: FlowModule, live: Batch, cached: Batch) -> None:
    """The same loss, and the same gradient of every weight."""
    gradients = []
    for batch in (live, cached):
        module.zero_grad()
        loss = losses(module, batch)
        loss.total.backward()
        gradients.append(
            [loss.per_sample, *(p.grad.clone() for p in module.parameters() if p.grad is not None)]
        )
    assert gradients[0][0].min() > 0
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*gradients, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_taesd_and_minilm_on_emoji(assets: Path, few_emoji: Path, tmp_path: Path, dtype: str) -> None:
    autoencoder = {
        "_target_": "rfdit.autoencoder.diffusers.DiffusersAutoencoder",
        "source": str(assets / "autoencoder/taesd"),
        "name": "taesd",
        "latent_channels": 4,
        "downsampling": 8,
        "dtype": dtype,
    }
    text = {
        "_target_": "rfdit.text_encoder.openclip_hf.OpenCLIPHFEncoder",
        "source": str(assets / "text_encoder/minilm"),
        "width": 384,
        "pooled_width": 384,
        "length": 32,
        "dtype": dtype,
    }
    make_cache(few_emoji, tmp_path, autoencoder=autoencoder, text_encoder=text)
    live = first_batch(few_emoji, SampleDecoder(label_key="json.label"), 4)
    decoder = LatentDecoder(autoencoder=autoencoder, text_encoder=text)
    decoder.check([str(tmp_path / few_emoji.name)], (SIDE, SIDE))
    cached = first_batch(tmp_path / few_emoji.name, decoder, 4)
    assert (cached.keys, cached.captions) == (live.keys, live.captions)
    assert torch.equal(cached.labels, live.labels)
    assert (
        cached.moments.dtype
        == cached.condition.tokens.dtype
        == {"bf16": torch.bfloat16}.get(dtype, torch.float32)
    )
    torch.manual_seed(0)
    backbone = MMDiT(
        width=24, depth=2, num_heads=2, patch_size=2, in_channels=4, input_size=8, pooled_width=384, token_width=384
    )  # fmt: skip
    conditioner = TextConditioner(encoder=build(text))
    module = flow_module(build(autoencoder), Network(backbone=backbone, conditioner=conditioner))
    assert_same(module, live, cached)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(module, live, cached)
    # Without cached features the captions are encoded now.
    assert_same(module, live, dataclasses.replace(cached, condition=None))
    # All of this matters to the loss: other features give another.
    other = dataclasses.replace(cached, condition=cached.condition.map(lambda x: x.flip(0)))
    assert not torch.equal(losses(module, cached).per_sample, losses(module, other).per_sample)
    assert module.latent_shape(live) == module.latent_shape(cached) == (4, 8, 8)


@pytest.fixture(scope="module")
def kl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random autoencoder with SD3's 16 channels and normalisation."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("kl")
    torch.manual_seed(0)
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=16,
        scaling_factor=1.5305,
        shift_factor=0.0609,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def labelled_shard(tmp_path: Path) -> Path:
    """Five images of three classes."""
    path = tmp_path / "s.tar"
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for i in range(5):
            tar.write(numbered_sample(i) | {"json": b'{"label": %d}' % (i % 3)})
    return path


def kl(folder: Path, dtype: str) -> dict[str, Any]:
    return {
        "_target_": "rfdit.autoencoder.diffusers.DiffusersAutoencoder",
        "source": str(folder),
        "name": "sd3",
        "latent_channels": 16,
        "downsampling": 2,
        "scale": 1.5305,
        "shift": 0.0609,
        "dtype": dtype,
    }


def labels_module(autoencoder: Autoencoder) -> FlowModule:
    torch.manual_seed(0)
    backbone = DiT(width=24, depth=1, num_heads=2, patch_size=4, in_channels=16, input_size=SIDE // 2)
    return flow_module(
        autoencoder, Network(backbone=backbone, conditioner=LabelConditioner(num_classes=3, width=24))
    )


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_posteriors_and_labels(kl_folder: Path, labelled_shard: Path, tmp_path: Path, dtype: str) -> None:
    node, out = kl(kl_folder, dtype), tmp_path / "out"
    make_cache(labelled_shard, out, autoencoder=node, text_encoder=None)
    live = first_batch(labelled_shard, SampleDecoder(label_key="json.label"), 4)
    cached = first_batch(out / "s.tar", LatentDecoder(autoencoder=node), 4)
    assert cached.condition is None
    assert cached.moments.shape == (4, 32, SIDE // 2, SIDE // 2)
    module = labels_module(build(node))
    assert_same(module, live, cached)
    # The latents are drawn anew at another place in the stream, from the same moments.
    later = dataclasses.replace(cached, positions=cached.positions + 4)
    assert not torch.equal(losses(module, cached).per_sample, losses(module, later).per_sample)
    assert_same(module, dataclasses.replace(live, positions=later.positions), later)


def test_half_the_bits_are_nearly_the_same(kl_folder: Path, labelled_shard: Path, tmp_path: Path) -> None:
    node, module = kl(kl_folder, "fp32"), labels_module(build(kl(kl_folder, "fp32")))
    live = losses(module, first_batch(labelled_shard, SampleDecoder(label_key="json.label"), 4)).total
    for dtype, rounding in (("bf16", 2e-2), ("fp16", 2e-3)):
        make_cache(labelled_shard, tmp_path / dtype, autoencoder=node, text_encoder=None, dtype=dtype)
        cached = first_batch(tmp_path / dtype / "s.tar", LatentDecoder(autoencoder=node), 4)
        assert losses(module, cached).total != live
        torch.testing.assert_close(losses(module, cached).total, live, rtol=rounding, atol=0)
