"""The callback keeps averages apart from the module, in step with it, and brings them through checkpoints."""

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from rfdit.callbacks import EMA
from rfdit.conditioning import LabelConditioner
from rfdit.ema import FixedDecay, PowerFunction, Snapshots
from rfdit.ema.snapshots import Snapshot, read_snapshots
from rfdit.network import Network
from rfdit.training.module import FlowModule
from tests.support.commands.command_line import CommandLine
from tests.support.training.states import assert_equal

PROFILES = {"fixed": FixedDecay(decay=0.9, warmup=False), "power": PowerFunction(std=0.1)}


class FakeModule(FlowModule):
    """The part of a FlowModule that the callback uses."""

    stepped = True  # type: ignore[assignment]

    def __init__(self) -> None:
        L.LightningModule.__init__(self)
        labels = LabelConditioner(num_classes=3, width=4)
        labels.table.weight.requires_grad_(False)
        self.network = Network(backbone=nn.Linear(3, 4), conditioner=labels)
        self.averages: dict[str, Network] = {}
        self.trained_only = False
        self.evaluated: list[nn.Module] = []  # a list, so that it is not part of the module

    def evaluate_with(self, network: nn.Module) -> None:
        self.evaluated = [network]


class FakeTrainer(L.Trainer):
    """A stand-in for a trainer that only counts steps."""

    ckpt_path = None  # type: ignore[assignment]
    global_step = 0  # type: ignore[assignment]
    is_global_zero = True  # type: ignore[assignment]
    max_steps = -1  # type: ignore[assignment]
    should_stop = False

    def __init__(self) -> None:
        pass


Started = tuple[EMA, FakeModule, FakeTrainer]


def start(ema: EMA, module: FakeModule | None = None, step: int = 0) -> Started:
    module, trainer = module or FakeModule(), FakeTrainer()
    trainer.global_step = step  # type: ignore[misc]
    ema.setup(trainer, module, "fit")
    ema.on_fit_start(trainer, module)
    ema.on_train_start(trainer, module)
    return ema, module, trainer


@pytest.fixture
def started() -> Started:
    return start(EMA(profiles=dict(PROFILES)))


def take_step(ema: EMA, module: FakeModule, trainer: FakeTrainer) -> None:
    with torch.no_grad():
        for p in module.network.backbone.parameters():  # type: ignore[attr-defined]
            p.add_(torch.randn_like(p))
    trainer.global_step += 1
    ema.on_train_batch_end(trainer, module, None, None, 0)


def test_starts_as_frozen_float32_copies_and_evaluates_the_first(started: Started) -> None:
    ema, module, _ = started
    assert list(ema.networks) == ["fixed", "power"]
    assert module.evaluated == [ema.networks["fixed"]]
    assert module.averages is ema.networks
    for network in ema.networks.values():
        for average, weight in zip(network.parameters(), module.network.parameters()):
            assert average.dtype == torch.float32
            assert not average.requires_grad
            assert torch.equal(average, weight.float())
            assert average.data_ptr() != weight.data_ptr()
        assert network not in list(module.modules())


def test_copies_take_the_values_that_the_weights_have_when_training_starts() -> None:
    """The copies are made before a checkpoint's values are in the weights, frozen ones included."""
    ema, module, trainer = EMA(profiles=dict(PROFILES)), FakeModule(), FakeTrainer()
    ema.setup(trainer, module, "fit")
    with torch.no_grad():
        for p in module.network.parameters():
            p.add_(1)
    ema.on_fit_start(trainer, module)
    ema.on_train_start(trainer, module)
    for network in ema.networks.values():
        assert_equal(dict(network.state_dict()), dict(module.network.state_dict()))


def test_bf16_weights_have_float32_averages() -> None:
    module = FakeModule()
    module.network.bfloat16()
    ema, module, trainer = start(EMA(profiles=dict(PROFILES)), module)
    take_step(ema, module, trainer)
    take_step(ema, module, trainer)
    assert {p.dtype for p in ema.networks["power"].parameters()} == {torch.float32}
    weight, average = module.network.backbone.weight, ema.networks["fixed"].backbone.weight  # type: ignore[attr-defined]
    assert not torch.equal(average, average.bfloat16().float())
    assert not torch.equal(average, weight.float())


def test_does_nothing_while_gradients_accumulate(started: Started) -> None:
    ema, module, trainer = started
    before = copy.deepcopy(ema.networks["fixed"].state_dict())
    with torch.no_grad():
        module.network.backbone.weight.add_(1)  # type: ignore[attr-defined]
    module.stepped = False  # type: ignore[misc]
    ema.on_train_batch_end(trainer, module, None, None, 0)
    assert ema.updates == {"fixed": 0, "power": 0}
    assert_equal(dict(before), dict(ema.networks["fixed"].state_dict()))


def test_state_is_restored(started: Started) -> None:
    ema, module, trainer = started
    take_step(ema, module, trainer)
    checkpoint: dict[str, Any] = {}
    ema.on_save_checkpoint(trainer, module, checkpoint)
    assert list(checkpoint["ema"]) == ["fixed", "power"]
    other = EMA(profiles=PROFILES | {"added": FixedDecay()})
    other.on_load_checkpoint(trainer, module, checkpoint)
    start(other, module)
    assert other.updates == {"fixed": 1, "power": 1, "added": 0}
    for name, network in ema.networks.items():
        assert_equal(dict(network.state_dict()), dict(other.networks[name].state_dict()))
    assert_equal(dict(other.networks["added"].state_dict()), dict(module.network.state_dict()))


def test_a_checkpoint_may_be_restored_after_fit_start(started: Started) -> None:
    """Strategies that shard first restore it so late."""
    ema, module, trainer = started
    take_step(ema, module, trainer)
    checkpoint: dict[str, Any] = {}
    ema.on_save_checkpoint(trainer, module, checkpoint)
    other = EMA(profiles=dict(PROFILES))
    other.setup(trainer, module, "fit")
    other.on_fit_start(trainer, module)
    other.on_load_checkpoint(trainer, module, checkpoint)
    other.on_train_start(trainer, module)
    for name, network in ema.networks.items():
        assert_equal(dict(network.state_dict()), dict(other.networks[name].state_dict()))


def test_a_profile_keeps_its_length_for_life(started: Started) -> None:
    ema, *_ = started
    other = EMA(profiles={"power": PowerFunction(std=0.12)})
    with pytest.raises(ValueError, match=r"profiles\.power\.std=0\.12 continues an average of std=0\.1;"):
        other.load_state_dict(ema.state_dict())
    EMA(profiles={"other": PowerFunction(std=0.12)}).load_state_dict(ema.state_dict())


def test_snapshots_of_power_functions_every_n_steps_and_at_the_end(tmp_path: Path) -> None:
    snapshots = Snapshots(folder=str(tmp_path), every_n_steps=2)
    ema, module, trainer = start(EMA(profiles=dict(PROFILES), snapshots=snapshots))
    for _ in range(5):
        take_step(ema, module, trainer)
    ema.on_train_end(trainer, module)
    found = read_snapshots(tmp_path)
    assert [(s.profile, s.std, s.updates, s.step) for s in found.values()] == [
        ("power", 0.1, n, n) for n in (2, 4, 5)
    ]
    # A run that goes on from step 4 takes the step after it again.
    other = EMA(profiles=dict(PROFILES), snapshots=snapshots)
    start(other, module, step=4)
    assert [s.step for s in read_snapshots(tmp_path).values()] == [2, 4]


def test_snapshots_and_the_last_step_are_updates_too(tmp_path: Path) -> None:
    """Updates at 3, 4, 6, 8 and 9; a run that goes on between two of them is bit-equal to a whole one."""
    torch.manual_seed(0)
    snapshots = Snapshots(folder=str(tmp_path), every_n_steps=3)
    ema, module, trainer = start(EMA(profiles=dict(PROFILES), every_n_steps=4, snapshots=snapshots))
    trainer.max_steps = 9  # type: ignore[misc]
    other, checkpoint = None, dict[str, Any]()
    for step in range(1, 10):
        take_step(ema, module, trainer)
        assert ema.updates["fixed"] == {1: 0, 2: 0, 5: 4, 7: 6}.get(step, step)
        if other is not None:
            other.on_train_batch_end(trainer, module, None, None, 0)
        if step == 5:
            ema.on_save_checkpoint(trainer, module, checkpoint)
            other = EMA(profiles=dict(PROFILES), every_n_steps=4, snapshots=snapshots)
            other.on_load_checkpoint(trainer, module, copy.deepcopy(checkpoint))
            start(other, module, step=5)
    assert [(s.updates, s.step) for s in read_snapshots(tmp_path).values()] == [(3, 3), (6, 6), (9, 9)]
    assert other is not None
    assert ema.updates == other.updates == {"fixed": 9, "power": 9}
    for name, network in ema.networks.items():
        assert_equal(dict(network.state_dict()), dict(other.networks[name].state_dict()))


def test_averages_that_never_moved_are_warned_of() -> None:
    ema, module, trainer = start(EMA(profiles=dict(PROFILES), every_n_steps=4))
    for _ in range(3):
        take_step(ema, module, trainer)
    with pytest.warns(UserWarning, match=r"callbacks\.ema\.every_n_steps=4 was not reached"):
        ema.on_train_end(trainer, module)


@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ({"ema": None}, r"callbacks\.ema\.profiles is empty; give one"),
        ({"raw": FixedDecay()}, r"profiles\.raw is not a name for a profile"),
        ({"a.b": FixedDecay()}, r"profiles\.a\.b is not a name for a profile"),
        ({"long": FixedDecay(), "ema": FixedDecay()}, r"profiles\.ema is not a name for a profile"),
    ],
)
def test_names_must_tell_profiles_apart(profiles: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EMA(profiles=profiles)


def test_snapshots_need_a_power_function(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"use ema=power, or callbacks\.ema\.snapshots=null"):
        EMA(profiles={"ema": FixedDecay()}, snapshots=Snapshots(folder=str(tmp_path), every_n_steps=1))


def saved(run: str) -> dict[str, Any]:
    raw = torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)
    return {name: raw[name] for name in ("state_dict", "ema", "optimizer_states")}


def halves(run: str) -> dict[Snapshot, dict[str, torch.Tensor]]:
    return {snapshot: load_file(path) for path, snapshot in read_snapshots(Path(run, "ema")).items()}


@pytest.mark.slow
@pytest.mark.parametrize(("every", "half"), [(1, 3), (3, 4)])
def test_a_resumed_run_ends_bit_equal_with_several_profiles(cli: CommandLine, every: int, half: int) -> None:
    """Checkpoints and snapshots, from the command line. A run's last step is an update in any case."""
    power = [
        "ema=power",
        f"callbacks.ema.every_n_steps={every}",
        "callbacks.ema.snapshots.every_n_steps=2",
        "trainer.precision=fp32",
        "schedule=constant",
    ]
    cli.train("run_dir=whole", *power, "trainer.max_steps=6")
    cli.train("run_dir=parts", *power, f"trainer.max_steps={half}")
    cli.train("run_dir=parts", *power, "trainer.max_steps=6", "ckpt=last")
    whole = saved("whole")
    assert list(whole["ema"]) == ["ema", "power_05", "power_10"]
    assert {average["updates"] for average in whole["ema"].values()} == {6}
    assert_equal(whole, saved("parts"))
    both = halves("whole")
    assert [snapshot.step for snapshot in both] == [2, 4, 6, 2, 4, 6]
    # The first part has one where it ended.
    assert_equal(both, {mark: value for mark, value in halves("parts").items() if mark.step != 3})


def test_settings_of_a_profile(cli: CommandLine) -> None:
    cli.train("run_dir=run", "callbacks.ema.profiles.ema.decay=0", "callbacks.ema.profiles.ema.warmup=false")
    raw = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    weights = {f"network.{name}": value for name, value in raw["ema"]["ema"]["network"].items()}
    assert_equal(weights, dict(raw["state_dict"]))
    assert cli.error("train", "run_dir=other", "callbacks.ema.profiles.ema.decay=1") == (
        "callbacks.ema.profiles.ema.decay=1 must be at least 0 and less than 1"
    )
    message = cli.error("train", "run_dir=other", "callbacks.ema.profiles.ema.decy=0.9")
    assert "callbacks.ema.profiles.ema.decy" in message
    assert "did you mean" in message
    assert "callbacks.ema.snapshots" in cli.error(
        "train", "ema=power", "callbacks.ema.snapshots.every_n_steps=0"
    )


def test_only_power_functions(cli: CommandLine) -> None:
    one = "callbacks.ema.profiles.ema=null", "trainer.max_steps=1"
    assert cli.error("train", "run_dir=run", "ema=power", *one, "callbacks.ema.every_n_steps=0") == (
        "callbacks.ema.every_n_steps=0 must be at least 1"
    )
    cli.train("run_dir=run", "ema=power", *one)  # the last step is in the averages, whatever the interval
    ema = saved("run")["ema"]
    assert list(ema) == ["power_05", "power_10"]
    assert all((average["updates"], average["waiting"]) == (1, 0) for average in ema.values())
