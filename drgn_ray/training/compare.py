"""How well models tell images that none of them was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from drgn_ray.models.em import shells_of
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.model import Model

NUM_DRAWS = 4  # of each image's latent
CLEAR = 2  # standard errors by which a model must be better
MOST_IMAGES = 2_000


class Gain(NamedTuple):
    """Mean difference of two models' evidence lower bounds, nats an image, and its standard error."""

    mean: float
    error: float

    @property
    def is_clear(self) -> bool:
        """Whether the first model is better by more than chance."""
        return self.is_beyond(CLEAR)

    def is_beyond(self, errors: int) -> bool:
        """Whether the difference is so many standard errors."""
        return self.mean > errors * self.error

    def __str__(self) -> str:
        return f"{self.mean:+.3f} ± {self.error:.3f}"


def gain(model: Float64[np.ndarray, " n"], other: Float64[np.ndarray, " n"]) -> Gain:
    """Compare the bounds of the same images."""
    difference = model - other
    return Gain(float(difference.mean()), float(difference.std() / np.sqrt(len(difference))))


class Comparison(NamedTuple):
    """What a model and the linear subspace gain over one volume for all, on images that neither was fitted to."""

    num_images: int
    has_latents: bool
    model: Gain
    linear: Gain
    model_over_linear: Gain | None

    @property
    def verdict(self) -> str:
        """Say whether the model was worth it."""
        started_from = "the linear subspace" if self.has_latents else "the one volume"
        if self.model_over_linear is None:
            return f"{self.model} nats an image better than one volume for all"
        if self.model_over_linear.is_clear:
            return f"better than {started_from} that it started from, by {self.model_over_linear} nats an image"
        return (
            f"not (yet) worth its cost: {self.model_over_linear} nats an image against {started_from} it started from"
        )


def compare(model: Model, linear: LinearSubspace, batches: Callable[[], Iterable[Mapping[str, Tensor]]]) -> Comparison:
    """Compare a model with the subspace that it started from and with its consensus.

    Parameters
    ----------
    linear
        The subspace; or the model itself, if it is one.
    batches
        Gives held-out images, as often as it is called.
    """
    of_model, of_consensus = (evidence_bounds(each, linear, batches()) for each in (model, one_volume(linear)))
    over_consensus = gain(of_model, of_consensus)
    if model is linear:
        return Comparison(len(of_model), linear.zdim > 0, over_consensus, over_consensus, None)
    of_linear = evidence_bounds(linear, linear, batches())
    over_linear = gain(of_model, of_linear)
    return Comparison(len(of_model), linear.zdim > 0, over_consensus, gain(of_linear, of_consensus), over_linear)


def one_volume(linear: LinearSubspace) -> LinearSubspace:
    """Make the model that has the mean of a subspace and no latents."""
    consensus = LinearSubspace(observe=linear.observe)
    consensus.start_from(linear.subspace.leading(0), int(linear.radius))
    return consensus.to(linear.observer.k.device)


@torch.inference_mode()
def evidence_bounds(
    model: Model, linear: LinearSubspace, batches: Iterable[Mapping[str, Tensor]], radius: int | None = None
) -> Float64[np.ndarray, " n"]:
    """Evidence lower bound of each image, less the log-likelihood of there being noise alone.

    A model of downsampled images says nothing of the shells beyond.

    Parameters
    ----------
    linear
        Whose noise and whose view of the images (without a window) is taken for all models.
    radius
        Shells up to which images are compared; None: all.
    """
    observer = linear.observer
    shell, device = shells_of(observer.k), observer.k.device
    noise = torch.where(shell <= (radius or observer.box_size), linear.noise[shell], torch.inf)
    said = observer.half_disc.radius <= model.observer.half_disc.radius.max()
    parts = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for batch in batches:
            batch = {name: values.to(device) for name, values in batch.items()}
            seen = observer(batch)
            bound = torch.zeros(len(seen.rotation), device=device)
            for _ in range(NUM_DRAWS):
                z, kld = model.draw(batch)
                slices = torch.complex(*model.decode_slices(z, seen.rotation)) * seen.ctf[:, said]
                misfit = (seen.coefficients[:, said] - slices).abs() ** 2 - seen.coefficients[:, said].abs() ** 2
                bound -= ((misfit / noise[said]).sum(dim=1) + kld) / NUM_DRAWS
            parts.append(bound.double().cpu().numpy())
    return np.concatenate([np.zeros(0), *parts])
