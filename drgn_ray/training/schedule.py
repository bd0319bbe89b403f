"""Learning rate, the shells that are compared, and what is trained yet, as functions of the images seen."""

from __future__ import annotations

import math

from drgn_ray.config import TrainingConfig

EARLY_SHARE = 1 / 3  # of the training


def compared_radius(training: TrainingConfig, images_seen: int, images_per_epoch: int, box_size: int) -> int | None:
    """Largest |k| at which images are compared: a quarter of the box while training is coarse, then None (all)."""
    is_coarse = images_seen < training.coarse_share * training.num_epochs * images_per_epoch
    return box_size // 4 if is_coarse else None


def is_early(training: TrainingConfig, images_seen: int, images_per_epoch: int) -> bool:
    """Whether `Model.late_parameters` are still left as they are."""
    return images_seen < EARLY_SHARE * training.num_epochs * images_per_epoch


def learning_rate(training: TrainingConfig, images_seen: int, images_per_epoch: int) -> float:
    """Linear warm-up, then constant or a half cosine to zero at the last epoch's end."""
    epoch = images_seen / images_per_epoch
    if epoch < training.warmup_epochs:
        return training.lr * epoch / training.warmup_epochs
    if training.lr_schedule == "constant":
        return training.lr
    share = (epoch - training.warmup_epochs) / max(training.num_epochs - training.warmup_epochs, 1e-9)
    return training.lr * 0.5 * (1 + math.cos(math.pi * min(share, 1)))
