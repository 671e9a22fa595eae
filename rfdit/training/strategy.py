"""The strategies by which a run is spread over devices."""

import warnings
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from rfdit.checkpoint.kept import Keeping
from rfdit.checkpoint.saved_run import read_raw
from rfdit.checkpoint.sharded import (
    TensorKeys,
    is_sharded,
    new_folder,
    read_sharded,
    replaced,
    write_sharded,
)
from rfdit.limits import Count, Limit
from rfdit.network import TRAINING_ONLY, Network
from rfdit.training.checkpoint_io import WritesInBackground, snapshot

YEAR = 365 * 24 * 60  # in minutes; far longer ones overflow in torch
Minutes = Annotated[float, Limit(f"more than 0 and at most {YEAR}, a year", lambda n: 0 < n <= YEAR)]


@runtime_checkable
class ShardsNetworks(Protocol):
    """A strategy that shards every network before the first step."""

    def shard(self, network: Network) -> None:
        """Replace the network's parameters with this rank's parts of them."""
        ...


def starts_empty(trainer: L.Trainer) -> bool:
    """True if this process gets its weights from rank 0 and need not initialise its own."""
    return getattr(trainer.strategy, "meta_init", False) and not trainer.is_global_zero


def single() -> Strategy | None:
    """A run on one device."""
    return None


def ddp(*, timeout_minutes: Minutes = 30) -> Strategy:
    """A replica of the network on every device, gradients averaged.

    timeout_minutes: how long ranks wait for each other before the run fails.
    """
    return DDPStrategy(gradient_as_bucket_view=True, timeout=timedelta(minutes=timeout_minutes))


class FullySharded(ModelParallelStrategy):
    """FSDP2: every rank holds a part of the weights, gradients, optimiser state and averages.

    It shards each transformer block, the rest of the backbone, and the conditioner.

    replicas: number of groups of ranks that each hold the whole state in parts (HSDP); 1 spreads it over
        all ranks.
    reshard_after_forward: gather a block's weights again for the backward pass, instead of keeping
        them in between: less memory, more traffic.
    gather_bf16: send the weights of blocks as bf16, in which their matrix products are computed anyway.
        Gradients are reduced in float32.
    meta_init: only rank 0 has the whole backbone, in the CPU's memory; the others get their parts from it.
    timeout_minutes: how long ranks wait for each other before the run fails.
    """

    def __init__(
        self,
        *,
        replicas: Count = 1,
        reshard_after_forward: bool = True,
        gather_bf16: bool = True,
        meta_init: bool = False,
        timeout_minutes: Minutes = 30,
    ) -> None:
        super().__init__(timeout=timedelta(minutes=timeout_minutes))
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
        # Lightning's mesh has a second dimension, for tensor parallelism, which is not used here.
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()
        shape, names = (self.replicas, self.world_size // self.replicas), ("replicate", "shard")
        # The warning is about in-place operations on the blocks' outputs; there are none.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        self.mesh: DeviceMesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        if self.replicas == 1:
            self.mesh = self.mesh["shard"]

    def shard(self, network: Network) -> None:
        """Shard a network on any device; its parts are moved to the device of the rank."""
        backbone, conditioner = network.get_submodule("backbone"), network.get_submodule("conditioner")
        wholes = self._detach_tensors(network) if self.meta_init else None
        # An average is used without a backward pass, after which nothing would free what was gathered.
        trained = any(p.requires_grad for p in network.parameters())
        blocks, rest = self._block_precision(), MixedPrecisionPolicy(cast_forward_inputs=False)
        for block in network.backbone.blocks:
            fully_shard(
                block,
                mesh=self.mesh,
                mp_policy=blocks,
                reshard_after_forward=self.reshard_after_forward or not trained,
            )
        others = [module for name, module in network.named_children() if name in TRAINING_ONLY]
        for part in (backbone, conditioner, *others):
            if any(True for _ in part.parameters()):
                fully_shard(part, mesh=self.mesh, mp_policy=rest, reshard_after_forward=not trained)
        if any(True for _ in conditioner.parameters()):
            register_fsdp_forward_method(conditioner, "null")
        if wholes is not None:
            network.to_empty(device=self.root_device)
            self._distribute(network, wholes)

    def _detach_tensors(self, network: Network) -> dict[str, Tensor]:
        """The tensors of rank 0 by name; moves the network to the meta device."""
        tensors = dict(chain(network.named_parameters(), network.named_buffers()))
        wholes = {name: tensor.detach() for name, tensor in tensors.items() if self.global_rank == 0}
        network.to("meta")
        return wholes

    @torch.no_grad()
    def _distribute(self, network: Network, wholes: dict[str, Tensor]) -> None:
        """Fill the network on every rank from the tensors of rank 0, one at a time."""
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
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Keeping | None = None
    ) -> None:
        # That of rank 0: a rank that started a second later has another run_dir.
        path = Path(self.broadcast(filepath))
        folder = path.with_name(self.broadcast(new_folder(path, checkpoint["global_step"])))
        folder.mkdir(parents=True, exist_ok=True)
        io = self.checkpoint_io

        def write(state: dict[str, Any], group: torch.distributed.ProcessGroup | None = None) -> None:
            write_sharded(state, path, folder, group=group)
            if storage_options is not None and self.is_global_zero:
                storage_options.after_writing(path)

        if not (isinstance(io, WritesInBackground) and io.background):
            write(checkpoint)
            return
        if self._writers is None:  # its messages must not mix with those of training
            group = torch.distributed.new_group(backend="gloo")
            assert isinstance(group, torch.distributed.ProcessGroup)
            self._writers = group
        copied, writers = snapshot(checkpoint), self._writers
        io.writer.start(lambda: write(copied, writers))

    def teardown(self) -> None:
        self.checkpoint_io.teardown()
        super().teardown()

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Reads this rank's parts of a checkpoint, which any strategy may have written."""
        path = Path(self.broadcast(checkpoint_path))
        if is_sharded(path):
            return read_sharded(path, empty=self._empty)
        return replaced(read_raw(path), self._part)

    def _empty(self, keys: TensorKeys, form: Tensor) -> Tensor:
        like = self._like(keys)
        if like is None or like.shape != form.shape:
            return torch.empty_like(form, device=self.root_device)
        return torch.empty_like(like, dtype=form.dtype)

    def _part(self, keys: TensorKeys, whole: Tensor) -> Tensor:
        like = self._like(keys)
        if like is None or like.shape != whole.shape:
            return whole
        return self._split(whole.to(self.root_device), like)

    @staticmethod
    def _split(whole: Tensor, like: DTensor) -> DTensor:
        """This rank's part of a tensor that every rank has; nothing is sent."""
        return distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)

    def _like(self, keys: TensorKeys) -> DTensor | None:
        """The sharded parameter that a tensor of a checkpoint belongs to; None if there is none."""
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
