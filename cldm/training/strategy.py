"""FSDP2 for Lightning's trainer (configs/trainer/fsdp.yaml), with the checkpoints of a run in one process."""

from collections.abc import Mapping
from typing import Any

import torch
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch.optim import Optimizer

from ldm.sharding import share_like, whole


class ShardedData(ModelParallelStrategy):
    """Every process trains on examples of its own and holds its part of the weights (ldm.sharding.shard).

    Checkpoints are single files with whole tensors and the optimizer's state in its usual form, so that they go on
    under any trainer and number of processes. Weights that are frozen are neither gathered nor saved.
    """

    lightning_restore_optimizer = True
    load_checkpoint = Strategy.load_checkpoint  # a file with all of it; the parts are taken below

    def __init__(self, process_group_backend: str | None = None):
        super().__init__(
            tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend=process_group_backend
        )

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        frozen = {name for name, p in self.lightning_module.named_parameters() if not p.requires_grad}
        state = self.lightning_module.state_dict()
        return {name: whole(state[name]).cpu() for name in state if name not in frozen}

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own, saved = self.lightning_module.state_dict(), checkpoint["state_dict"]
        with torch.no_grad():
            for name in saved:
                own[name].copy_(share_like(saved[name], own[name]))

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        state = optimizer.state_dict()
        return {**state, "state": {i: _each(held, _to_save) for i, held in state["state"].items()}}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            shared = {
                i: _each(held, lambda value, p=parameters[i]: share_like(value, p) if value.shape == p.shape else value)
                for i, held in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": shared})


def _each(held: Mapping[str, Any], change: Any) -> dict[str, Any]:
    return {key: change(value) if isinstance(value, torch.Tensor) else value for key, value in held.items()}


def _to_save(value: torch.Tensor) -> torch.Tensor:
    return whole(value).cpu()
