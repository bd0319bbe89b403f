"""The loss of a coordinate network in one pass is that of its layers one after the other, and so are its gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from drgn_ray.config import ModelConfig
from drgn_ray.models import one_pass
from drgn_ray.models.decoder import CoordinateDecoder, Decoder
from drgn_ray.models.residual import ResidualDecoder
from drgn_ray.physics.lattice import half_disc

BOX, COUNT = 32, 3
Seen = tuple[Tensor, ...]


@pytest.fixture(params=["coordinate", "residual", "no layers", "no latent"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    torch.manual_seed(0)
    zdim = 0 if request.param == "no latent" else 3
    model = ModelConfig(dec_dim=24, dec_layers=0 if request.param == "no layers" else 2)
    if request.param != "residual":
        return CoordinateDecoder.of(model, box_size=BOX, zdim=zdim)
    decoder = ResidualDecoder.of(model, box_size=BOX, zdim=zdim)
    decoder.start_from(torch.randn(1, BOX, BOX, BOX))
    return decoder


@pytest.fixture
def seen(decoder: Decoder) -> Seen:
    """Latents, rotations, CTFs and coefficients."""
    zdim = (decoder.network if isinstance(decoder, ResidualDecoder) else decoder).mlp.first.in_features - 3 * BOX
    rotation = torch.tensor(Rotation.random(COUNT, rng=np.random.default_rng(0)).as_matrix(), dtype=torch.float32)
    num_points = half_disc(BOX).num_points
    shape = COUNT, num_points
    return torch.randn(COUNT, zdim), rotation, torch.rand(shape) - 0.5, torch.randn(shape, dtype=torch.complex64)


def gradients(decoder: Decoder, seen: Seen, plain: bool) -> dict[str, Tensor]:
    z, rotation, scale, target = seen
    z = z.clone().requires_grad_()
    decoder.zero_grad()
    points = half_disc(BOX)
    if plain:
        loss = Decoder.misfit(decoder, z, rotation, points, scale, target)
    else:
        loss = decoder.misfit(z, rotation, points, scale, target)
    (0.5 * loss).backward()
    found = {name: parameter.grad for name, parameter in decoder.named_parameters()} | {"z": z.grad}
    return {"loss": loss.detach(), **{name: grad for name, grad in found.items() if grad is not None}}


def errors(found: dict[str, Tensor], exact: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors, of what is not empty."""
    assert found.keys() == exact.keys()
    norms = {name: values.norm() for name, values in exact.items() if values.numel()}
    return {name: float((found[name] - exact[name]).norm() / norm) for name, norm in norms.items()}


@pytest.mark.parametrize("tile", [2048, 100, 1])
def test_loss_and_gradients_are_those_of_autograd(
    decoder: Decoder, seen: Seen, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_pass, "TILE", tile)
    assert max(errors(gradients(decoder, seen, plain=False), gradients(decoder, seen, plain=True)).values()) < 1e-5


def test_in_bfloat16_they_are_as_near_to_float32_as_autocasts_are(decoder: Decoder, seen: Seen) -> None:
    exact = gradients(decoder, seen, plain=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, autocasts = (gradients(decoder, seen, plain=plain) for plain in (False, True))
    mine, its = errors(rounded, exact), errors(autocasts, exact)
    assert all(0 < mine[name] < 2 * its[name] + 1e-3 for name in its), (mine, its)
    assert {values.dtype for values in rounded.values()} == {torch.float32}


def test_without_gradients_the_loss_is_the_same(decoder: Decoder, seen: Seen) -> None:
    z, rotation, scale, target = seen
    with torch.inference_mode():
        without = decoder.misfit(z, rotation, half_disc(BOX), scale, target)
    torch.testing.assert_close(without, gradients(decoder, seen, plain=False)["loss"])
