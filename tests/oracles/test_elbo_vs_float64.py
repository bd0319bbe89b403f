"""Loss and gradients of a batch against cryoDRGN's formulas, written anew in float64 on the whole Hartley disc."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from drgn_ray.config import ModelConfig
from drgn_ray.models import build_model
from drgn_ray.models.vae import VAE

BATCH, ZDIM, HARTLEY_STD = 5, 3, 7.5
Parameters = dict[str, Tensor]


def random_batch(size: int) -> dict[str, Tensor]:
    rng = np.random.default_rng(size)
    uniform = {
        "apix": (2.0, 4.0),
        "defocus_u": (8e3, 2e4),
        "defocus_v": (8e3, 2e4),
        "defocus_angle": (-90, 90),
        "voltage": (200, 300),
        "cs": (1.0, 2.7),
        "amplitude_contrast": (0.05, 0.2),
        "phase_shift": (0, 90),
    }
    columns = {name: rng.uniform(*bounds, BATCH) for name, bounds in uniform.items()}
    columns["images"] = rng.normal(size=(BATCH, size, size))
    columns["rotation"] = Rotation.random(BATCH, rng=rng).as_matrix()
    columns["translation"] = rng.normal(0, 5, (BATCH, 2))
    return {name: torch.tensor(values, dtype=torch.float32) for name, values in columns.items()}


def network(size: int, pe_type: str) -> VAE:
    torch.manual_seed(0)
    settings = ModelConfig(zdim=ZDIM, enc_dim=24, enc_layers=2, dec_dim=20, dec_layers=2, pe_type=pe_type, beta=0.7)
    return build_model(settings, box_size=size, data_sign=-1, hartley_std=HARTLEY_STD, ctf=True)


def lattice(size: int) -> tuple[Tensor, Tensor]:
    """All (D+1)² frequencies (x, y), cycles/px, row by row, and which of them are in the disc."""
    axis = torch.arange(-size // 2, size // 2 + 1, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = (x**2 + y**2 <= (size / 2) ** 2) & ((x != 0) | (y != 0))
    return torch.stack([x, y], dim=-1).reshape(-1, 2) / size, inside.flatten()


def hartley_on_lattice(images: Tensor) -> Tensor:
    """Window, inversion, centred Hartley transform, Nyquist copied to the far side, normalisation."""
    size = images.shape[-1]
    axis = torch.linspace(-1, 1, size + 1, dtype=torch.float64)[:-1]
    radius = (axis[:, None] ** 2 + axis[None, :] ** 2).sqrt()
    window = torch.where(radius <= 0.85, 1.0, torch.where(radius >= 0.99, 0.0, (0.99 - radius) / (0.99 - 0.85)))
    shift = (size // 2, size // 2)
    rolled = torch.roll(images * window * -1, shift, (-2, -1))
    spectrum = torch.roll(torch.fft.fft2(rolled), shift, (-2, -1))
    transform = spectrum.real - spectrum.imag
    larger = torch.zeros(len(images), size + 1, size + 1, dtype=torch.float64)
    larger[:, :size, :size] = transform
    larger[:, size, :size] = transform[:, 0, :]
    larger[:, :size, size] = transform[:, :, 0]
    larger[:, size, size] = transform[:, 0, 0]
    return larger.reshape(len(images), -1) / HARTLEY_STD


def ctf_on_lattice(freq: Tensor, batch: dict[str, Tensor]) -> Tensor:
    column = {name: values[:, None] for name, values in batch.items() if values.ndim == 1}
    x, y = freq[:, 0] / column["apix"], freq[:, 1] / column["apix"]
    s2, volts = x**2 + y**2, column["voltage"] * 1000
    wavelength = 12.2639 / torch.sqrt(volts + 0.97845e-6 * volts**2)
    u, v, degree = column["defocus_u"], column["defocus_v"], math.pi / 180
    defocus = 0.5 * (u + v + (u - v) * torch.cos(2 * (torch.atan2(y, x) - column["defocus_angle"] * degree)))
    gamma = 2 * math.pi * (-0.5 * defocus * wavelength * s2 + 0.25 * column["cs"] * 1e7 * wavelength**3 * s2**2)
    gamma = gamma - column["phase_shift"] * degree
    w = column["amplitude_contrast"]
    return torch.sqrt(1 - w**2) * torch.sin(gamma) - w * torch.cos(gamma)


def residual_mlp(weights: Parameters, prefix: str, x: Tensor) -> Tensor:
    def linear(name: str, values: Tensor) -> Tensor:
        return values @ weights[f"{prefix}.{name}.weight"].T + weights[f"{prefix}.{name}.bias"]

    x = torch.relu(linear("first", x))
    layer = 0
    while f"{prefix}.residual.{layer}.weight" in weights:
        x = torch.relu(x + linear(f"residual.{layer}", x))
        layer += 1
    return linear("last", x)


def slice_values(weights: Parameters, frequencies: Tensor, points: Tensor, z: Tensor) -> Tensor:
    """Hartley values of one image at half of the disc's points, then at the mirrored half."""
    upper = points[:, 2] > 0
    lower_half = torch.where(upper[:, None], -points, points)
    angle = lower_half @ frequencies.T
    features = torch.cat([torch.sin(angle), torch.cos(angle), z.expand(len(points), -1)], dim=1)
    real, imag = residual_mlp(weights, "decoder.mlp", features).unbind(-1)
    imag = torch.where(upper, -imag, imag)
    return torch.cat([real - imag, (real + imag).flip(0)])


def reference_loss(model: VAE, batch: dict[str, Tensor], eps: Tensor | None) -> tuple[Tensor, Parameters]:
    """The loss in float64, and the leaves it can be differentiated for."""
    batch = {name: values.double() for name, values in batch.items()}
    weights = {name: p.detach().double().requires_grad_() for name, p in model.named_parameters()}
    frequencies = model.decoder.frequencies.double()
    freq, inside = lattice(batch["images"].shape[-1])
    transform = hartley_on_lattice(batch["images"])
    angle = 2 * math.pi * (batch["translation"] / batch["apix"][:, None]) @ freq.T
    observed = (torch.cos(angle) * transform + torch.sin(angle) * transform.flip(1))[:, inside]
    ctf = ctf_on_lattice(freq, batch)[:, inside]
    z_mu, z_logvar = residual_mlp(weights, "encoder.mlp", observed * torch.sign(ctf)).chunk(2, dim=1)
    z = z_mu if eps is None else z_mu + eps.double() * torch.exp(0.5 * z_logvar)
    disc = freq[inside]
    half = torch.cat([disc[: len(disc) // 2], torch.zeros(len(disc) // 2, 1, dtype=torch.float64)], dim=1)
    predicted = torch.stack(
        [slice_values(weights, frequencies, half @ turn, one) for turn, one in zip(batch["rotation"], z, strict=True)]
    )
    recon = ((ctf * predicted - observed) ** 2).mean()
    kld = (-0.5 * (1 + z_logvar - z_mu**2 - torch.exp(z_logvar)).sum(dim=1)).mean()
    return recon + 0.7 * kld / len(disc), weights


@pytest.mark.parametrize("pe_type", ["gaussian", "geom_ft"])
@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("training", [True, False])
def test_loss_and_gradients_of_a_batch_are_cryodrgns_formulas(size: int, pe_type: str, training: bool) -> None:
    model, batch = network(size, pe_type), random_batch(size)
    model.train(training)
    torch.manual_seed(1)
    eps = torch.randn(BATCH, ZDIM) if training else None
    torch.manual_seed(1)
    ours = model(batch).loss
    ours.backward()
    expected, leaves = reference_loss(model, batch, eps)
    expected.backward()
    assert ours.item() == pytest.approx(expected.item(), rel=2e-6)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert leaves[name].grad is not None, name
        difference = (parameter.grad.double() - leaves[name].grad).norm() / leaves[name].grad.norm()
        assert difference < 3e-5, f"{name}: {difference:.1e}"
