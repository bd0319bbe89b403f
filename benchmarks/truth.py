"""Scores of latents and volumes against known truth, by the program that comes with the data."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from benchmarks.common import environment_of_others, run_measured

NUM_VOLUMES = 100
SHELLS = ("D/8", "3D/16", "D/4", "3D/8", "D/2")


def scored_images(num_images: int) -> Int[np.ndarray, " n"]:
    """Choose the images whose volumes are scored."""
    return np.sort(np.random.default_rng(0).choice(num_images, NUM_VOLUMES, replace=False))


def score(
    program: Path,
    truth: Path,
    z: Float[np.ndarray, "N Z"] | None,
    volumes: Path | None,
    coordinate: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Score latents, and the folder of the volumes of `scored_images` or one volume for all.

    Parameters
    ----------
    program
        The scoring program.
    truth
        Folder with ``gt/``, ``labels.npy`` and perhaps ``states.csv``, ``mask_variable.mrc``.
    coordinate
        Flags of the program where the truth is continuous.
    """
    mask = truth / "mask_variable.mrc"
    words: list[object] = ["--gt", truth / "gt", "--labels", truth / "labels.npy"]
    words += ["--mask", mask if mask.exists() else "auto"]
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "score.json")
        if z is not None:
            np.save(Path(scratch, "z.npy"), z)
            words += ["--z", Path(scratch, "z.npy")]
        if z is not None and coordinate is not None:
            words += ["--coord", truth / "states.csv", *coordinate]
        if volumes is not None and volumes.is_dir():
            assert z is not None
            rows = [f"vol_{number:03d}.mrc,{image}\n" for number, image in enumerate(scored_images(len(z)))]
            Path(scratch, "map.csv").write_text("file,image\n" + "".join(rows))
            words += ["--vols", volumes, "--vol-map", Path(scratch, "map.csv")]
        elif volumes is not None:
            words += ["--single", volumes]
        command = [str(word) for word in (sys.executable, program, *words, "--out", out)]
        run_measured(command, Path.cwd(), environment_of_others(), " ".join(command))
        return json.loads(out.read_text())


def by_shell(scores: Mapping[str, Any]) -> dict[str, float]:
    """Name the areas under the per-image FSC by the shell (`SHELLS`) up to which they are, where there are volumes."""
    return dict(zip(SHELLS, scores.get("fsc_auc_to_shell_masked", {}).values(), strict=False))
