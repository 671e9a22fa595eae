"""Adapters alone, read by peft and by diffusers: the outputs are those of the merged model."""

from pathlib import Path

import pytest
import torch

from rfdit.config.build import build_backbone
from rfdit.interchange.adapted import with_adapters
from rfdit.interchange.for_diffusers.folder import as_diffusers
from rfdit.interchange.source import open_adapters, open_model
from rfdit.model import MMDiT
from tests.support.commands.command_line import TWENTY_STEPS, CommandLine
from tests.support.training.runs import Trained
from tests.support.training.states import assert_equal

# Pooled captions that SD3's own transformer can take.
BASE = [*TWENTY_STEPS, "text_encoder.width=8"]
LORA = [
    "init=weights",
    "init.ckpt=run",
    "adapter=lora",
    "adapter.r=4",
    "adapter.alpha=10",
    "optimizer.lr=1e-2",
]
LORA += ["schedule=constant", "run_dir=lora", "text_encoder.width=8"]


def backbone(state: dict[str, torch.Tensor]) -> MMDiT:
    network = build_backbone(open_model("run").config)
    assert isinstance(network, MMDiT)
    network.load_state_dict(
        {name.removeprefix("backbone."): x for name, x in state.items() if name.startswith("backbone.")}
    )
    return network.eval()


def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"z": (2, 3, 32, 32), "tokens": (2, 5, 8), "pooled": (2, 8)}
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


def velocity(network: torch.nn.Module) -> torch.Tensor:
    from rfdit.batch import Condition

    x = inputs()
    with torch.no_grad():
        return network(x["z"], torch.tensor([0.2, 0.7]), Condition(pooled=x["pooled"], tokens=x["tokens"]))


def assert_near(found: torch.Tensor, expected: torch.Tensor, base: torch.Tensor) -> None:
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found - base).abs().max() > 1e-3 * expected.abs().max()  # the adapters do something


@pytest.mark.slow
def test_peft_reads_its_folder(cli: CommandLine, trained: Trained) -> None:
    from peft import PeftModel

    trained(*BASE)
    cli.train(*LORA, "adapter.dora=true")
    cli.export("ckpt=lora", "out=adapter", "format=peft")
    base = backbone(open_model("run").weights("ema"))
    expected = velocity(backbone(open_model("lora").weights("ema")))
    before = velocity(base)
    assert_near(velocity(PeftModel.from_pretrained(base, "adapter")), expected, before)


@pytest.mark.parametrize("kind", ["lora", "dora", "loha", "lokr"])
def test_sample_reads_the_folder_for_peft(cli: CommandLine, trained: Trained, kind: str) -> None:
    trained(*TWENTY_STEPS)
    adapter = ["adapter=lora", "adapter.dora=true"] if kind == "dora" else [f"adapter={kind}"]
    start = ["init=weights", "init.ckpt=run", *adapter, "adapter.r=2", "optimizer.lr=1e-2", "run_dir=lora"]
    cli.train(*start, "schedule=constant")
    cli.export("ckpt=lora", "out=adapter", "format=peft")
    whole = open_model("lora").weights("ema")
    assert_equal(open_model("adapter").weights("ema"), whole)
    base = open_model("run")
    found, expected = (
        with_adapters(base, "ema", [f"{name}:0.5"], open_adapters).weights("ema")
        for name in ("adapter", "lora")
    )
    assert_equal(found, expected)


def test_folders_that_are_not_ours(cli: CommandLine, trained: Trained) -> None:
    trained(*TWENTY_STEPS)
    cli.train(
        "init=weights", "init.ckpt=run", "adapter=lora", "adapter.r=2", "run_dir=lora", "trainer.max_steps=1"
    )
    cli.export("ckpt=lora", "out=adapter", "format=peft")
    request = ["ckpt=run", "adapters=[adapter]", "prompts=[a]"]
    cli.sample(*request, "out=images")
    data = bytearray(Path("adapter/adapter_model.safetensors").read_bytes())
    data[-1] ^= 1
    Path("adapter/adapter_model.safetensors").write_bytes(data)
    assert "adapter is damaged: its adapter_model.safetensors differs from its checksum" in cli.error(
        "sample", *request
    )
    Path("adapter/rfdit.json").unlink()
    assert "adapter has adapters that rfdit did not export: it lacks rfdit.json" in cli.error(
        "sample", *request
    )


@pytest.mark.slow
def test_diffusers_loads_it_into_its_sd3(cli: CommandLine, trained: Trained) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    trained(*BASE)
    cli.train(*LORA)
    cli.export("ckpt=lora", "out=sd3", "format=diffusers_lora")
    state = open_model("run").weights("ema")
    transformer = as_diffusers(backbone(state), state)
    assert type(transformer) is SD3Transformer2DModel
    x = inputs()

    def theirs() -> torch.Tensor:
        with torch.no_grad():
            return transformer(
                x["z"],
                timestep=torch.tensor([200.0, 700.0]),
                encoder_hidden_states=x["tokens"],
                pooled_projections=x["pooled"],
            ).sample

    before = theirs()
    missing = dict.fromkeys(
        ["vae", "text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3"]
    )
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(), **missing
    )
    pipeline.load_lora_weights("sd3")
    assert_near(theirs(), velocity(backbone(open_model("lora").weights("ema"))), before)


def test_a_whole_model_has_no_adapters(cli: CommandLine, trained: Trained) -> None:
    trained()
    for form in ("peft", "diffusers_lora"):
        message = cli.error("export", "ckpt=run", "out=out", f"format={form}")
        assert message.endswith("is a whole model, without adapters")
    assert not Path("out").exists()


def test_layers_that_sd3_has_no_adapter_for(cli: CommandLine, trained: Trained) -> None:
    trained(*TWENTY_STEPS)
    cli.train(
        "init=weights", "init.ckpt=run", "adapter=lora", "run_dir=lora", "adapter.targets=modulation.linear"
    )
    message = cli.error("export", "ckpt=lora", "out=out", "format=diffusers_lora")
    assert (
        message == "format=diffusers_lora has no name for the adapter of modulation.linear; use format=peft"
    )
