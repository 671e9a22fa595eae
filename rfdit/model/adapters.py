"""Small trained matrices beside frozen linear layers, through peft: LoRA and its kin.

    W' = W + (alpha / r) B A        A: (r, in), random; B: (out, r), zero at first

Only the backbone is adapted, and only what `targets` names; everything else is frozen.
"""

import copy
import re
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from rfdit.batch import Condition, Latent, Time
from rfdit.extras import check_installed
from rfdit.limits import BelowOne, Count, Positive
from rfdit.protocols import VelocityNetwork

TARGETS = r".*blocks\.\d+\.(.*\.)?(qkv|q|kv|proj|mlp_in|mlp_out)"
EXAMPLES = 3  # names that an error message lists
# The attribute of peft's layers that switches their adapters off. `enable_adapters` sets it too, but with it the
# adapters' `requires_grad`, by which DDP and FSDP know what is trained.
LEFT_OUT = "_disable_adapters"


@runtime_checkable
class Adapter(Protocol):
    """A kind of adapter. r: its rank. targets: regular expression of the whole names of the adapted layers."""

    r: int
    targets: str

    def settings(self) -> Any:
        """The configuration that peft takes."""
        ...


def no_adapter() -> None:
    """The network itself is trained."""
    return


class LoRA:
    """LoRA (arXiv 2106.09685), DoRA (2402.09353) and rsLoRA (2312.03732); conf/adapter/lora.yaml has the settings."""

    def __init__(
        self,
        *,
        r: Count = 16,
        alpha: Positive = 16,
        targets: str = TARGETS,
        dropout: BelowOne = 0.0,
        dora: bool = False,
        rank_stabilized: bool = False,
    ) -> None:
        self.r, self.alpha, self.targets, self.dropout = r, alpha, targets, dropout
        self.dora, self.rank_stabilized = dora, rank_stabilized

    def settings(self) -> Any:
        from peft import LoraConfig

        return LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]
            target_modules=self.targets,
            lora_dropout=self.dropout,
            use_dora=self.dora,
            use_rslora=self.rank_stabilized,
        )


class LoHa:
    """LoHa (arXiv 2108.06098): the elementwise product of two low-rank matrices."""

    def __init__(self, *, r: Count = 8, alpha: Positive = 8, targets: str = TARGETS) -> None:
        self.r, self.alpha, self.targets = r, alpha, targets

    def settings(self) -> Any:
        from peft import LoHaConfig

        return LoHaConfig(r=self.r, alpha=self.alpha, target_modules=self.targets)  # type: ignore[arg-type]


class LoKr:
    """LoKr (arXiv 2309.14859): the Kronecker product of a small and a low-rank matrix."""

    def __init__(self, *, r: Count = 8, alpha: Positive = 8, targets: str = TARGETS) -> None:
        self.r, self.alpha, self.targets = r, alpha, targets

    def settings(self) -> Any:
        from peft import LoKrConfig

        return LoKrConfig(r=self.r, alpha=self.alpha, target_modules=self.targets)  # type: ignore[arg-type]


def inject(backbone: nn.Module, adapter: Adapter) -> None:
    """Puts new adapters beside the layers of a backbone, and freezes everything else.

    Raises ValueError, naming the setting, for a pattern that is none, or that matches no linear layer or
    something else as well.
    """
    check_installed("peft", purpose="adapter")
    from peft import inject_adapter_in_model

    linear = {name: module for name, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    try:
        matched = {name for name, _ in backbone.named_modules() if re.fullmatch(adapter.targets, name)}
    except re.error as error:
        raise ValueError(f"adapter.targets={adapter.targets} is not a regular expression: {error}") from None
    if not matched or (others := matched - linear.keys()):
        what = "no layer of the model" if not matched else f"{min(others)}, which is not a linear layer"
        listed = ", ".join(list(linear)[:: max(1, len(linear) // EXAMPLES)][:EXAMPLES])
        raise ValueError(
            f"adapter.targets={adapter.targets} matches {what}; linear layers have names such as {listed}, and the "
            "pattern has to match the whole name"
        )
    widest = max(max(linear[name].in_features, linear[name].out_features) for name in matched)
    if adapter.r > widest:
        raise ValueError(
            f"adapter.r={adapter.r} is more than {widest}, the width of the widest of its layers"
        )
    backbone.requires_grad_(False)
    empty = any(parameter.is_meta for parameter in backbone.parameters())
    inject_adapter_in_model(adapter.settings(), backbone, low_cpu_mem_usage=empty)


def trained_names(module: nn.Module) -> set[str]:
    """The names of the parameters that are trained: those of the adapters, once they are there."""
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


class Unadapted:
    """The velocity network that an adapted backbone is without its adapters: the same weights, no gradients.

    Only while it is called are the adapters left out, so the backbone may be sharded, compiled and recomputed.
    Raises ValueError for a backbone without adapters.
    """

    def __init__(self, backbone: VelocityNetwork) -> None:
        modules = backbone.modules() if isinstance(backbone, nn.Module) else ()
        self._backbone, self._layers = backbone, [module for module in modules if hasattr(module, LEFT_OUT)]
        if not self._layers:
            raise ValueError(
                "objective compares the network with itself without its adapters, and adapter=none has none; give "
                "adapter=lora with init=weights init.ckpt=..."
            )

    @torch.no_grad()
    def __call__(self, z_t: Latent, t: Time, cond: Condition) -> Latent:
        try:
            self._leave_out(True)
            return self._backbone(z_t, t, cond)
        finally:
            self._leave_out(False)

    def _leave_out(self, adapters: bool) -> None:
        for layer in self._layers:
            setattr(layer, LEFT_OUT, adapters)


@torch.no_grad()
def merged(backbone: nn.Module, adapter: Adapter, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a backbone with trained adapters added to its weights; the backbone is used up.

    tensors: those of the adapters, by name. Their names say which layers are adapted, not `targets`: a file may come
        from anyone, and a regular expression can take for ever.
    Raises ValueError if they are not those of this kind of adapter on this backbone.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    linear = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    layers = [name for name in linear if any(tensor.startswith(f"{name}.") for tensor in tensors)]
    if not layers:
        raise ValueError("its tensors are not those of adapters of this network")
    adapter = copy.copy(adapter)
    adapter.targets = "|".join(map(re.escape, layers))
    inject(backbone, adapter)
    own = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    for name in sorted(own.keys() | tensors.keys()):
        if name not in own or name not in tensors or own[name].shape != tensors[name].shape:
            raise ValueError(
                f"its tensors are not those of its adapter: {name} is missing, or of another shape"
            )
        own[name].copy_(tensors[name])
    for name, module in list(backbone.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            backbone.set_submodule(name, module.get_base_layer())
    return {name: tensor.detach() for name, tensor in backbone.state_dict().items()}
