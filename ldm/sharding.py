"""Weights shared out over processes by FSDP2 (torch's fully_shard): each holds a part of every tensor, gathers the
tensors of a block just before the block runs, and keeps gradients and optimizer state of its own part alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ldm.unet import Block, Middle


def shard(module: nn.Module, mesh: DeviceMesh, methods: tuple[str, ...]) -> None:
    """Share out, over the processes of `mesh`: the blocks of every U-Net and branch inside `module`, frozen ones too,
    and whatever else trains.

    methods: of `module`, that use its weights; they gather what is in none of the blocks, as its forward does.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for block in [child for child in module.modules() if isinstance(child, Block | Middle)]:
        fully_shard(block, mesh=mesh)
    frozen = {p for p in module.parameters() if not p.requires_grad}  # what is left of it is small: one copy each
    fully_shard(module, mesh=mesh, ignored_params=frozen, reshard_after_forward=True)
    for method in methods:
        register_fsdp_forward_method(module, method)


def is_sharded(module: nn.Module) -> bool:
    """Whether this process holds a part of the module's weights only."""
    return any(hasattr(p, "full_tensor") for p in module.parameters())


def writes(module: nn.Module) -> bool:
    """Whether this process writes what several have gathered of the module."""
    return not is_sharded(module) or torch.distributed.get_rank() == 0


def whole(tensor: Tensor) -> Tensor:
    """The tensor, gathered if it is shared out; then every process has to call this."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def share_like(tensor: Tensor, other: Any) -> Tensor:
    """This process's part of a whole tensor, shared out as `other` is, on its device."""
    tensor = tensor.to(other.device)
    if not hasattr(other, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, other.device_mesh, other.placements)


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Within the context every process holds all weights: methods of the module's parts may be called that gather
    nothing. Every process has to enter it and to run the same."""
    shared: list[Any] = [child for child in module.modules() if hasattr(child, "unshard")]
    for child in shared:
        child.set_reshard_after_forward(False, recurse=False)
        child.unshard()
    try:
        yield
    finally:
        for child in shared:
            child.set_reshard_after_forward(True, recurse=False)
            child.reshard()
