"""Simulated particles, written as a RELION 3.1 STAR file and MRC stack; a small heterogeneous set with known truth.

The molecule of that set has a body, an arm that turns about a hinge (a continuous motion) and a cap that half of the
particles lack (a change of composition).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from scipy.spatial.transform import Rotation
from torch import Tensor

from conversions.star import RELION_31, StarBlock, StarFile, text_table, write_star_file
from drgn_ray import units
from drgn_ray.physics.simulate import BlobMolecule, apply_ctf, density, project
from drgn_ray.progress import Progress

SIGMA = 5.0
LARGEST_ANGLE = 75.0
VOLTAGE, CS, AMPLITUDE_CONTRAST = 300.0, 2.7, 0.1
BATCH = 256
STAR_NAME, STACK_NAME, TRUTH_NAME = "particles.star", "particles.mrcs", "truth.csv"
_HINGE = torch.tensor([0.0, 0.0, 25.0])


@dataclass(frozen=True)
class Imaging:
    """How molecules are imaged, in uniformly random views.

    Attributes
    ----------
    apix
        Å/px.
    snr
        Variance of the clean images over variance of the white noise, whole box.
    shift
        Standard deviation of the shifts along x and y, px.
    defocus
        Least and largest, Å.
    """

    box_size: int = 64
    apix: float = 3.0
    snr: float = 0.1
    shift: float = 2.0
    defocus: tuple[float, float] = (8e3, 2.2e4)


@dataclass(frozen=True)
class Truth:
    """What is true of every particle: arm angle (degrees) and whether the cap is there."""

    arm_angle: Float[np.ndarray, " N"]
    has_cap: Bool[np.ndarray, " N"]

    def conformations(self) -> BlobMolecule:
        """Build the molecule of every particle."""
        return _conformations(torch.tensor(self.arm_angle, dtype=torch.float32), torch.tensor(self.has_cap))

    def volume(self, row: int, box_size: int, apix: float) -> Float[np.ndarray, "D D D"]:
        """Compute the true density of a particle's conformation."""
        molecule = Truth(self.arm_angle[row : row + 1], self.has_cap[row : row + 1]).conformations()
        return density(BlobMolecule(molecule.position[0], molecule.mass[0], molecule.sigma), box_size, apix).numpy()


def read_truth(folder: Path) -> Truth:
    """Read the truth beside a simulated STAR file."""
    table = pd.read_csv(folder / TRUTH_NAME)
    return Truth(table["arm_angle"].to_numpy(), table["has_cap"].to_numpy(bool))


def write_simulated_particles(folder: Path, num_particles: int, *, seed: int = 0) -> Path:
    """Simulate particles of the small set and write them with their truth; return the STAR file."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    truth = Truth(rng.uniform(0, LARGEST_ANGLE, num_particles), rng.random(num_particles) < 0.5)
    pd.DataFrame({"arm_angle": truth.arm_angle, "has_cap": truth.has_cap}).to_csv(folder / TRUTH_NAME, index=False)
    return write_particles(folder, truth.conformations(), Imaging(), rng)


def write_particles(folder: Path, molecules: BlobMolecule, imaging: Imaging, rng: np.random.Generator) -> Path:
    """Image each of the molecules (of a batch) once and write the particles; return the STAR file."""
    table = _particle_table(len(molecules.mass), imaging, rng)
    clean = _clean_images(molecules, table, imaging)
    noise = rng.standard_normal(clean.shape, np.float32)
    with mrcfile.new(folder / STACK_NAME, overwrite=True) as file:
        file.set_data(clean * np.float32(np.sqrt(imaging.snr) / clean.std()) + noise)
        file.set_image_stack()
        file.voxel_size = imaging.apix
    optics = text_table(
        {
            "rlnOpticsGroup": [1],
            "rlnOpticsGroupName": ["opticsGroup1"],
            "rlnVoltage": [VOLTAGE],
            "rlnSphericalAberration": [CS],
            "rlnAmplitudeContrast": [AMPLITUDE_CONTRAST],
            "rlnImagePixelSize": [imaging.apix],
            "rlnImageSize": [imaging.box_size],
            "rlnImageDimensionality": [2],
        }
    )
    particles = text_table({name: table[name].to_numpy() for name in table})
    blocks = (StarBlock("optics", optics, True), StarBlock("particles", particles, True))
    write_star_file(str(folder / STAR_NAME), StarFile(blocks, RELION_31))
    return folder / STAR_NAME


def _particle_table(count: int, imaging: Imaging, rng: np.random.Generator) -> pd.DataFrame:
    rot, tilt, psi = units.relion_from_rotation(Rotation.random(count, rng=rng).as_matrix()).T
    defocus, astigmatism = rng.uniform(*imaging.defocus, count), rng.normal(0, 200, count)
    shift = imaging.shift * imaging.apix
    return pd.DataFrame(
        {
            "rlnImageName": [f"{number:06d}@{STACK_NAME}" for number in range(1, count + 1)],
            "rlnAngleRot": rot,
            "rlnAngleTilt": tilt,
            "rlnAnglePsi": psi,
            "rlnOriginXAngst": rng.normal(0, shift, count),
            "rlnOriginYAngst": rng.normal(0, shift, count),
            "rlnDefocusU": defocus + astigmatism,
            "rlnDefocusV": defocus - astigmatism,
            "rlnDefocusAngle": rng.uniform(-90, 90, count),
            "rlnPhaseShift": 0.0,
            "rlnOpticsGroup": 1,
            "rlnRandomSubset": 1 + np.arange(count) % 2,
            "rlnMicrographName": [f"micrographs/{index // 100:04d}.mrc" for index in range(count)],
        }
    )


def _clean_images(molecules: BlobMolecule, table: pd.DataFrame, imaging: Imaging) -> Float[np.ndarray, "N D D"]:
    """Projections with RELION's (positive) CTF and shifts, protein white."""
    rotation = units.rotation_from_relion(*(table[f"rlnAngle{name}"].to_numpy() for name in ("Rot", "Tilt", "Psi")))
    translation = table[["rlnOriginXAngst", "rlnOriginYAngst"]].to_numpy()
    size, apix = imaging.box_size, imaging.apix
    images = np.empty((len(table), size, size), np.float32)
    with Progress("simulate", len(table), "images") as progress:
        for start in range(0, len(table), BATCH):
            rows = slice(start, start + BATCH)
            batch = BlobMolecule(molecules.position[rows], molecules.mass[rows], molecules.sigma)
            projections = project(batch, _tensor(rotation[rows]), size, apix, _tensor(translation[rows]))
            images[rows] = -apply_ctf(projections, **_ctf_parameters(table.iloc[rows], apix)).numpy()
            progress.update(len(projections))
    return images


def _ctf_parameters(table: pd.DataFrame, apix: float) -> dict[str, Float[Tensor, " B"]]:
    ones = torch.ones(len(table))
    from_table = {
        "defocus_u": "rlnDefocusU",
        "defocus_v": "rlnDefocusV",
        "defocus_angle": "rlnDefocusAngle",
        "phase_shift": "rlnPhaseShift",
    }
    fixed = {"apix": apix, "voltage": VOLTAGE, "cs": CS, "amplitude_contrast": AMPLITUDE_CONTRAST}
    return {name: _tensor(table[column].to_numpy()) for name, column in from_table.items()} | {
        name: value * ones for name, value in fixed.items()
    }


def _tensor(values: np.ndarray) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def _conformations(arm_angle: Float[Tensor, " B"], has_cap: Bool[Tensor, " B"]) -> BlobMolecule:
    body, arm, cap = _parts()
    angle = torch.deg2rad(arm_angle)
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([cos, zero, sin, zero, one, zero, -sin, zero, cos], dim=-1).reshape(-1, 3, 3)  # about y
    turned = torch.einsum("bij,aj->bai", turn, arm - _HINGE) + _HINGE
    fixed = torch.cat([body, cap]).expand(len(angle), -1, -1)
    mass = torch.ones(len(angle), len(body) + len(cap) + len(arm))
    mass[:, len(body) : len(body) + len(cap)] = has_cap[:, None].float()
    return BlobMolecule(torch.cat([fixed, turned], dim=1), mass, SIGMA)


def _parts() -> tuple[Float[Tensor, "A 3"], Float[Tensor, "A 3"], Float[Tensor, "A 3"]]:
    """Blobs of body, arm and cap, Å; without any symmetry."""
    generator = torch.Generator().manual_seed(7)

    def cloud(count: int, centre: tuple[float, float, float], spread: tuple[float, float, float]) -> Tensor:
        return torch.randn(count, 3, generator=generator).clamp(-2, 2) * torch.tensor(spread) + torch.tensor(centre)

    body = cloud(70, (0, 0, -5), (14, 10, 14))
    arm = torch.tensor([0.0, 0.0, 30.0]) + torch.linspace(0, 45, 24)[:, None] * torch.tensor([0.0, 0.2, 0.97])
    cap = cloud(28, (6, 22, -32), (7, 6, 6))
    return body, arm + cloud(24, (0, 0, 0), (3, 3, 1)), cap
