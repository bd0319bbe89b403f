"""CTF, simulation and reconstruction on molecules known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from drgn_ray.analysis.agreement import volume_correlation
from drgn_ray.particles.normalise import decide_contrast
from drgn_ray.physics.backproject import BackProjector, cryodrgn_volume
from drgn_ray.physics.ctf import compute_ctf, electron_wavelength
from drgn_ray.physics.observation import Observer
from drgn_ray.physics.simulate import BlobMolecule, apply_ctf, density, project

SIZE, APIX = 32, 4.0


def optics(count: int, **changed: float) -> dict[str, Tensor]:
    values = {
        "apix": APIX,
        "defocus_u": 15000.0,
        "defocus_v": 13000.0,
        "defocus_angle": 20.0,
        "voltage": 300.0,
        "cs": 2.7,
        "amplitude_contrast": 0.1,
        "phase_shift": 0.0,
    }
    return {name: torch.full((count,), value) for name, value in (values | changed).items()}


def frequencies() -> Tensor:
    return torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) - 0.5


def test_the_ctf_at_zero_frequency_is_minus_the_amplitude_contrast() -> None:
    assert compute_ctf(torch.zeros(1, 2), **optics(1)).item() == pytest.approx(-0.1)


def test_the_ctf_falls_below_zero_before_it_turns() -> None:
    line = torch.stack([torch.linspace(0, 0.08, 20), torch.zeros(20)], dim=-1)
    assert (compute_ctf(line, **optics(1)) < 0).all()


def test_the_two_defocus_axes_are_a_right_angle_apart() -> None:
    freq = frequencies()
    swapped = optics(1, defocus_u=13000.0, defocus_v=15000.0, defocus_angle=110.0)
    assert torch.allclose(compute_ctf(freq, **optics(1)), compute_ctf(freq, **swapped), atol=2e-4)


def test_the_ctf_is_the_same_at_minus_k_and_at_twice_the_pixel_for_half_the_frequency() -> None:
    freq = frequencies()
    ctf = compute_ctf(freq, **optics(1))
    assert torch.allclose(ctf, compute_ctf(-freq, **optics(1)), atol=1e-4)
    assert torch.allclose(ctf, compute_ctf(freq * 2, **optics(1, apix=2 * APIX)), atol=1e-4)


def test_electrons_of_300_kilovolts_have_a_wavelength_of_0_0197_angstroms() -> None:
    assert electron_wavelength(torch.tensor([300.0])).item() == pytest.approx(0.01969, abs=1e-5)


def molecule(count: int) -> tuple[BlobMolecule, BlobMolecule]:
    """One lopsided molecule, alone and once for every image."""
    position = torch.randn(30, 3, generator=torch.Generator().manual_seed(1)) * torch.tensor([13.0, 7.0, 10.0])
    mass = torch.linspace(0.5, 1.5, 30)
    many = BlobMolecule(position.expand(count, -1, -1), mass.expand(count, -1), 6.0)
    return BlobMolecule(position, mass, 6.0), many


def views(count: int) -> Tensor:
    return torch.tensor(Rotation.random(count, rng=np.random.default_rng(2)).as_matrix(), dtype=torch.float32)


def test_an_unturned_projection_is_the_sum_of_the_density_over_z() -> None:
    one, many = molecule(1)
    assert torch.allclose(
        project(many, torch.eye(3)[None], SIZE, APIX)[0], density(one, SIZE, APIX).sum(dim=0), atol=1e-4
    )


def test_a_turned_projection_is_that_of_the_turned_molecule() -> None:
    one, many = molecule(4)
    for image, turn in zip(project(many, views(4), SIZE, APIX), views(4), strict=True):
        turned = density(BlobMolecule(one.position @ turn.T, one.mass, one.sigma), SIZE, APIX)
        assert torch.allclose(image, turned.sum(dim=0), atol=1e-3 * float(image.max()))


def observed(count: int, sign: float) -> tuple[dict[str, Tensor], Tensor]:
    """Shifted images with CTF as columns of a store, and the true density; `sign` -1 is white protein."""
    one, many = molecule(count)
    shift = torch.randn(count, 2, generator=torch.Generator().manual_seed(3)) * APIX
    images = project(many, views(count), SIZE, APIX, shift)
    batch = optics(count) | {"translation": shift, "rotation": views(count)}
    return batch | {"images": sign * apply_ctf(images, **optics(count))}, density(one, SIZE, APIX)


def test_back_projection_finds_the_molecule_again() -> None:
    batch, truth = observed(400, sign=1.0)
    observer = Observer(box_size=SIZE, data_sign=1, hartley_std=1.0, window=False, ctf=True)
    seen = observer(batch)
    projector = BackProjector(observer.half_disc, kernel="cryodrgn")
    projector.insert(seen.coefficients, seen.ctf, seen.rotation)
    volume = cryodrgn_volume(projector.sums).numpy()
    assert volume_correlation(volume, truth.numpy()) > 0.93
    assert volume_correlation(volume[:, :, ::-1], truth.numpy()) < 0.9


@pytest.mark.parametrize(("sign", "kind"), [(-1.0, "white"), (1.0, "dark")])
def test_the_contrast_of_noisy_images_is_found(sign: float, kind: str) -> None:
    batch, _ = observed(500, sign)
    images = batch.pop("images")
    noisy = images + 3 * images.std() * torch.randn(images.shape, generator=torch.Generator().manual_seed(4))
    contrast = decide_contrast(noisy, batch, has_ctf=True)
    assert contrast.data_sign == sign
    assert f"protein is {kind}" in contrast.evidence
