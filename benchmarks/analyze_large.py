"""How long the analysis of many particles takes, and the memory it needs, all but the volumes.

python -m benchmarks.analyze_large

Latents are three Gaussians; volumes that the explorer shows are balls with noise.  UMAP is left out, as by default.
With Chromium and playwright the explorer's file is opened too, drawn without a GPU.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import print_table
from drgn_ray.analysis.analyze import analyze
from drgn_ray.analysis.explorer import Colour, by_category, write_explorer
from drgn_ray.analysis.surface import framed
from drgn_ray.analysis.volumes import write_mrc
from drgn_ray.training.checkpoint import Position
from drgn_ray.training.embed import Latents

FLAGS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-background-networking")


def main() -> int:
    """Make latents, analyse them, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-particles", type=int, default=1_000_000)
    parser.add_argument("--zdim", type=int, default=8)
    parser.add_argument("--box-size", type=int, default=128, help="of the volumes, px")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    count = arguments.num_particles
    z = rng.normal(size=(count, arguments.zdim)).astype(np.float32)
    z[:, 0] += 3 * rng.integers(3, size=count)
    latents = Latents(z, np.full_like(z, -2), np.arange(count), count)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        found = analyze(latents, Position(), Path(folder), ksample=20, num_pcs=2)
        rows.append(["PCA, k-means, mixtures, figures, tables", time.perf_counter() - start])
        for place, each in found.volumes.items():
            _write_balls(place, each, arguments.box_size, rng)
        by = [by_category("k-means", found.clusters.labels), by_category("half set", np.arange(count) % 2)]
        by += [Colour(name, rng.uniform(1, 2, count)) for name in ("defocus, µm", "view: tilt, °", "view: rot, °")]
        start, page = time.perf_counter(), Path(folder, "explorer.html")
        folders, shown = {each.name: each for each in found.volumes}, framed([*found.volumes])
        write_explorer(page, Path("runs/a"), latents, found.pca, by, folders, shown)
        rows.append([f"explorer, {page.stat().st_size / 1e6:.1f} MB", time.perf_counter() - start])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if chromium := shutil.which("chromium"):
            rows.append(["opening it in Chromium", _opened(page, chromium)])
    print(f"{count:,} particles, zdim {arguments.zdim}; peak memory {peak:.1f} GiB\n")
    print_table(["what", "s"], [[name, f"{seconds:.1f}"] for name, seconds in rows])
    return 0


def _write_balls(folder: Path, z: np.ndarray, size: int, rng: np.random.Generator) -> None:
    axis = np.arange(size) - size / 2
    folder.mkdir(exist_ok=True)
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    for number in range(len(z)):
        volume = (radius < size * (0.2 + 0.01 * number)) + 0.1 * rng.normal(size=(size,) * 3)
        write_mrc(folder / f"vol_{number:03d}.mrc", volume, 1.5, "a ball")
    np.savetxt(folder / "z_values.txt", z)


def _opened(page: Path, chromium: str) -> float:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        tab = browser.new_page()
        tab.set_default_timeout(120_000)
        start = time.perf_counter()
        tab.goto(f"file://{page}", wait_until="commit")
        tab.wait_for_selector("body[data-ready=yes]", state="attached")
        seconds = time.perf_counter() - start
        browser.close()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
