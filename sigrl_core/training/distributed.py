"""Statistics of the global batch of a data-parallel training."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sigrl_core.data.dataset import Batch
from sigrl_core.training import losses


class DistributedReducer(losses.BatchReducer):
    """Reduces over the images of one step on all workers; padding rows (weight 0) do not count."""

    def __init__(self, batch: Batch, device: torch.device, world_size: int) -> None:
        self.world_size, self.counts_B = world_size, batch.weight_B > 0
        # DDP averages gradients over workers, so each worker divides the sum of its rows by the mean number of rows.
        self.share_B = batch.weight_B.to(device) * world_size / batch.global_rows

    def local_mean(self, values_B: Tensor) -> Tensor:
        return (values_B * self.share_B).sum()

    def all_reduce_mean(self, values_B: Tensor) -> Tensor:
        local = self.local_mean(values_B)
        if self.world_size == 1:
            return local
        total = local.detach() / self.world_size
        dist.all_reduce(total)
        return local + (total - local.detach())  # the value of all workers, the gradient of the local rows

    def all_gather(self, values_BC: Tensor) -> Tensor:
        local = values_BC.detach()[self.counts_B.to(values_BC.device)]
        return torch.cat([rows.to(local.device) for rows in all_gather_objects(local.cpu())])


def all_gather_objects(local: Any) -> list[Any]:
    """Returns one object of every worker, in the order of ranks; a list of one without a process group."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [local]
    all_ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(all_ranks, local)
    return all_ranks
