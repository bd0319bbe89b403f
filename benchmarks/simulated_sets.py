"""Simulate three particle sets with known truth, on which reconstructions are scored.

python -m benchmarks.simulated_sets FOLDER

motion       An arm with 18% of the mass turns through a whole circle, uniformly: a continuous motion whose latent is a
             ring.  The truth is 36 states of 10 degrees each; images have angles of their own.
composition  Five subunits are there or not, in eight states with unequal populations: a mixture of discrete states,
             of which rare ones must be found and each must get its own volume.
homogeneous  One state: what a method invents where nothing varies, and what it loses in resolution.

A molecule is 350 to 600 blobs that fill 60% of the box, with 3% of their amplitude left at Nyquist.  Each folder holds
`particles.star` and `particles.mrcs` (protein white), `labels.npy` (the state of every image), `ground_truth.csv` (the
same, and angles), `states.csv`, `gt/vol_000.mrc`... (one per state), `gt_mean.mrc` (weighed by population) and
`mask_variable.mrc` (soft; of what differs between states, of a single state the molecule).
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from scipy.spatial.transform import Rotation
from torch import Tensor

from conversions.simulated import Imaging, write_particles
from drgn_ray.analysis.volumes import write_mrc
from drgn_ray.physics.mask import threshold_mask
from drgn_ray.physics.simulate import BlobMolecule, density

IMAGING = Imaging(box_size=64, apix=2.0, snr=0.05, shift=1.5, defocus=(8e3, 2.5e4))
SIGMA = 1.7  # Å
BLOBS_PER_VOLUME = 1 / 125  # Å^-3
NUM_ANGLES = 36
MASK_THRESHOLD = 0.1  # of the largest density, or of the largest difference
MASK_DILATION, MASK_EDGE = 4.0, 6.0  # Å
POPULATIONS = {"ABCDE": 0.25, "ABCD": 0.2, "ABE": 0.15, "CDE": 0.12, "AC": 0.1, "BD": 0.08, "E": 0.06, "": 0.04}


@dataclass(frozen=True)
class SimulatedSet:
    """The molecules of the images and of the states, and what `ground_truth.csv` and `states.csv` say of them."""

    particles: BlobMolecule
    states: BlobMolecule
    ground_truth: pd.DataFrame
    state_table: pd.DataFrame


def main() -> int:
    """Make the sets, each in a folder of its name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--num-images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    arguments = parser.parse_args()
    for name in arguments.sets:
        write_set(arguments.folder / name, name, arguments.num_images, arguments.seed)
    return 0


def write_set(folder: Path, name: str, num_images: int, seed: int = 0) -> Path:
    """Simulate a set and write it with its truth; return its STAR file."""
    rng = np.random.default_rng(seed)
    simulated = SETS[name](num_images, rng)
    (folder / "gt").mkdir(parents=True, exist_ok=True)
    label = simulated.ground_truth["state"].to_numpy()
    np.save(folder / "labels.npy", label)
    simulated.ground_truth.to_csv(folder / "ground_truth.csv", index_label="image")
    simulated.state_table.to_csv(folder / "states.csv", index=False)
    volumes = np.stack([_volume(simulated.states, state) for state in range(len(simulated.state_table))])
    for state, volume in enumerate(volumes):
        write_mrc(folder / "gt" / f"vol_{state:03d}.mrc", volume, IMAGING.apix, f"{name}, state {state}")
    population = np.bincount(label, minlength=len(volumes)) / num_images
    write_mrc(folder / "gt_mean.mrc", np.tensordot(population, volumes, 1), IMAGING.apix, f"{name}, mean of the images")
    write_mrc(folder / "mask_variable.mrc", _mask(volumes), IMAGING.apix, f"{name}, mask of what varies")
    return write_particles(folder, simulated.particles, IMAGING, rng)


def _motion(num_images: int, rng: np.random.Generator) -> SimulatedSet:
    body = _ellipsoid((0, 0, -12), (26, 22, 20), 1)
    arm = _ellipsoid((20, 0, 18), (19, 11.5, 11.5), 2)
    width = 360 / NUM_ANGLES
    angle, centre = rng.uniform(0, 360, num_images), (np.arange(NUM_ANGLES) + 0.5) * width
    return SimulatedSet(
        _turned(body, arm, angle),
        _turned(body, arm, centre),
        pd.DataFrame({"state": (angle // width).astype(int), "angle_deg": angle}),
        pd.DataFrame({"state": range(NUM_ANGLES), "angle_deg": centre}),
    )


def _turned(body: Float[Tensor, "A 3"], arm: Float[Tensor, "a 3"], angle: Float[np.ndarray, " B"]) -> BlobMolecule:
    """Turn the arm about z by each angle (degrees)."""
    turn = torch.tensor(Rotation.from_euler("z", angle[:, None], degrees=True).as_matrix(), dtype=torch.float32)
    arms = torch.einsum("bij,aj->bai", turn, arm)
    position = torch.cat([body.expand(len(angle), -1, -1), arms], dim=1)
    return BlobMolecule(position, torch.ones(position.shape[:2]), SIGMA)


def _composition(num_images: int, rng: np.random.Generator) -> SimulatedSet:
    label = rng.choice(len(POPULATIONS), num_images, p=list(POPULATIONS.values()))
    return _assembled(label, POPULATIONS)


def _homogeneous(num_images: int, rng: np.random.Generator) -> SimulatedSet:
    return _assembled(np.zeros(num_images, int), {"ABCDE": 1.0})


def _assembled(label: Int[np.ndarray, " N"], populations: dict[str, float]) -> SimulatedSet:
    """States with these of the subunits."""
    subunits = {
        "": _ellipsoid((0, 0, 0), (24, 20, 22), 3),  # the body: "" is in every name
        "A": _ellipsoid((0, 30, 5), (13, 11, 14), 4),
        "B": _ellipsoid((27, -14, 13), (13, 10, 11), 5),
        "C": _ellipsoid((-30, -6, -11), (11, 10, 13), 6),
        "D": _ellipsoid((4, -13, -28), (13, 11, 9), 7),
        "E": _ellipsoid((-8, 2, 30), (10, 11, 9), 8),
    }
    position = torch.cat(list(subunits.values()))
    there = [[float(name in present) for name, part in subunits.items() for _ in part] for present in populations]
    mass = torch.tensor(there)
    states = BlobMolecule(position.expand(len(mass), -1, -1), mass, SIGMA)
    table = pd.DataFrame(
        {"state": range(len(mass)), "subunits": populations.keys(), "population": populations.values()}
    )
    particles = BlobMolecule(position.expand(len(label), -1, -1), mass[label], SIGMA)
    return SimulatedSet(particles, states, pd.DataFrame({"state": label}), table)


def _ellipsoid(
    centre: tuple[float, float, float], half_axes: tuple[float, float, float], seed: int
) -> Float[Tensor, "A 3"]:
    """Blobs spread evenly in an ellipsoid (Å)."""
    generator = torch.Generator().manual_seed(seed)
    count = round(4 / 3 * np.pi * np.prod(half_axes) * BLOBS_PER_VOLUME)
    direction = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator))
    radius = torch.rand(count, 1, generator=generator) ** (1 / 3)
    return direction * radius * torch.tensor(half_axes) + torch.tensor(centre)


def _volume(states: BlobMolecule, state: int) -> Float[np.ndarray, "D D D"]:
    one = BlobMolecule(states.position[state], states.mass[state], states.sigma)
    return density(one, IMAGING.box_size, IMAGING.apix).numpy()


def _mask(volumes: Float[np.ndarray, "K D D D"]) -> Float[np.ndarray, "D D D"]:
    differing = np.ptp(volumes, axis=0) if len(volumes) > 1 else volumes[0]
    threshold = MASK_THRESHOLD * float(differing.max())
    return threshold_mask(differing, apix=IMAGING.apix, threshold=threshold, dilate=MASK_DILATION, soft_edge=MASK_EDGE)


SETS = {"motion": _motion, "composition": _composition, "homogeneous": _homogeneous}

if __name__ == "__main__":
    sys.exit(main())
