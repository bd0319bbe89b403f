"""The evidence lower bound, named once."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor


class ElboTerms(NamedTuple):
    """The loss and what it is made of.

    ``loss = recon_loss + beta * kld / (points of the disc)``; lower is better.
    """

    loss: Float[Tensor, ""]
    recon_loss: Float[Tensor, ""]
    kld: Float[Tensor, ""]


class Sample(NamedTuple):
    """Points at which slices are compared: rows of the observer's, and the number of points that they stand for."""

    rows: Int[Tensor, " p"]
    num_points: int


def squared_error(
    slices: tuple[Float[Tensor, "B P"], Float[Tensor, "B P"]],
    scale: Float[Tensor, "B P"],
    target: Complex[Tensor, "B P"],
) -> Float[Tensor, ""]:
    """Sum of ``|scale * F - target|²`` over the half-disc's coefficients F, of which `slices` has both parts.

    Its mean equals cryoDRGN's over the Hartley values of the whole disc: H(k)² + H(-k)² = 2 |F(k)|².
    """
    real, imag = (part * scale for part in slices)
    return ((real - target.real) ** 2 + (imag - target.imag) ** 2).sum()


def kl_divergence(z_mu: Float[Tensor, "B Z"], z_logvar: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
    """KL divergence of N(mu, exp(logvar)) from N(0, 1), nats a dimension (Kingma and Welling 2014, appendix B)."""
    return -0.5 * (1 + z_logvar - z_mu**2 - z_logvar.exp())


def elbo_terms(
    recon_loss: Float[Tensor, ""],
    z_mu: Float[Tensor, "B Z"],
    z_logvar: Float[Tensor, "B Z"],
    beta: float,
    num_points: int,
) -> ElboTerms:
    """Put the terms together; `num_points` is P of the half-disc, of which the disc has twice as many."""
    kld = kl_divergence(z_mu, z_logvar).sum(-1).mean()
    return ElboTerms(recon_loss + beta * kld / (2 * num_points), recon_loss.detach(), kld.detach())


def sample_latent(z_mu: Float[Tensor, "B Z"], z_logvar: Float[Tensor, "B Z"]) -> Float[Tensor, "B Z"]:
    """Draw z = mu + eps * sigma (the reparameterisation trick)."""
    return z_mu + torch.randn_like(z_mu) * (z_logvar / 2).exp()
