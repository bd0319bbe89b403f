"""ChimeraX command files that open a folder's volumes: ``chimerax view_kmeans.cxc``."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
from matplotlib.colors import to_hex

from drgn_ray.analysis.surface import VOLUMES_A_SECOND, surface_level
from drgn_ray.analysis.volumes import read_mrc, volume_files

COLOURS = "tab20"  # of matplotlib
PAUSE_FRAMES = 10  # of a recorded movie
_SCENE = ("set bgColor white", "lighting soft", "view")


def colours(count: int) -> list[str]:
    """Colours of clusters, the same in pictures and in ChimeraX, as ``#rrggbb``; after 20 they begin again."""
    palette = mpl.colormaps[COLOURS]
    return [to_hex(palette(number % palette.N)) for number in range(count)]


def write_gallery(folder: Path, to: Path, picture: str = "z_pca.png") -> None:
    """Show the volumes of a folder side by side, each in its colour of a picture."""
    volumes = volume_files(folder)
    lines = [_head(f"{len(volumes)} volumes side by side, in the colours of {picture}", to)]
    for number, (volume, colour) in enumerate(zip(volumes, colours(len(volumes)), strict=True), start=1):
        level = surface_level(read_mrc(str(volume)).data)
        lines += [
            f"open {volume.relative_to(to.parent)} id {number}",
            f"volume #{number} level {level:.5g} color {colour} step 1",
        ]
    lines += [*_SCENE, "tile all", ""]
    to.write_text("\n".join(lines))


def write_series(folder: Path, to: Path) -> None:
    """Play the volumes of a folder forth and back, all at one level; how to record it is said in the file."""
    volumes = volume_files(folder)
    level = surface_level(read_mrc(str(volumes[len(volumes) // 2])).data)
    frames = 2 * len(volumes) * PAUSE_FRAMES
    lines = [
        _head(f"{len(volumes)} volumes, forth and back", to),
        f"open {folder.relative_to(to.parent)}/vol_*.mrc vseries true",
        f"volume #1 level {level:.5g} color {colours(1)[0]} step 1",
        *_SCENE,
        f"vseries play #1 loop true direction oscillate maxFrameRate {VOLUMES_A_SECOND}",
        "# To record it: vseries stop #1; movie record;",
        f"#   vseries play #1 direction oscillate loop false pauseFrames {PAUSE_FRAMES}; wait {frames};",
        f"#   movie encode {to.stem}.mp4",
        "",
    ]
    to.write_text("\n".join(lines))


def _head(title: str, to: Path) -> str:
    return f"# {title}. In this folder, type: chimerax {to.name}"
