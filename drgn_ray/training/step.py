"""One step of the optimiser: a batch in parts through the model, gradients shared among workers, Adam."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from drgn_ray.config import TrainingConfig
from drgn_ray.models.elbo import ElboTerms, Sample
from drgn_ray.models.model import Model
from drgn_ray.physics.observation import DAMPING_COLUMNS, OBSERVED_COLUMNS

# Points of the half-disc that go through a network at once, in whole images: what fills a GPU but not the memory of a
# small one (9 GB of activations of a network of 10 layers of 1024); on a CPU `one_pass` cuts them further.
POINTS_AT_ONCE = {"cpu": 102_400, "cuda": 262_144}
_LOOKED_AT = (*OBSERVED_COLUMNS, *DAMPING_COLUMNS)


class Step:
    """Steps a model, which is on its device, over batches.

    Parameters
    ----------
    bf16
        Run in bfloat16 what autocast takes to it.
    world_size
        Data-parallel workers, of which this process is one.
    compress_gradients
        Send gradients to the other workers in bfloat16.
    """

    def __init__(
        self,
        model: Model,
        training: TrainingConfig,
        *,
        bf16: bool,
        world_size: int = 1,
        compress_gradients: bool = False,
    ) -> None:
        self.model, self.bf16 = model, bf16
        self.device = model.observer.k.device
        self.points_share = training.points_share
        self.points: dict[int | None, Tensor] = {}  # by the radius up to which they are
        self.optimizer = torch.optim.Adam(
            model.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True
        )
        self.is_sound = torch.ones((), dtype=torch.bool, device=self.device)
        """Whether the gradients of the last step were numbers; if not, weights and moments stayed as they were."""
        self.parallel = model if world_size == 1 else _shared(model, compress_gradients=compress_gradients)

    def __call__(
        self, batch: Mapping[str, Tensor], lr: float, radius: int | None = None, *, early: bool = False
    ) -> ElboTerms:
        """Take a step; means over the batch, on the device, which is not waited for.

        Where a gradient is no number, weights and moments stay as they are: see `is_sound`.

        Parameters
        ----------
        lr
            Learning rate.
        radius
            Largest |k| at which images are compared with slices; None: D/2.
        early
            Leave the model's `late_parameters` as they are.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        within = self._within(radius)
        num_points = max(round(self.points_share * len(within)), 1)
        at_once = max(POINTS_AT_ONCE[self.device.type] // num_points, 1)
        self.optimizer.zero_grad(set_to_none=True)
        batch, count = to_device(batch, self.device), len(batch["images"])
        means = torch.zeros(len(ElboTerms._fields), device=self.device)
        for first in range(0, count, at_once):
            sample = self._sampled(within, num_points)
            part = {name: values[first : first + at_once] for name, values in batch.items()}
            share = len(part["images"]) / count
            with self._reducing(last=first + at_once >= count):
                with autocast(self.device, self.bf16):
                    terms = self.parallel(part, sample)
                (terms.loss * share).backward()
            means += torch.stack([term.detach() for term in terms]) * share
        if early:
            for parameter in self.model.late_parameters():
                parameter.grad = None
        # Of all workers' batches, so that all leave out the same steps; nothing waits for the device.
        self.is_sound = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None]).isfinite()
        vars(self.optimizer)["found_inf"] = (~self.is_sound).float()  # as torch.amp.GradScaler tells a fused optimiser
        self.optimizer.step()
        return ElboTerms(*means)

    def _within(self, radius: int | None) -> Tensor:
        """Rows of the observer's points up to a radius."""
        if radius not in self.points:
            points = self.model.observer.half_disc
            within = points.radius <= (points.box_size if radius is None else radius)
            self.points[radius] = torch.nonzero(within)[:, 0]
        return self.points[radius]

    def _sampled(self, within: Tensor, count: int) -> Sample | None:
        """Draw points for a part of a batch, so that every one has the same chance; None: all that there are."""
        if count == self.model.observer.num_points:
            return None
        return Sample(within[torch.randperm(len(within), device=self.device)[:count]], len(within))

    def _reducing(self, *, last: bool) -> AbstractContextManager[None]:
        """Share gradients with the other workers in the last part of a batch alone."""
        if last or not isinstance(self.parallel, DistributedDataParallel):
            return nullcontext()
        return self.parallel.no_sync()


def _shared(model: Model, *, compress_gradients: bool) -> DistributedDataParallel:
    """Let the backward pass average gradients over the workers; buffers are the same in all of them anyway."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the argument's next name is not in older versions of torch
        shared = DistributedDataParallel(model, broadcast_buffers=False)
    if compress_gradients:
        # The hook itself would be refused without NCCL, though Gloo adds up bfloat16 as well.
        shared.register_comm_hook(None, lambda state, bucket: default_hooks.bf16_compress_hook(state, bucket))
    return shared


def to_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move what a model looks at."""
    return {name: batch[name].to(device, non_blocking=True) for name in _LOOKED_AT}


def pinned(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put what a model looks at into memory that a GPU copies from while it computes."""
    return {**batch, **{name: batch[name].pin_memory() for name in _LOOKED_AT}}


def autocast(device: torch.device, bf16: bool) -> torch.autocast:
    """Arithmetic of a model's networks."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
