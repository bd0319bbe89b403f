"""Pictures and MRC files are what they say."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest

from drgn_ray.analysis.figures import learning_curve, pca_figure
from drgn_ray.analysis.latent_space import cluster, principal_components
from drgn_ray.analysis.volumes import slice_montage, write_mrc


def test_a_montage_is_black_at_zero_and_white_at_the_densest() -> None:
    volume = np.zeros((32, 32, 32))
    volume[14:18, 10:14, 20:24] = 1.0
    picture = slice_montage(volume)
    assert picture.dtype == np.uint8
    assert picture.min() == 0
    assert picture.max() == 255


def test_a_volume_file_has_voxel_size_order_and_label(tmp_path: Path) -> None:
    volume = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    write_mrc(tmp_path / "vol.mrc", volume, 2.5, "drgn_ray z = 1 2")
    with mrcfile.open(tmp_path / "vol.mrc") as file:
        assert np.array_equal(file.data, volume)
        assert file.header.mode == 2
        assert [float(file.voxel_size[axis]) for axis in "xyz"] == pytest.approx([2.5, 2.5, 2.5])
        assert "drgn_ray z = 1 2" in str(file.get_labels())
    assert mrcfile.validate(tmp_path / "vol.mrc")


@pytest.mark.parametrize("zdim", [1, 2, 8])
def test_figures_are_drawn_for_every_latent_dimension(zdim: int, tmp_path: Path) -> None:
    z = np.random.default_rng(0).normal(size=(200, zdim))
    pca_figure(principal_components(z), cluster(z, 5)).savefig(tmp_path / "pca.png")
    assert (tmp_path / "pca.png").stat().st_size > 5000


@pytest.mark.parametrize("validated", [True, False])
def test_a_learning_curve_has_a_line_for_each_kind_of_loss(validated: bool) -> None:
    names = ["train_epoch", "val"] if validated else ["train_epoch"]
    history = [{"epoch": e, **{f"{n}/{x}": 1 / e for n in names for x in ("loss", "kld")}} for e in (1, 2, 3)]
    figure = learning_curve(history)
    assert [len(axes.lines) for axes in figure.axes] == [len(names), len(names), 0]


def test_a_learning_curve_says_what_each_epoch_changed_where_that_is_known() -> None:
    history: list[dict[str, float]] = [
        {"epoch": epoch, "train_epoch/loss": 1, "train_epoch/kld": 1} for epoch in (1, 2, 3)
    ]
    for line, change in zip(history[1:], (0.2, 0.1), strict=True):
        line |= {"convergence/volume_change": change, "convergence/latent_change": change / 2}
    latents, volumes = learning_curve(history).axes[2].lines
    assert [*latents.get_ydata()] == [0.1, 0.05]
    assert [*volumes.get_xdata()] == [2, 3]
