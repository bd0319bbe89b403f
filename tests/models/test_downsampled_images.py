"""A network of downsampled images: it does not see what was cut away, and says nothing of it."""

from __future__ import annotations

import pytest
import torch
from test_networks import batch
from torch import Tensor

from drgn_ray.config import ModelConfig
from drgn_ray.models import build_model
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.models.model import Model
from drgn_ray.physics.fourier import rfft_radius
from drgn_ray.training.compare import evidence_bounds

SIZE, CROPPED = 16, 8


def network(downsample: int | None, decoder: str = "coordinate") -> Model:
    torch.manual_seed(0)
    config = ModelConfig(  # type: ignore[arg-type]
        decoder=decoder, zdim=2, enc_dim=16, enc_layers=1, dec_dim=16, dec_layers=1, window=False, downsample=downsample
    )
    return build_model(config, box_size=SIZE, data_sign=-1, hartley_std=4.0, ctf=False).eval()


def with_fine_detail(images: Tensor) -> Tensor:
    """Add what is all beyond the shell at which images are cut."""
    noise = torch.fft.rfft2(torch.randn(images.shape, generator=torch.Generator().manual_seed(3)))
    x, y = torch.fft.rfftfreq(SIZE) * SIZE, torch.fft.fftfreq(SIZE) * SIZE
    beyond = torch.sqrt(x[None, :] ** 2 + y[:, None] ** 2) > CROPPED / 2
    return images + 10 * torch.fft.irfft2(noise * beyond, s=images.shape[-2:])


@pytest.mark.parametrize(("downsample", "sees_it"), [(CROPPED, False), (None, True)])
def test_what_was_cut_away_changes_nothing(downsample: int | None, sees_it: bool) -> None:
    model, images = network(downsample), batch(4, SIZE)
    fine = images | {"images": with_fine_detail(images["images"].float())}
    losses = [model(each).recon_loss.item() for each in (images, fine)]
    latents = [model.encode(each)[0] for each in (images, fine)]
    assert (losses[0] != pytest.approx(losses[1], rel=1e-3)) is sees_it
    assert torch.allclose(*latents, atol=1e-4) is not sees_it


@pytest.mark.parametrize("decoder", ["coordinate", "residual"])
def test_its_volumes_have_the_box_of_the_images_and_end_where_it_sees_no_more(decoder: str) -> None:
    volume = network(CROPPED, decoder).decode_volume(torch.zeros(2))
    assert volume.shape == (SIZE, SIZE, SIZE)
    power = torch.fft.rfftn(volume).abs() ** 2
    beyond = rfft_radius(volume[None]) > CROPPED / 2 + 0.5
    assert power[~beyond].sum() > 0
    assert power[beyond].max() < 1e-6 * power.max()


def test_its_bound_is_that_of_the_shells_it_sees() -> None:
    model, images = network(CROPPED), batch(4, SIZE)
    observe = network(None).observer
    linear = LinearSubspace(observe=lambda **settings: observe)
    linear.noise = torch.ones(SIZE)
    full = evidence_bounds(model, linear, [images])
    fine = evidence_bounds(model, linear, [images | {"images": with_fine_detail(images["images"].float())}])
    assert full == pytest.approx(fine, rel=1e-3)
