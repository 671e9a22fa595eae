"""The plan's numbers are the papers', the formula's, or what a real pass takes."""

import json
import re
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rfdit.commands.plan
from rfdit.batch import Condition
from rfdit.cost.activations import estimate_pass_bytes, pass_bytes
from rfdit.cost.plan import activations, build_on_meta, state_parameters, state_shards
from rfdit.model import DiT
from rfdit.training.strategy import FullySharded, ddp
from tests.support.commands.command_line import CommandLine, fast
from tests.support.models.published import GMACS, PARAMETERS
from tests.support.training.states import tensors

PAPERS = ["model=dit", "conditioner=labels", "autoencoder=sd", "data.resolution=256", "peak_tflops=1"]


@pytest.fixture
def plan(cli: CommandLine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The output of `rfdit plan` for overrides."""

    def run(*overrides: str) -> str:
        monkeypatch.setattr(sys, "argv", ["plan", *overrides])
        capsys.readouterr()
        rfdit.commands.plan.main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def known_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces the tracing of activations, which takes seconds."""
    monkeypatch.setattr("rfdit.cost.plan.estimate_pass_bytes", lambda *_, **__: 1000)


@pytest.mark.slow
def test_json_is_one_object(plan: Any) -> None:
    found = json.loads(plan("size=s", "patch=p2", "json=true", *PAPERS))
    assert found["parameters"] == 32_957_200
    assert found["trainable_parameters"] == 32_957_200 - 256 * 384  # the positions are frozen
    assert found["gmacs"] == pytest.approx(6.06, abs=0.01)
    memory = found["memory_gb"]
    assert memory["weights"] == memory["ema"] == pytest.approx(4 * 32_957_200 / 1e9)
    assert memory["optimizer"] == 2 * memory["gradients"]
    assert memory["total"] == pytest.approx(sum(memory.values()) - memory["total"])
    assert found["images_per_second_per_device"] == pytest.approx(0.5e12 / 6 / (found["gmacs"] * 1e9))
    assert found["images_per_second"] == found["images_per_second_per_device"]


@pytest.mark.slow
def test_a_path_that_is_joined_has_blocks_in_between(plan: Any) -> None:
    """Activations are estimated from few blocks, of which a model with a joined path needs more than others."""
    small = ["size=tiny", "model=dit", "model.outer_blocks=2", "peak_tflops=1", "json=true"]
    sizes = [
        json.loads(plan(*small, f"model.depth={depth}"))["activations_gb"]["none"] for depth in (5, 6, 9)
    ]
    assert 0 < sizes[0] < sizes[1]
    assert sizes[2] - sizes[1] == pytest.approx(3 * (sizes[1] - sizes[0]), rel=1e-6)


@pytest.mark.slow
def test_the_papers_sweep(plan: Any) -> None:
    """The ends of it; tests/cost/test_count.py has all twelve points."""
    printed = plan("-m", "size=s,xl", "patch=p2,p8", "json=true", *PAPERS)
    points = list(map(json.loads, printed.splitlines()))
    found = {" ".join(point["name"].split()[:2]): point for point in points}  # then come the same for all
    assert len(found) == 4
    for size in ("s", "xl"):
        assert found[f"size={size} patch=p2"]["parameters"] == PARAMETERS[size]
        for patch in (2, 8):
            gmacs = GMACS[size][patch]
            tolerance = 10.0 ** -len(gmacs.split(".")[1])
            assert found[f"size={size} patch=p{patch}"]["gmacs"] == pytest.approx(float(gmacs), abs=tolerance)


@pytest.mark.slow
@pytest.mark.usefixtures("known_activations")
def test_a_sweep_is_a_table(plan: Any) -> None:
    header, *rows = plan("-m", "size=s,xl", "patch=p8", *PAPERS).splitlines()
    assert header.split()[:2] == ["parameters", "GMACs"]
    assert [row.split()[:1] for row in rows] == [["size=s"], ["size=xl"]]
    assert rows[1].split()[2] == "7.39"


@pytest.mark.usefixtures("known_activations")
def test_a_page_names_its_assumptions(plan: Any) -> None:
    page = plan(
        "size=s", "patch=p8", "strategy=ddp", "trainer.devices=4", "mfu=0.4", "data.batch_size=2", *PAPERS
    )
    assert "40% (assumed, mfu=) of 1 TFLOP/s (given)" in page
    assert "state divided by 1 of 4 devices" in page
    one, four = (re.search(rf"^speed {of} +([\d.]+) img/s", page, re.M) for of in ("per device", "of all 4"))
    assert one
    assert four
    assert float(four[1]) == pytest.approx(4 * float(one[1]), rel=1e-3)


@pytest.mark.usefixtures("known_activations")
def test_fp8_is_planned_for_where_it_may_be(plan: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["model=dit", "conditioner=labels", "model.depth=2", "fp8=true"]
    gpu = [*small, "trainer.accelerator=gpu", "peak_tflops=1600"]
    assert json.loads(plan("json=true", *gpu))["fp8"]
    assert "bf16-mixed with FP8 products" in plan(*gpu)
    monkeypatch.setattr("rfdit.cost.plan.check_fp8", lambda device: None)  # as a GPU would say
    monkeypatch.setattr("rfdit.cost.plan.measured_peak", lambda device, dtype: 1e12)
    with pytest.warns(UserWarning, match="in which the peak is measured; give peak_tflops="):
        plan(*small, "trainer.accelerator=cpu")


@pytest.mark.usefixtures("known_activations")
@pytest.mark.parametrize(
    "overrides",
    [
        ["text_encoder=clip_l"],  # whose weights are not at hand
        ["experiment=dit_xl2_256", "size=s", "trainer.accelerator=gpu", "peak_tflops=800"],  # nor a GPU
        ["callbacks.ema=null", "model.recompute=full", "strategy=ddp", "devices=2"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_what_train_takes_can_be_planned(plan: Any, overrides: list[str]) -> None:
    found = json.loads(plan("json=true", "peak_tflops=1", *overrides))
    assert (found["memory_gb"]["ema"] == 0) == ("callbacks.ema=null" in overrides)
    assert (found["devices"] == 2) == ("devices=2" in overrides)
    assert found["memory_gb"]["activations"] == found["activations_gb"][found["recompute"]]


@pytest.mark.slow
@pytest.mark.usefixtures("known_activations")
@pytest.mark.parametrize(
    "part",
    [
        ["callbacks.ema=null"],
        ["freeze=[*,!*.qkv.*]"],
        ["adapter=lora", "adapter.r=2"],
        ["adapter=lokr", "ema=power", "callbacks.ema.snapshots=null"],
    ],
    ids=lambda part: part[0],
)
def test_what_is_trained_and_saved_was_planned(plan: Any, cli: CommandLine, part: list[str]) -> None:
    cli.train("run_dir=base", "trainer.max_steps=1")
    start = ["init=weights", "init.ckpt=base", "trainer.max_steps=2", *part]
    cli.train("run_dir=run", *start)
    planned = json.loads(plan("json=true", "peak_tflops=1", *fast(*start)))
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    moments = {k: x for k, x in tensors(saved["optimizer_states"]).items() if x.ndim}  # apart from the steps
    weights, averages = (tensors(saved.get(name)) for name in ("state_dict", "ema"))
    numbers = sum(x.numel() for x in [*moments.values(), *weights.values(), *averages.values()])
    assert planned["trainable_parameters"] == sum(x.numel() for x in moments.values()) / 2
    assert planned["checkpoint_gb"] * 1e9 == pytest.approx(4 * numbers)
    memory = planned["memory_gb"]
    assert memory["gradients"] * 1e9 == pytest.approx(4 * planned["trainable_parameters"])
    assert memory["optimizer"] == 2 * memory["gradients"]
    assert memory["ema"] * 1e9 == pytest.approx(4 * sum(x.numel() for x in averages.values()))


def test_under_fsdp_averages_hold_what_is_frozen_too() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2).requires_grad_(False))
    for sharded, averaged in ((False, 16), (True, 26)):
        state, checkpoint = state_parameters(network, averages=1, adapters=True, sharded=sharded)
        assert state == {"weights": 26, "gradients": 16, "optimizer": 32, "ema": averaged}
        assert checkpoint == 4 * 16


@pytest.mark.usefixtures("known_activations")
def test_mistakes_end_in_a_sentence(plan: Any) -> None:
    for override, sentence in (
        ("mfu=0", "error: mfu=0.0 must be a share of the peak"),
        ("peak_tflops=-1", "error: peak_tflops=-1.0 must be more than 0"),
        ("model.depht=3", "error: model.depht is not a setting; did you mean model.depth?"),
        # What training refuses.
        ("devices=0", "error: devices=0 must be at least 1"),
        ("devices=8", "error: strategy=single runs on one device, not on trainer.devices=8"),
        (
            "strategy=fsdp devices=2 strategy.replicas=3",
            "error: strategy.replicas=3 does not divide the 2 ranks",
        ),
        ("fp8=true trainer.accelerator=cpu", "error: fp8=true needs a GPU that multiplies FP8"),
        ("optimizer.lr=-1", "error: optimizer.lr=-1 must be at least 0 and finite"),
    ):
        with pytest.raises(SystemExit) as stopped:
            plan("peak_tflops=1", *override.split())
        assert str(stopped.value.code).startswith(sentence)


def test_only_fsdp_divides_the_state() -> None:
    assert [state_shards(strategy, 8) for strategy in (ddp(), FullySharded(), FullySharded(replicas=2))] == [
        1,
        8,
        4,
    ]


def small(depth: int = 3, recompute: str = "none") -> DiT:
    return DiT(
        width=64,
        depth=depth,
        num_heads=4,
        patch_size=2,
        in_channels=4,
        input_size=16,
        recompute=recompute,
    )


def saved_bytes(network: nn.Module, given: tuple[Tensor, Tensor, Condition], **autocast: Any) -> int:
    """The bytes that autograd saves in a forward pass apart from the parameters, each storage once."""
    own = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x  # held, so that no address is used twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), torch.autocast("cpu", **autocast):
        loss = network(*given).square().mean()
    assert loss.requires_grad
    return sum(x.untyped_storage().nbytes() for x in kept.values())


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_activations_are_those_of_a_real_pass(dtype: torch.dtype | None) -> None:
    """The estimate is the traced peak of a real pass, a little more than what autograd saves for it."""
    network = small()
    given = torch.randn(16, 4, 16, 16), torch.rand(16), Condition(pooled=torch.randn(16, 64))
    with torch.device("meta"):
        meta = small()
    one = Condition(pooled=torch.empty(1, 64, device="meta"))
    estimated = estimate_pass_bytes(meta, (4, 16, 16), one, batch_size=16, autocast=dtype)
    assert estimated == pytest.approx(pass_bytes(network, *given, autocast=dtype), rel=0.01)
    saved = saved_bytes(network, given, enabled=dtype is not None, dtype=dtype, cache_enabled=False)
    assert saved < estimated < 1.15 * saved
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.slow
def test_recomputation_saves_memory_and_blocks_add_up() -> None:
    """The memory of six blocks follows from networks with two and three."""
    config = {
        "model": {
            "_target_": "rfdit.model.DiT", "width": 64, "depth": 6, "num_heads": 4, "patch_size": 2,
            "in_channels": 4, "input_size": 16,
        },
        "prediction": {"_target_": "rfdit.model.VelocityPrediction"},
        "objective": {"_target_": "rfdit.objective.VelocityMatching"},
        "conditioner": {"_target_": "rfdit.conditioning.LabelConditioner", "num_classes": 3, "width": 64},
        "data": {"batch_size": 8},
    }  # fmt: skip
    network = build_on_meta(config)
    sizes = activations(config, network, (4, 16, 16), device=torch.device("cpu"), precision="32-true")
    given = torch.randn(8, 4, 16, 16), torch.rand(8), Condition(pooled=torch.randn(8, 64))
    for recompute, size in sizes.items():
        assert size == pytest.approx(pass_bytes(small(6, recompute), *given, autocast=None), rel=0.02), (
            recompute
        )
    assert sizes["full"] < 0.4 * sizes["none"]
    assert sizes["full"] < sizes["selective"] < 0.7 * sizes["none"]
