"""Decoding latents to MRC files."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import torch
from jaxtyping import Float

from drgn_ray.models.vae import VAE
from drgn_ray.particles.store import StoreInfo
from drgn_ray.progress import Progress


def write_mrc(path: Path, volume: Float[np.ndarray, "D D D"], apix: float, label: str) -> None:
    """Write a volume (z, y, x) as MRC mode 2 with its voxel size (Å) and a label."""
    with mrcfile.new(path, overwrite=True) as file:
        file.set_data(np.ascontiguousarray(volume, np.float32))
        file.voxel_size = apix
        file.add_label(label[:79])


def decode(model: VAE, z: Float[np.ndarray, " Z"], info: StoreInfo) -> Float[np.ndarray, "D D D"]:
    """Volume of a latent, on the grey scale of the source images."""
    device = next(model.parameters()).device
    volume = model.decode_volume(torch.as_tensor(z, dtype=torch.float32, device=device))
    return volume.cpu().numpy() * (info.hartley_std * info.scale)


def decode_to_folder(
    model: VAE,
    z: Float[np.ndarray, "n Z"],
    info: StoreInfo,
    folder: Path,
) -> None:
    """Write ``vol_000.mrc``, ``vol_001.mrc``, ... and their latents in ``z_values.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "z_values.txt", z)
    with Progress(f"decode {folder.name}", len(z), "volumes") as progress:
        for index, latent in enumerate(z):
            path = folder / f"vol_{index:03d}.mrc"
            label = "drgn_ray z = " + " ".join(f"{value:.4g}" for value in latent)
            write_mrc(path, decode(model, latent, info), info.apix, label)
            progress.update(1)
