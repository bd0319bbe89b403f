"""Networks begin where a linear fit ended."""

from __future__ import annotations

import pytest
import torch
from scipy.spatial.transform import Rotation

from drgn_ray.config import ModelConfig
from drgn_ray.models import build_model
from drgn_ray.models.em import Subspace
from drgn_ray.models.linear import LinearSubspace
from drgn_ray.physics.volume_lattice import lattice_of, volumes_of

SIZE, COUNT = 16, 6


def images() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "images": torch.randn(COUNT, SIZE, SIZE, generator=generator),
        "rotation": torch.tensor(Rotation.random(COUNT, rng=0).as_matrix(), dtype=torch.float32),
        "translation": torch.zeros(COUNT, 2),
        "apix": torch.ones(COUNT),
    }


def subspace() -> Subspace:
    noise = torch.randn(3, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    volumes = volumes_of(lattice_of(noise))  # without the corners beyond Nyquist
    return Subspace(volumes, torch.full((SIZE // 2 + 1,), 0.8), 1e-4)


def build(**settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = ModelConfig.model_validate(settings)
    return build_model(config, box_size=SIZE, data_sign=1, hartley_std=20.0, ctf=False)


@pytest.fixture
def linear() -> LinearSubspace:
    model = build(model="linear")
    assert isinstance(model, LinearSubspace)
    model.start_from(subspace(), 5)
    return model


@pytest.mark.parametrize("zdim", [2, 4])
def test_a_linear_encoder_starts_as_the_posterior_of_the_subspace(zdim: int, linear: LinearSubspace) -> None:
    vae = build(encoder="linear", zdim=zdim, dec_dim=16, dec_layers=0)
    vae.start_from(subspace(), 5)
    found, expected = vae.encode(images()), linear.encode(images())
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours[:, :2], theirs, atol=1e-4)
        assert not ours[:, 2:].any(), "a dimension that the subspace has not is as the prior"


def test_a_basis_decoder_with_a_linear_encoder_starts_as_the_linear_model(linear: LinearSubspace) -> None:
    vae = build(encoder="linear", decoder="basis", zdim=2, num_basis=2)
    vae.start_from(subspace(), 5)
    z = torch.tensor([0.5, -1.0])
    ours, theirs = vae.decode_volume(z), linear.decode_volume(z)
    assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.99


def test_the_start_comes_back_with_the_state(linear: LinearSubspace) -> None:
    vae, other = (build(encoder="linear", decoder="basis", zdim=2) for _ in range(2))
    vae.start_from(subspace(), 5)
    other.load_state_dict(vae.state_dict())
    assert torch.equal(other.encode(images())[0], vae.encode(images())[0])


def test_the_usual_weight_of_the_divergence_is_that_of_the_likelihood() -> None:
    vae = build(encoder="linear", decoder="basis", zdim=2)
    vae.start_from(subspace(), 5)
    assert vae.encoder.usual_beta == pytest.approx(1.6)
    assert build(zdim=4, enc_dim=8, dec_dim=8).encoder.usual_beta == 0.25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "linear", "dec_dim": 64}, "a linear model has no dec_dim"),
        ({"model": "curved", "encoder": "linear"}, "a curved model has no encoder"),
        ({"encoder": "linear", "enc_dim": 64}, "a linear encoder has no enc_dim"),
        ({"encoder": "linear", "init": "none"}, "a linear encoder starts from a linear subspace"),
        ({"init": "linear"}, "a coordinate decoder does not start from linear"),
        ({"zdim": 0}, "a vae has at least one latent dimension"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        ({}, "none"),
        ({"decoder": "residual"}, "linear"),
        ({"decoder": "residual", "init": "backproject"}, "backproject"),
        ({"encoder": "linear"}, "linear"),
        ({"model": "homogeneous", "decoder": "basis"}, "backproject"),
        ({"model": "curved"}, "none"),
    ],
)
def test_what_a_model_starts_from_follows_from_its_parts(settings: dict[str, object], start: str) -> None:
    assert ModelConfig.model_validate(settings).start == start
