"""Encoder, decoder and volumes are consistent with one another and with what is published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from drgn_ray.config import ModelConfig
from drgn_ray.models import build_model
from drgn_ray.models.elbo import kl_divergence
from drgn_ray.models.vae import VAE
from drgn_ray.physics.observation import CTF_COLUMNS, Observer


def network(box_size: int = 16, **settings: object) -> VAE:
    torch.manual_seed(0)
    small = {"zdim": 3, "enc_dim": 16, "enc_layers": 1, "dec_dim": 32, "dec_layers": 2}
    config = ModelConfig(**(small | settings))  # type: ignore[arg-type]
    return build_model(config, box_size=box_size, data_sign=-1, hartley_std=4.0, ctf=False)


def batch(count: int, box_size: int = 16) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    rotation = Rotation.random(count, rng=np.random.default_rng(1)).as_matrix()
    return {
        "images": torch.randn(count, box_size, box_size, generator=generator),
        "rotation": torch.tensor(rotation, dtype=torch.float32),
        "translation": torch.zeros(count, 2),
        "apix": torch.ones(count),
    }


def test_a_slice_is_the_volume_at_the_turned_points() -> None:
    model, rotation = network(), batch(4)["rotation"]
    z, freq = torch.randn(4, 3), model.observer.freq
    real, imag = model.decoder.slices(z, rotation, model.observer.half_disc)
    flat = torch.cat([freq, torch.zeros(len(freq), 1)], dim=1)
    for index in range(4):
        k = flat @ rotation[index]
        expected_real, expected_imag = model.decoder.points(z[index : index + 1], k)
        assert torch.allclose(real[index], expected_real[0], atol=1e-4)
        assert torch.allclose(imag[index], expected_imag[0], atol=1e-4)


def test_the_volume_is_real_so_minus_k_is_the_conjugate() -> None:
    model, z = network(), torch.randn(2, 3)
    k = torch.rand(50, 3) - 0.5
    real, imag = model.decoder.points(z, k)
    mirrored_real, mirrored_imag = model.decoder.points(z, -k)
    assert torch.allclose(real, mirrored_real, atol=1e-6)
    assert torch.allclose(imag, -mirrored_imag, atol=1e-6)


def test_the_decoded_volumes_transform_is_the_decoder() -> None:
    model, z = network(), torch.randn(3)
    volume = model.decode_volume(z)
    axes = (-3, -2, -1)
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.fftshift(volume, dim=axes), dim=axes), dim=axes)
    k = torch.tensor([[1, 2, -3], [0, 5, 2], [-4, 0, 1], [3, -1, 0], [7, 0, 0], [0, 0, -6]])
    here, mirrored = (torch.complex(*(part[0] for part in model.decoder.points(z[None], s * k / 16))) for s in (1, -1))
    x, y, at_z = (k + 8).unbind(-1)
    # The two are one value, but for the plane k_z = 0, where the half-spaces meet and the volume has the mean.
    assert torch.allclose(spectrum[at_z, y, x], (here + mirrored.conj()) / 2, atol=1e-4)


def test_the_volume_has_nothing_beyond_nyquist() -> None:
    spectrum = torch.fft.fftn(network().decode_volume(torch.zeros(3)))
    k = torch.fft.fftfreq(16) * 16
    beyond = k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2 > 64
    assert spectrum[beyond].abs().max() < 1e-4


def test_kl_divergence_is_torchs() -> None:
    z_mu, z_logvar = torch.randn(5, 4), torch.randn(5, 4)
    posterior = torch.distributions.Normal(z_mu, (z_logvar / 2).exp())
    prior = torch.distributions.Normal(torch.zeros(5, 4), torch.ones(5, 4))
    assert torch.allclose(kl_divergence(z_mu, z_logvar), torch.distributions.kl_divergence(posterior, prior), atol=1e-5)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_published_network_has_the_published_number_of_parameters() -> None:
    """19,879,954 (cryoDRGN issue 169): D = 128, zdim 8, 1024 x 3, geometric encoding."""
    model = network(128, zdim=8, enc_dim=1024, enc_layers=3, dec_dim=1024, dec_layers=3, pe_type="geom_ft")
    assert parameters(model.encoder) == 16_326_672
    assert parameters(model.decoder) == 3_553_282


def test_bf16_is_near_float32_and_the_encoder_stays_in_float32() -> None:
    model, seen = network(dec_dim=64).eval(), batch(8)
    exact = model(seen).loss
    z_mu, _ = model.encode(seen)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(seen).loss
        assert torch.equal(model.encode(seen)[0], z_mu)
    assert rounded.item() == pytest.approx(exact.item(), rel=1e-2)
    assert rounded.item() != exact.item()


def test_z_is_drawn_in_training_and_its_mean_taken_in_evaluation() -> None:
    model, seen = network(), batch(8)
    assert model(seen).loss != model(seen).loss
    model.eval()
    assert model(seen).loss == model(seen).loss


def test_beta_is_one_over_zdim_unless_it_is_said() -> None:
    assert network(zdim=4).beta == 0.25
    assert network(zdim=4, beta=0.5).beta == 0.5


def test_the_ctf_and_shifts_leave_no_tensor_on_the_cpu() -> None:
    """On the meta device, as on a GPU, an operation on tensors of two devices is an error."""
    observer = Observer(box_size=16, data_sign=-1, hartley_std=1.0, window=True, ctf=True).to("meta")
    seen = {name: values.to("meta") for name, values in batch(4).items()}
    seen |= {name: torch.ones(4, device="meta") for name in CTF_COLUMNS}
    assert all(part.is_meta for part in observer(seen))
