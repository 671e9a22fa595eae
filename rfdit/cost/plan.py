"""The memory and speed of a run, estimated before it starts."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from rfdit.batch import Condition
from rfdit.conditioning import Conditioner
from rfdit.config.build import build, build_network, latent_shape, target_of
from rfdit.cost.activations import estimate_pass_bytes
from rfdit.cost.count import count_macs, count_parameters, matmul_peak
from rfdit.cost.plan_page import CostEstimate
from rfdit.device import ShardsState, check_devices, pick_device, pick_precision
from rfdit.model.acceleration import check_fp8
from rfdit.model.layers.attention import ChosenByDevice
from rfdit.network import Network
from rfdit.protocols import Pretrained
from rfdit.storage.untrusted import explained

RECOMPUTE = ("none", "selective", "full")
SIZES = {"width", "pooled_width", "length"}  # settings of a text encoder
MOST_TENSORS = 5_000  # parameters of a network of unknown origin; DiT-XL has 300
FLOAT32 = 4  # bytes of a weight, gradient, moment or average


class DeclaredEncoder(nn.Module):
    """The sizes of a frozen text encoder, whose weights a plan does not need."""

    def __init__(self, *, width: int, pooled_width: int, length: int) -> None:
        super().__init__()
        self.width, self.pooled_width, self.length = width, pooled_width, length


def state_shards(strategy: object, devices: int) -> int:
    """The number of devices that share one copy of weights, gradients, moments and averages."""
    return devices // strategy.replicas if isinstance(strategy, ShardsState) else 1


def ema_copies(ema: object) -> int:
    """The number of averages of the network that a callback keeps: one for each of its profiles, if it has any."""
    return 0 if ema is None else len(getattr(ema, "profiles", ("average",)))


def build_on_meta(config: dict[str, Any], **model: Any) -> Network:
    """The network on the meta device, without loading frozen encoders. model: settings that are changed."""
    conditioner = {name: _without_weights(node) for name, node in config["conditioner"].items()}
    with torch.device("meta"):
        return build_network(
            {
                "model": config["model"] | model,
                "prediction": config["prediction"],
                "conditioner": conditioner,
            }
        )


@contextmanager
def bounded(tensors: int = MOST_TENSORS) -> Iterator[None]:
    """Context in which a network of unknown origin is built on the meta device.

    Raises ValueError for one with more parameter tensors, and for one that cannot be built.
    """
    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1
        if count > tensors:
            raise ValueError(f"model describes a network of more than {tensors:,} tensors")

    counting = register_module_parameter_registration_hook(counted)
    try:
        with explained("model describes no network that can be built"):
            yield
    finally:
        counting.remove()


def _without_weights(node: Any) -> Any:
    """The same setting; for a pretrained text encoder, a node of a `DeclaredEncoder` of its sizes."""
    if not (isinstance(node, dict) and "_target_" in node and node.keys() >= SIZES):
        return node
    target = target_of(node)
    if not (isinstance(target, type) and issubclass(target, Pretrained)):
        return node
    declared = f"{DeclaredEncoder.__module__}.{DeclaredEncoder.__qualname__}"
    return {"_target_": declared, **{name: node[name] for name in SIZES}}


def blank_condition(conditioner: Conditioner) -> Condition:
    """The condition of one sample, on the meta device."""
    meta = torch.device("meta")
    encoder = conditioner.encoder
    if encoder is None:
        return conditioner.null(device=meta)

    def empty(*shape: int) -> Tensor:
        return torch.empty(1, *shape, device=meta)

    tokens = empty(encoder.length, encoder.width)
    return Condition(empty(encoder.pooled_width), tokens, empty(encoder.length).bool())


def images_per_sample(config: dict[str, Any]) -> int:
    """The number of images that pass the network together for a sample: 2 under an objective of pairs, else 1."""
    objective = target_of(config["objective"])
    return 2 if getattr(objective, "compares_pairs", False) else 1


def activations(
    config: dict[str, Any],
    network: Network,
    latent: tuple[int, int, int],
    *,
    device: torch.device,
    precision: str,
) -> dict[str, int]:
    """Bytes of a forward and a backward pass for each choice of `recompute`; see `pass_bytes`.

    All blocks are alike, or as many of each kind belong to one of `depth`, so the difference of networks with three
    and two of them is the cost of one.
    A backbone without the settings `depth` and `recompute` is estimated as it is, under "none".
    network: that of the configuration, on the meta device.
    """

    def estimate(network: Network) -> int:
        for module in network.backbone.modules():
            # Fake tensors are on a CPU, where fused attention may not be one kernel.
            if isinstance(attention := getattr(module, "attention", None), ChosenByDevice):
                module.attention = attention.on(device)  # type: ignore[assignment]
        return estimate_pass_bytes(
            network.backbone,
            latent,
            blank_condition(network.conditioner),
            batch_size=images_per_sample(config) * config["data"]["batch_size"],
            autocast=torch.bfloat16 if precision == "bf16-mixed" else None,
        )

    if not {"depth", "recompute"} <= inspect.signature(target_of(config["model"])).parameters.keys():
        return {RECOMPUTE[0]: estimate(network)}

    def estimate_blocks(blocks: int, recompute: str) -> int:
        return estimate(build_on_meta(config, depth=blocks, recompute=recompute))

    depth, sizes = config["model"]["depth"], {}
    few = max(
        2, 2 * (config["model"].get("outer_blocks") or 0) + 1
    )  # the fewest blocks of which there may be more
    for recompute in RECOMPUTE:
        size = estimate_blocks(min(depth, few), recompute)
        more = 0 if depth <= few else estimate_blocks(few + 1, recompute) - size
        sizes[recompute] = size + max(0, depth - few) * more
    return sizes


@lru_cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """`matmul_peak`, measured once in a sweep."""
    return matmul_peak(device, dtype)


def pick(config: dict[str, Any]) -> tuple[torch.device, str]:
    """Device and precision of the plan; given `peak_tflops`, a GPU can be planned for without having one."""
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


def state_parameters(
    network: nn.Module, *, averages: int, adapters: bool, sharded: bool
) -> tuple[dict[str, int], int]:
    """The numbers, all of them float32, in each part of a run's state, and in a checkpoint of it.

    averages: how many are kept. adapters: the run trains adapters, so that averages share the frozen weights, unless
        these are sharded, and checkpoints leave them out.
    """
    parameters, trained = count_parameters(network), count_parameters(network, trainable=True)
    moments = 2 * trained  # of AdamW
    averaged = averages * (trained if adapters and not sharded else parameters)
    state = {"weights": parameters, "gradients": trained, "optimizer": moments, "ema": averaged}
    return state, (1 + averages) * (trained if adapters else parameters) + moments


def make_plan(
    config: dict[str, Any], name: str, *, choose_trained: Callable[[Network], None] = lambda network: None
) -> CostEstimate:
    """The plan of a validated configuration; raises ValueError for devices that do not suit the strategy.

    choose_trained: puts adapters into the network and freezes parameters, as the run does.
    """
    given, trainer = config["peak_tflops"], config["trainer"]
    strategy = build(config["strategy"])
    check_devices(trainer["devices"], trainer["num_nodes"], strategy)
    device, precision = pick(config)
    if config["fp8"] and given is None:
        warnings.warn(
            "fp8=true: the speed is that of bf16 or float32, in which the peak is measured; give peak_tflops=",
            stacklevel=2,
        )
    network = build_on_meta(config)
    latent = latent_shape(config)
    devices = trainer["devices"] * trainer["num_nodes"]
    shards = state_shards(strategy, devices)
    macs = count_macs(network.backbone, latent, blank_condition(network.conditioner))
    bytes_of_pass = activations(config, network, latent, device=device, precision=precision)
    choose_trained(network)
    state, checkpoint = state_parameters(
        network,
        averages=ema_copies(build(config["callbacks"].get("ema"))),
        adapters=build(config["adapter"]) is not None,
        sharded=isinstance(strategy, ShardsState),
    )
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    return CostEstimate(
        name=name,
        parameters=state["weights"],
        trainable_parameters=state["gradients"],
        macs=macs,
        batch_size=config["data"]["batch_size"],
        devices=devices,
        shards=shards,
        precision=precision,
        fp8=config["fp8"],
        recompute=config["model"].get("recompute", RECOMPUTE[0]),
        state={key: FLOAT32 * count // shards for key, count in state.items()},
        checkpoint=FLOAT32 * checkpoint,
        activations=bytes_of_pass,
        peak=1e12 * given if given is not None else measured_peak(device, dtype),
        peak_from="given" if given is not None else f"measured on this machine's {device.type}",
        mfu=config["mfu"],
    )
