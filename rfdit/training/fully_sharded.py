"""FSDP2 under Lightning: every rank holds its part of weights, gradients, optimiser state and averages."""

import warnings
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from rfdit.network import Network
from rfdit.training.background import snapshot
from rfdit.training.checkpoint import read_raw
from rfdit.training.checkpoint_io import AtomicCheckpointIO
from rfdit.training.sharded_checkpoint import (
    Keys,
    is_sharded,
    new_folder,
    read_sharded,
    replaced,
    write_sharded,
)


@runtime_checkable
class ShardsNetworks(Protocol):
    """A strategy that wants every network before the first step."""

    def shard(self, network: Network) -> None:
        """Replaces the network's parameters by this rank's parts of them."""
        ...


def starts_empty(trainer: L.Trainer) -> bool:
    """Whether this process gets its weights from rank 0, and need not make its own."""
    strategy = trainer.strategy
    return isinstance(strategy, FullySharded) and strategy.meta_init and not trainer.is_global_zero


class FullySharded(ModelParallelStrategy):
    """`fully_shard` of each transformer block, of the rest of the backbone, and of the conditioner.

    replicas: groups of ranks that each hold the whole state in parts (HSDP); 1 spreads it over all.
    reshard_after_forward: gather a block's weights again for the backward pass, instead of keeping
        them in between: less memory, more traffic.
    gather_bf16: send the blocks' weights as bf16, in which their matrix products are computed anyway.
        Gradients are reduced in float32.
    meta_init: only rank 0 has the whole backbone, in the CPU's memory; the others get their parts from it.
    """

    def __init__(
        self,
        *,
        replicas: int,
        reshard_after_forward: bool,
        gather_bf16: bool,
        meta_init: bool,
        timeout: timedelta,
    ) -> None:
        super().__init__(timeout=timeout)
        self.replicas, self.reshard_after_forward = replicas, reshard_after_forward
        self.gather_bf16, self.meta_init = gather_bf16, meta_init
        self._writers: torch.distributed.ProcessGroup | None = None

    @property
    def restore_checkpoint_after_setup(self) -> bool:
        return True

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        # Lightning's mesh has a second dimension for tensor parallelism, which we have not.
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()
        shape, names = (self.replicas, self.world_size // self.replicas), ("replicate", "shard")
        # It warns of in-place operations on what blocks return; there are none.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self.mesh: DeviceMesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        if self.replicas == 1:
            self.mesh = self.mesh["shard"]

    def shard(self, network: Network) -> None:
        """See `ShardsNetworks`. The network may be on any device; its parts come to the rank's."""
        backbone, conditioner = network.backbone, network.conditioner
        assert isinstance(backbone, nn.Module)
        assert isinstance(conditioner, nn.Module)
        wholes = self._taken(network) if self.meta_init else None
        # An average is used without a backward pass, after which nothing would free what was gathered.
        trained = any(p.requires_grad for p in network.parameters())
        blocks, rest = self._block_precision(), MixedPrecisionPolicy(cast_forward_inputs=False)
        for block in backbone.get_submodule("blocks").children():
            fully_shard(
                block,
                mesh=self.mesh,
                mp_policy=blocks,
                reshard_after_forward=self.reshard_after_forward or not trained,
            )
        for part in (backbone, conditioner):
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=self.mesh, mp_policy=rest, reshard_after_forward=not trained)
        if any(True for _ in conditioner.parameters()):
            register_fsdp_forward_method(conditioner, "null")
        if wholes is not None:
            network.to_empty(device=self.root_device)
            self._hand_out(network, wholes)

    def _taken(self, network: Network) -> dict[str, Tensor]:
        """Rank 0's tensors, by name; leaves the network on the meta device."""
        tensors = dict(chain(network.named_parameters(), network.named_buffers()))
        wholes = {name: tensor.detach() for name, tensor in tensors.items() if self.global_rank == 0}
        network.to("meta")
        return wholes

    @torch.no_grad()
    def _hand_out(self, network: Network, wholes: dict[str, Tensor]) -> None:
        """Fills the network on every rank with what rank 0 has, one tensor at a time."""
        for name, mine in chain(network.named_parameters(), network.named_buffers()):
            whole = wholes[name] if self.global_rank == 0 else torch.empty(mine.shape, dtype=mine.dtype)
            whole = whole.to(self.root_device)
            torch.distributed.broadcast(whole, src=0)
            mine.copy_(self._split(whole, mine) if isinstance(mine, DTensor) else whole)

    def _block_precision(self) -> MixedPrecisionPolicy:
        # Only weights are cast: what flows between blocks stays float32, and autocast decides as usual.
        bf16 = (
            torch.bfloat16 if self.gather_bf16 and self.precision_plugin.precision == "bf16-mixed" else None
        )
        return MixedPrecisionPolicy(
            param_dtype=bf16, reduce_dtype=bf16 and torch.float32, cast_forward_inputs=False
        )

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return optimizer.state_dict()

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None
    ) -> None:
        path = Path(
            self.broadcast(filepath)
        )  # ranks that were started at another second have another run_dir
        folder = path.with_name(self.broadcast(new_folder(path, checkpoint["global_step"])))
        folder.mkdir(parents=True, exist_ok=True)
        io = self.checkpoint_io
        assert isinstance(io, AtomicCheckpointIO)
        if not io.background:
            write_sharded(checkpoint, path, folder)
            return
        if self._writers is None:  # what is said while writing must not meet what training says
            group = torch.distributed.new_group(backend="gloo")
            assert isinstance(group, torch.distributed.ProcessGroup)
            self._writers = group
        copied, writers = snapshot(checkpoint), self._writers
        io.writer.start(lambda: write_sharded(copied, path, folder, group=writers))

    def teardown(self) -> None:
        self.checkpoint_io.teardown()
        super().teardown()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """A checkpoint of any strategy, with this rank's parts of what is sharded."""
        path = Path(self.broadcast(checkpoint_path))
        if is_sharded(path):
            return read_sharded(path, empty=self._empty)
        return replaced(read_raw(path), self._part)

    def _empty(self, keys: Keys, form: Tensor) -> Tensor:
        like = self._like(keys)
        if like is None or like.shape != form.shape:
            return torch.empty_like(form, device=self.root_device)
        return torch.empty_like(like, dtype=form.dtype)

    def _part(self, keys: Keys, whole: Tensor) -> Tensor:
        like = self._like(keys)
        if like is None or like.shape != whole.shape:
            return whole
        return self._split(whole.to(self.root_device), like)

    @staticmethod
    def _split(whole: Tensor, like: DTensor) -> DTensor:
        """This rank's part of what every rank has; nothing is sent."""
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

    def _like(self, keys: Keys) -> DTensor | None:
        """The parameter that a tensor of a checkpoint belongs to, if it is sharded."""
        assert self.lightning_module is not None
        network = self.lightning_module.get_submodule("network")
        parameters = dict(network.named_parameters())
        match keys:
            case ("state_dict", str(name)):
                found = parameters.get(name.removeprefix("network."))
            case ("ema", _, "network", str(name)):
                found = parameters.get(name)
            case ("optimizer_states", int(optimizer), "state", int(number), _):
                groups = self.optimizers[optimizer].param_groups
                found = [parameter for group in groups for parameter in group["params"]][number]
            case _:
                found = None
        return found if isinstance(found, DTensor) else None
