"""Decoders of voxels: their slices are those of their volumes, their gradients those of torch, and they learn."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.spatial.transform import Rotation
from test_networks import batch
from torch import Tensor

from drgn_ray.config import ModelConfig, RunConfig, differences
from drgn_ray.models import DECODERS, build_model
from drgn_ray.models.basis import BasisDecoder
from drgn_ray.models.decoder import Decoder
from drgn_ray.models.model import Model
from drgn_ray.models.residual import ResidualDecoder
from drgn_ray.models.voxels import combined_slices
from drgn_ray.physics.fourier import images_to_half_disc
from drgn_ray.physics.gridding import interpolate, interpolate_with_torch
from drgn_ray.physics.lattice import half_disc
from drgn_ray.physics.simulate import BlobMolecule, density, project
from drgn_ray.physics.volume_lattice import lattice_of, volumes_of
from drgn_ray.training.checkpoint import Position, load_weights, save_checkpoint

SIZE, APIX, SIGMA, RADIUS, ARM = 32, 4.0, 6.0, 6, 16.0
POINTS = half_disc(SIZE)
SHELL = POINTS.radius.round()
SMALL = {"enc_dim": 16, "enc_layers": 1, "zdim": 2}
NETWORK = {"dec_dim": 32, "dec_layers": 1}


def views(count: int) -> Tensor:
    return torch.tensor(Rotation.random(count, rng=np.random.default_rng(1)).as_matrix(), dtype=torch.float32)


def conformation(arm: float) -> BlobMolecule:
    """A body of fixed blobs and an arm of others, moved along z by so many Å."""
    position = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)) * 10
    position[20:, 2] += arm
    return BlobMolecule(position, torch.linspace(0.5, 1.5, 30), SIGMA)


def volume_of(arm: float) -> Tensor:
    return density(conformation(arm), SIZE, APIX)


def seen(arms: Tensor, rotation: Tensor) -> Tensor:
    """Coefficients of pictures, which are made without a lattice; one conformation and view each."""
    molecules = [conformation(float(arm)) for arm in arms]
    many = BlobMolecule(torch.stack([m.position for m in molecules]), torch.stack([m.mass for m in molecules]), SIGMA)
    return images_to_half_disc(project(many, rotation, SIZE, APIX), POINTS)


def similarity(ours: Tensor, theirs: Tensor) -> float:
    return float(torch.cosine_similarity(*(torch.view_as_real(part).flatten() for part in (ours, theirs)), dim=0))


@torch.no_grad()
def decoded(decoder: Decoder, z: Tensor, rotation: Tensor) -> Tensor:
    return torch.complex(*decoder.slices(z, rotation, POINTS))


def model(decoder: str, **settings: object) -> Model:
    torch.manual_seed(0)
    config = ModelConfig(decoder=decoder, **settings)  # type: ignore[arg-type]
    return build_model(config, box_size=SIZE, data_sign=-1, hartley_std=4.0, ctf=False)


def residual() -> ResidualDecoder:
    """One with a consensus."""
    decoder = model("residual", dec_radius=RADIUS, **SMALL, **NETWORK).decoder
    assert isinstance(decoder, ResidualDecoder)
    decoder.start_from(volume_of(0)[None])
    return decoder


@pytest.fixture(scope="module")
def lattice() -> Tensor:
    return lattice_of(torch.randn(3, SIZE, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))


@pytest.fixture(scope="module")
def coefficients() -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(1))


def by_torch(lattice: Tensor, coefficients: Tensor) -> Tensor:
    """What `combined_slices` does, with a lattice that is made Hermitian in the plane k_x = 0 first."""
    plane = (lattice[:, :, :1] + lattice[:, :, :1].flip(0, 1).conj()) / 2
    slices = interpolate_with_torch(torch.cat([plane, lattice[:, :, 1:]], dim=2), POINTS.k, views(5))
    return torch.einsum("bpc,bc->bp", slices, coefficients.to(torch.complex64))


def test_combined_slices_and_their_gradients_are_those_of_torch(lattice: Tensor, coefficients: Tensor) -> None:
    weight = torch.randn(5, POINTS.num_points, dtype=torch.complex64, generator=torch.Generator().manual_seed(2))
    results = []
    for kernels in (lambda *leaves: combined_slices(*leaves, POINTS.k, views(5)), by_torch):
        leaves = [lattice.clone().requires_grad_(), coefficients.clone().requires_grad_()]
        slices = kernels(*leaves)
        ((slices - weight).abs() ** 3).sum().backward()
        results.append((slices.detach(), *(leaf.grad for leaf in leaves)))
    for ours, theirs in zip(*results, strict=True):
        assert theirs.abs().max() > 1
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def test_a_volume_stays_real_as_it_is_trained(lattice: Tensor, coefficients: Tensor) -> None:
    parameter = torch.nn.Parameter(torch.view_as_real(lattice.clone()))
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    for _ in range(3):
        slices = combined_slices(torch.view_as_complex(parameter), coefficients, POINTS.k, views(5))
        optimizer.zero_grad()
        (slices - 1j).abs().square().sum().backward()
        optimizer.step()
    plane = torch.view_as_complex(parameter.detach())[:, :, 0]
    assert (plane - lattice[:, :, 0]).abs().max() > 0.1
    assert torch.allclose(plane, plane.flip(0, 1).conj(), atol=1e-4)


def test_a_basis_started_from_volumes_decodes_them_and_their_combinations() -> None:
    decoder = BasisDecoder(box_size=SIZE, zdim=2, num_basis=3)
    volumes = torch.stack([volume_of(0), volume_of(ARM) - volume_of(0), volume_of(-ARM) - volume_of(0)])
    decoder.start_from(volumes)
    for z in ([0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, -0.3]):
        expected = volumes[0] + z[0] * volumes[1] + z[1] * volumes[2]
        assert torch.allclose(decoder.volume(torch.tensor(z)), expected, atol=0.02 * volumes[0].max().item())


def test_slices_of_a_basis_are_what_is_seen_of_the_molecule() -> None:
    decoder = BasisDecoder(box_size=SIZE, zdim=1, num_basis=1)
    decoder.start_from(torch.stack([volume_of(0), volume_of(ARM) - volume_of(0)]))
    ours, theirs = decoded(decoder, torch.ones(8, 1), views(8)), seen(torch.full((8,), ARM), views(8))
    for radius in range(1, SIZE // 4 + 1):
        assert similarity(ours[:, SHELL == radius], theirs[:, SHELL == radius]) > 0.99
    assert similarity(ours, seen(torch.zeros(8), views(8))) < 0.97


def test_a_basis_without_a_start_learns_two_conformations_from_their_pictures() -> None:
    torch.manual_seed(0)
    decoder = BasisDecoder(box_size=SIZE, zdim=1, num_basis=2)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=5e-3)
    z, rotation = torch.tensor([[-1.0], [1.0]]).repeat(32, 1), views(64)
    pictures = seen(ARM * z[:, 0], rotation)
    for _ in range(60):
        loss = (torch.complex(*decoder.slices(z, rotation, POINTS)) - pictures).abs().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = [decoder.volume(side) for side in (z[0], z[1])]
    true = [volume_of(-ARM), volume_of(ARM)]
    match = torch.corrcoef(torch.stack([volume.flatten() for volume in (*found, *true)]))[:2, 2:]
    assert match.diagonal().min() > 0.95
    assert match.flip(0).diagonal().max() < 0.9


def test_a_residual_decoder_whose_network_is_silent_is_its_consensus() -> None:
    decoder = model("residual", **SMALL, **NETWORK).decoder
    assert isinstance(decoder, ResidualDecoder)
    assert decoder.radius == SIZE // 4
    decoder.start_from(volume_of(0)[None])
    for parameter in decoder.network.mlp.last.parameters():
        torch.nn.init.zeros_(parameter)
    z = torch.randn(8, 2)
    assert torch.allclose(decoder.volume(z[0]), volume_of(0), atol=0.02 * volume_of(0).max().item())
    assert similarity(decoded(decoder, z, views(8)), seen(torch.zeros(8), views(8))) > 0.99


def test_beyond_its_radius_a_residual_decoder_is_its_consensus() -> None:
    decoder = residual()
    consensus = interpolate(lattice_of(volume_of(0)[None]), POINTS.k, views(8))[..., 0]
    change, within = decoded(decoder, torch.randn(8, 2), views(8)) - consensus, POINTS.radius <= RADIUS
    assert not change[:, ~within].any()
    for radius in range(1, RADIUS):
        assert change[:, SHELL == radius].norm() > 0.05 * consensus[:, SHELL == radius].norm()


@torch.no_grad()
def test_the_change_of_a_residual_decoders_volume_is_that_of_its_slices() -> None:
    """Along the views that map the cube onto itself, where slices need no interpolation."""
    decoder, z = residual(), torch.randn(2, generator=torch.Generator().manual_seed(3))
    rotation = torch.tensor(Rotation.create_group("O").as_matrix(), dtype=torch.float32).round()
    change = (
        decoded(decoder, z.expand(24, -1), rotation)
        - interpolate(torch.view_as_complex(decoder.consensus), POINTS.k, rotation)[..., 0]
    )
    volume = decoder.volume(z) - volumes_of(torch.view_as_complex(decoder.consensus))[0]
    points = (torch.cat([POINTS.k, torch.zeros(POINTS.num_points, 1)], dim=1) @ rotation).round().long()
    x, y, at_z = points.unbind(-1)
    spectrum = torch.fft.fftn(torch.fft.fftshift(volume))[at_z, y, x]
    off_the_plane = at_z != 0  # in it the volume has the mean of the network's two half-spaces
    assert (spectrum - change)[off_the_plane].abs().max() < 1e-4 * change.abs().max()


def test_every_decoder_of_the_settings_is_there() -> None:
    assert set(DECODERS) == set(get_args(ModelConfig.model_fields["decoder"].annotation))


@pytest.mark.parametrize("settings", [SMALL, {"model": "homogeneous"}], ids=["vae", "homogeneous"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_serves_every_model_that_has_one(decoder: str, settings: dict) -> None:
    network = model(decoder, **settings, **({} if decoder == "basis" else NETWORK))
    network(batch(4, SIZE)).loss.backward()
    trained = [name for name, each in network.decoder.named_parameters() if each.grad is not None and each.grad.any()]
    assert trained
    network.eval()
    exact = network(batch(4, SIZE)).loss.item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert network(batch(4, SIZE)).loss.item() == pytest.approx(exact, rel=1e-2)
    volume = network.decode_volume(torch.zeros(network.zdim))
    assert volume.shape == (SIZE, SIZE, SIZE)
    assert volume.dtype == torch.float32


@pytest.mark.parametrize("decoder", ["basis", "residual"])
def test_what_a_decoder_started_from_is_in_its_checkpoint(decoder: str, tmp_path: Path) -> None:
    settings = SMALL | ({} if decoder == "basis" else NETWORK)
    network, other = model(decoder, **settings), model(decoder, **settings)
    before = other.decode_volume(torch.zeros(2))
    network.decoder.start_from(volume_of(0)[None])
    save_checkpoint(tmp_path, Position(), network, torch.optim.Adam(network.parameters()), 1)
    load_weights(tmp_path, other)
    volume = other.decode_volume(torch.zeros(2))
    assert torch.equal(volume, network.decode_volume(torch.zeros(2)))
    assert not torch.allclose(volume, before, atol=0.1 * volume.abs().max().item())


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"num_basis": 4}, "num_basis"),
        ({"dec_radius": 4}, "dec_radius"),
        ({"decoder": "basis", "dec_dim": 64}, "dec_dim"),
        ({"decoder": "residual", "init": "backproject", "num_basis": 4}, "num_basis"),
        ({"decoder": "basis", "zdim": 9}, "num_basis 8 is less than zdim 9"),
        ({"model": "homogeneous", "decoder": "basis", "num_basis": 4}, "num_basis"),
        ({"model": "linear", "decoder": "basis"}, "decoder"),
    ],
)
def test_a_setting_that_the_decoder_has_not_is_refused(settings: dict, name: str) -> None:
    with pytest.raises(ValidationError, match=name):
        ModelConfig(**settings)


def test_another_decoder_is_a_difference() -> None:
    coordinate, basis = (RunConfig(model=ModelConfig(decoder=name)) for name in ("coordinate", "basis"))
    assert differences(coordinate, basis) == {"decoder": ("coordinate", "basis")}
