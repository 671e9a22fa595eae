"""What a run would need, before it starts: `python -m rfdit.plan` with the settings of train.py."""

import json
import math
import sys
import tempfile
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from rfdit.batch import Condition
from rfdit.command_line import explain_errors
from rfdit.conditioning import Conditioner, TextConditioner
from rfdit.config import CONFIG_DIR, build, register, validate
from rfdit.model.activations import estimate_pass_bytes
from rfdit.model.cost import count_macs, count_parameters
from rfdit.network import Network
from rfdit.plan_report import HEADER, Plan, page, row
from rfdit.training.device import check_devices, pick_device, pick_precision
from rfdit.training.fp8 import check_fp8
from rfdit.training.peak import matmul_peak

RECOMPUTE = ("none", "selective", "full")
NUMBER = 4  # bytes: weights, gradients, moments and averages are float32


class DeclaredEncoder(nn.Module):
    """A frozen text encoder's sizes without its weights, which need not be at hand to plan."""

    def __init__(self, *, width: int, pooled_width: int, length: int) -> None:
        super().__init__()
        self.width, self.pooled_width, self.length = width, pooled_width, length


def state_shards(strategy: Mapping[str, Any], devices: int) -> int:
    """Over how many devices a strategy divides weights, gradients, moments and averages; else it copies them."""
    if strategy["_target_"].rpartition(".")[2] != "fsdp":
        return 1
    return devices // strategy.get("replicas", 1)


def ema_copies(callbacks: Mapping[str, Any]) -> int:
    """How many averages of the network the callbacks keep."""
    ema = callbacks.get("ema")
    if ema is None:
        return 0
    return sum(profile is not None for profile in ema["profiles"].values()) if "profiles" in ema else 1


def build_on_meta(config: dict[str, Any], **model: Any) -> Network:
    """The network without storage; frozen encoders, which come from elsewhere, are not loaded."""
    conditioner = dict(config["conditioner"])
    encoder = conditioner.get("encoder")
    supplied = {}
    if encoder is not None and encoder.keys() & {"source", "pretrained"}:
        sizes = {name: encoder[name] for name in ("width", "pooled_width", "length")}
        supplied["encoder"] = DeclaredEncoder(**sizes)
        del conditioner["encoder"]
    with torch.device("meta"):
        return Network(backbone=build(config["model"] | model), conditioner=build(conditioner, **supplied))


def blank_condition(conditioner: Conditioner) -> Condition:
    """One sample's condition on the meta device."""
    meta = torch.device("meta")
    if not isinstance(conditioner, TextConditioner):
        return conditioner.null(device=meta)
    encoder = conditioner.encoder

    def empty(*shape: int) -> Tensor:
        return torch.empty(1, *shape, device=meta)

    tokens = empty(encoder.length, encoder.width)
    return Condition(empty(encoder.pooled_width), tokens, empty(encoder.length).bool())


def activations(
    config: dict[str, Any], latent: tuple[int, int, int], *, device: torch.device, precision: str
) -> dict[str, int]:
    """Bytes of a pass by what is recomputed; see `pass_bytes` for what is counted.

    Blocks are alike, so networks of two and three of them tell what each takes.
    """
    attention = config["model"].get("attention")
    changes: dict[str, Any] = {}
    if device.type == "cuda" and attention and attention["_target_"] == "rfdit.model.FusedAttention":
        # Fake tensors are a CPU's, where it may not be one kernel.
        changes["attention"] = {"_target_": "rfdit.model.KernelAttention"}
    depth = config["model"]["depth"]

    def estimate(blocks: int, recompute: str) -> int:
        network = build_on_meta(config, depth=blocks, recompute=recompute, **changes)
        return estimate_pass_bytes(
            network.backbone,
            latent,
            blank_condition(network.conditioner),
            batch_size=config["data"]["batch_size"],
            autocast=torch.bfloat16 if precision == "bf16-mixed" else None,
        )

    sizes = {}
    for recompute in RECOMPUTE:
        two = estimate(min(depth, 2), recompute)
        sizes[recompute] = two if depth <= 2 else two + (depth - 2) * (estimate(3, recompute) - two)
    return sizes


@lru_cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Once in a sweep."""
    return matmul_peak(device, dtype)


def pick(config: dict[str, Any]) -> tuple[torch.device, str]:
    """Device and precision; with `peak_tflops` given, a GPU may be planned for where there is none."""
    trainer = config["trainer"]
    elsewhere = config["peak_tflops"] is not None and trainer["accelerator"] in ("gpu", "cuda")
    if elsewhere and not torch.cuda.is_available():
        bf16 = trainer["precision"] in ("auto", "bf16")
        return torch.device("cuda"), "bf16-mixed" if bf16 else pick_precision(
            trainer["precision"], torch.device("cpu")
        )
    device = pick_device(trainer["accelerator"])
    if config["fp8"] and not elsewhere:
        check_fp8(device)
    return device, pick_precision(trainer["precision"], device)


def make_plan(config: dict[str, Any], name: str) -> Plan:
    """The plan of a validated configuration; raises ValueError for numbers that cannot be planned with."""
    if not 0 < config["mfu"] <= 1:
        raise ValueError(f"mfu={config['mfu']} is a share of the peak, above 0 and at most 1")
    given = config["peak_tflops"]
    if given is not None and not 0 < given < math.inf:
        raise ValueError(f"peak_tflops={given} must be more than 0 and finite; null measures this machine's")
    trainer = config["trainer"]
    check_devices(trainer["devices"], trainer["num_nodes"], build(config["strategy"]))
    device, precision = pick(config)
    if config["fp8"] and given is None:
        warnings.warn(
            "fp8=true: the speed is that of bf16 or float32, in which the peak is measured; give peak_tflops=",
            stacklevel=2,
        )
    network, model = build_on_meta(config), config["model"]
    size = model["input_size"]
    latent = (model["in_channels"], *((size, size) if isinstance(size, int) else tuple(size)))
    devices = trainer["devices"] * trainer["num_nodes"]
    shards = state_shards(config["strategy"], devices)
    parameters, trained = count_parameters(network), count_parameters(network, trainable=True)
    state = {
        "weights": parameters,
        "gradients": trained,
        "optimizer": 2 * trained,  # AdamW's two moments
        "ema": ema_copies(config["callbacks"]) * parameters,
    }
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    return Plan(
        name=name,
        parameters=parameters,
        trainable_parameters=trained,
        macs=count_macs(network.backbone, latent, blank_condition(network.conditioner)),
        batch_size=config["data"]["batch_size"],
        devices=devices,
        shards=shards,
        precision=precision,
        fp8=config["fp8"],
        recompute=model["recompute"],
        state={key: NUMBER * count // shards for key, count in state.items()},
        activations=activations(config, latent, device=device, precision=precision),
        peak=1e12 * given if given is not None else measured_peak(device, dtype),
        peak_from="given" if given is not None else f"measured on this machine's {device.type}",
        mfu=config["mfu"],
    )


@hydra.main(config_path=str(CONFIG_DIR), config_name="plan", version_base="1.3")
def _main(cfg: DictConfig) -> None:
    job = HydraConfig.get()
    with explain_errors("plan", ValueError, OSError):
        for path in OmegaConf.missing_keys(cfg):
            if path.startswith("data."):  # where data lies is of no matter
                OmegaConf.update(cfg, path, "none")
        # In a sweep a point is named by what is swept: the rest is as it was written.
        swept = [override for override in job.overrides.task if override not in sys.argv]
        plan = make_plan(
            validate(cfg), " ".join(swept if job.mode == RunMode.MULTIRUN else job.overrides.task)
        )
    if cfg.json:
        print(json.dumps(plan.as_dict()), flush=True)
        return
    if job.mode != RunMode.MULTIRUN:
        print(page(plan), flush=True)
        return
    if job.job.num == 0:
        print(HEADER)
    print(row(plan), flush=True)


def main() -> None:
    """The entry of `python -m rfdit.plan`."""
    register()
    # Hydra writes about every sweep into a folder; this one leaves nothing behind.
    with tempfile.TemporaryDirectory() as folder, explain_errors("plan"):
        sys.argv.append(f"hydra.sweep.dir={folder}")
        _main()


if __name__ == "__main__":
    main()
