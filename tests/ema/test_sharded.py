"""Averages of a network that FSDP2 shards over two processes, against those of a whole one."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rfdit.batch import Condition
from rfdit.conditioning import LabelConditioner
from rfdit.ema import Averages, FixedDecay, PowerFunction, Snapshots
from rfdit.ema.snapshots import Snapshot
from rfdit.model import DiT
from rfdit.network import Network

PROFILES = {"fixed": FixedDecay(decay=0.9), "power": PowerFunction(std=0.1)}
RANKS, WIDTH = 2, 12


def make_network() -> Network:
    """The same on every rank; with a bias of one number, of which the second rank has none."""
    torch.manual_seed(0)
    backbone = DiT(width=WIDTH, depth=2, num_heads=2, patch_size=2, in_channels=1, input_size=4)
    backbone.register_parameter("single", torch.nn.Parameter(torch.randn(1)))
    return Network(backbone=backbone, conditioner=LabelConditioner(num_classes=4, width=WIDTH))


def shard(network: Network, mesh: DeviceMesh) -> None:
    assert isinstance(network.backbone, DiT)
    for block in network.backbone.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(network.backbone, mesh=mesh, reshard_after_forward=True)
    assert isinstance(network.conditioner, torch.nn.Module)
    fully_shard(network.conditioner, mesh=mesh)


@torch.no_grad()
def move(network: Network, seed: int) -> None:
    """A step of training, the same whether sharded or not."""
    generator = torch.Generator().manual_seed(seed)
    for p in network.parameters():
        change = torch.randn(p.shape, generator=generator)
        if p.requires_grad:
            if isinstance(p, DTensor):
                change = distribute_tensor(change, p.device_mesh, p.placements)
            p.add_(change)


def values(network: Network) -> dict[str, Tensor]:
    state = network.state_dict()
    return {name: v.full_tensor() if isinstance(v, DTensor) else v for name, v in state.items()}


def compare(sharded: Averages, whole: Averages) -> None:
    assert sharded.updates == whole.updates
    for name, network in whole.networks.items():
        gathered = values(sharded.networks[name])
        assert gathered.keys() == network.state_dict().keys()
        for key, value in network.state_dict().items():
            assert torch.equal(gathered[key], value), (name, key)


def check_rank(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS)
    mesh = init_device_mesh("cpu", (RANKS,))
    networks = make_network(), make_network()
    sharded, whole = (Averages(network=network, profiles=PROFILES) for network in networks)
    for network in (networks[0], *sharded.networks.values()):
        shard(network, mesh)
    sharded.to(torch.device("cpu"))
    sharded.start(networks[0], {})
    whole.start(networks[1], {})
    for step in range(4):
        for network, averages in zip(networks, (sharded, whole)):
            move(network, step)
            averages.update()
    compare(sharded, whole)
    assert any(p.to_local().numel() == 0 for p in networks[0].parameters()) == (rank == 1)  # type: ignore[operator]

    # A forward pass gathers an average's weights for a while; it goes on as it was.
    latents, condition = torch.randn(2, 1, 4, 4), Condition(pooled=torch.randn(2, WIDTH))
    with torch.no_grad():
        outputs = [a.networks["power"].backbone(latents, torch.rand(2), condition) for a in (sharded, whole)]
    assert all(output.isfinite().all() for output in outputs)
    for network, averages in zip(networks, (sharded, whole)):
        move(network, 4)
        averages.update()
    compare(sharded, whole)

    check_snapshots(rank, folder, sharded, whole)

    # On from a whole state and from a sharded one, as after a change of strategy and without.
    for saved in (whole.state_dict(), sharded.state_dict()):
        resumed_network = make_network()
        resumed = Averages(network=resumed_network, profiles=PROFILES)
        for network in (resumed_network, *resumed.networks.values()):
            shard(network, mesh)
        resumed.start(resumed_network, saved)
        compare(resumed, whole)
    dist.barrier()  # no rank leaves while another still reads from it
    dist.destroy_process_group()


def check_snapshots(rank: int, folder: Path, sharded: Averages, whole: Averages) -> None:
    """Every rank gathers, one writes, and the file is that of a whole network."""
    mark = Snapshot(profile="power", std=0.1, updates=5, step=5)
    for name, averages in (("sharded", sharded), ("whole", whole)):
        Snapshots(folder=str(folder / name), every_n_steps=5).write(
            mark, averages.trained_part("power"), writes=rank == 0
        )
    dist.barrier()
    gathered, stored = (
        load_file(folder / name / "power_00000005.safetensors") for name in ("sharded", "whole")
    )
    assert gathered.keys() == stored.keys()
    assert all(torch.equal(gathered[key], value) for key, value in stored.items())
    assert os.listdir(folder / "sharded") == os.listdir(folder / "whole")


@pytest.mark.slow
def test_sharded_averages_are_bit_equal_to_whole_ones(tmp_path: Path) -> None:
    mp.spawn(check_rank, args=(tmp_path,), nprocs=RANKS)
