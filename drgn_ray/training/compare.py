"""How well models tell images that none of them was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from drgn_ray.models.elbo import kl_divergence, sample_latent
from drgn_ray.models.em import shells_of
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.model import Model

NUM_DRAWS = 4  # of each image's latent
CLEAR = 1.0  # standard errors by which a model must be better


class Gain(NamedTuple):
    """Mean difference of two models' evidence lower bounds, nats an image, and its standard error."""

    mean: float
    error: float

    @property
    def is_clear(self) -> bool:
        """Whether the first model is better by more than chance."""
        return self.mean > CLEAR * self.error

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.error:.2f}"


def gain(model: Float64[np.ndarray, " n"], other: Float64[np.ndarray, " n"]) -> Gain:
    """Compare the bounds of the same images."""
    difference = model - other
    return Gain(float(difference.mean()), float(difference.std() / np.sqrt(len(difference))))


class Comparison(NamedTuple):
    """What a model and the linear subspace gain over one volume for all, on images that neither was fitted to."""

    num_images: int
    model: Gain
    linear: Gain
    model_over_linear: Gain

    @property
    def verdict(self) -> str:
        """Say whether the model was worth it."""
        if self.model_over_linear == Gain(0.0, 0.0):
            return f"the linear subspace, better than one volume for all by {self.linear} nats an image"
        if self.model_over_linear.is_clear:
            return f"better than the linear subspace by {self.model_over_linear} nats an image"
        return (
            f"not (yet) worth its cost: {self.model_over_linear} nats an image against the linear subspace that it"
            " started from"
        )


def compare(model: Model, linear: LinearSubspace, batches: Callable[[], Iterable[Mapping[str, Tensor]]]) -> Comparison:
    """Compare a model with the subspace that it started from and with its consensus.

    Parameters
    ----------
    batches
        Gives held-out images, as often as it is called.
    """
    consensus = LinearSubspace(observe=linear.observe)
    consensus.start_from(linear.subspace.leading(0), int(linear.radius))
    of_model, of_linear, of_consensus = (
        evidence_bounds(each, linear, batches()) for each in (model, linear, consensus)
    )
    return Comparison(
        len(of_model), gain(of_model, of_consensus), gain(of_linear, of_consensus), gain(of_model, of_linear)
    )


@torch.inference_mode()
def evidence_bounds(
    model: Model, linear: LinearSubspace, batches: Iterable[Mapping[str, Tensor]], radius: int | None = None
) -> Float64[np.ndarray, " n"]:
    """Evidence lower bound of each image, less the log-likelihood of there being noise alone.

    Parameters
    ----------
    linear
        Whose noise and whose view of the images (without a window) is taken for all models.
    radius
        Shells up to which images are compared; None: all.
    """
    observer = linear.observer
    shell = shells_of(observer.k)
    noise = torch.where(shell <= (radius or observer.box_size), linear.noise[shell], torch.inf)
    parts = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for batch in batches:
            seen = observer(batch)
            z_mu, z_logvar = model.encode(batch)
            told = torch.zeros(len(z_mu))
            for _ in range(NUM_DRAWS):
                slices = torch.complex(*model.decode_slices(sample_latent(z_mu, z_logvar), seen.rotation)) * seen.ctf
                misfit = (seen.coefficients - slices).abs() ** 2 - seen.coefficients.abs() ** 2
                told -= (misfit / noise).sum(dim=1) / NUM_DRAWS
            parts.append((told - kl_divergence(z_mu, z_logvar).sum(dim=1)).double().numpy())
    return np.concatenate([np.zeros(0), *parts])
