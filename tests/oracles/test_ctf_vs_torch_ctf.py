"""Our CTF is the negative of torch-ctf's, with its micrometres and our ångströms."""

from __future__ import annotations

import pytest
import torch

from drgn_ray.physics.ctf import compute_ctf
from drgn_ray.units import ANGSTROM_PER_MICROMETRE

torch_ctf = pytest.importorskip("torch_ctf")


@pytest.mark.parametrize(
    ("defocus_u", "defocus_v", "defocus_angle", "phase_shift", "voltage"),
    [
        (15000.0, 15000.0, 0.0, 0.0, 300.0),
        (18000.0, 15000.0, 30.0, 0.0, 300.0),
        (12000.0, 9000.0, 35.0, 0.0, 200.0),
        (12000.0, 11000.0, 80.0, 90.0, 300.0),
    ],
)
def test_the_ctf_is_the_negative_of_torch_ctfs(
    defocus_u: float, defocus_v: float, defocus_angle: float, phase_shift: float, voltage: float
) -> None:
    size, apix = 64, 3.0
    theirs = torch_ctf.calculate_ctf_2d(
        defocus=(defocus_u + defocus_v) / 2 / ANGSTROM_PER_MICROMETRE,
        astigmatism=(defocus_u - defocus_v) / 2 / ANGSTROM_PER_MICROMETRE,
        astigmatism_angle=defocus_angle,
        voltage=voltage,
        spherical_aberration=2.7,
        amplitude_contrast=0.1,
        phase_shift=phase_shift,
        pixel_size=apix,
        image_shape=(size, size),
        rfft=False,
        fftshift=False,
    )
    freq = torch.fft.fftfreq(size)
    ky, kx = torch.meshgrid(freq, freq, indexing="ij")
    parameters = {
        "apix": apix,
        "defocus_u": defocus_u,
        "defocus_v": defocus_v,
        "defocus_angle": defocus_angle,
        "voltage": voltage,
        "cs": 2.7,
        "amplitude_contrast": 0.1,
        "phase_shift": phase_shift,
    }
    ours = compute_ctf(
        torch.stack([kx.flatten(), ky.flatten()], dim=-1),
        **{name: torch.tensor([value]) for name, value in parameters.items()},
    )
    assert (ours.reshape(size, size) + theirs.reshape(size, size)).abs().max() < 0.01  # another electron wavelength
