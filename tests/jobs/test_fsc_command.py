"""``drgn-ray fsc``: its table and what it prints are the curves, and what cannot be compared is one sentence."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest

from drgn_ray.analysis.consensus import merge_halves
from drgn_ray.analysis.volumes import write_mrc
from drgn_ray.physics.fsc import corrected_curve, first_shell_below, fourier_shell_correlation, resolution
from drgn_ray.physics.local_resolution import local_resolution
from drgn_ray.physics.mask import sphere_mask, threshold_mask
from drgn_ray.physics.volume import low_pass
from jobs.cli import main

SIZE, APIX = 32, 3.0


def halves() -> tuple[np.ndarray, np.ndarray]:
    """A lump of random density inside 9 voxels, known to about 12 Å, with noise all over the box."""
    rng = np.random.default_rng(0)
    lump = sphere_mask(SIZE, 9.0) * (1 + rng.normal(size=(SIZE,) * 3))
    signal = low_pass(lump, APIX, 12.0)
    return tuple((signal + 0.15 * rng.normal(size=signal.shape)).astype(np.float32) for _ in range(2))  # pyright: ignore


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with two half maps, a mask, and what cannot be compared with them."""
    monkeypatch.chdir(tmp_path)
    first, second = halves()
    maps = {
        "a.mrc": (first, APIX),
        "b.mrc": (second, APIX),
        "mask.mrc": (sphere_mask(SIZE, 9.0, 4.0), APIX),
        "nothing.mrc": (np.zeros((SIZE,) * 3), APIX),
        "small.mrc": (first[8:24, 8:24, 8:24], APIX),
        "fine.mrc": (second, 1.5),
        "unknown.mrc": (second, 0.0),
        "long.mrc": (first[:, 4:-4, 4:-4], APIX),
        "dark.mrc": (-first, APIX),
    }
    for name, (volume, apix) in maps.items():
        write_mrc(tmp_path / name, volume, apix, name)
    (tmp_path / "file").write_text("in the way")
    return tmp_path


def run(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    code = main(["fsc", *words.split()])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def check_said(printed: str, name: str, curve: np.ndarray) -> None:
    half, gold = (resolution(curve, SIZE, APIX, threshold) for threshold in (0.5, 0.143))
    assert f"{name} {half:.2f} Å at FSC 0.5, {gold:.2f} Å at 0.143" in printed


def test_two_maps_have_a_curve_for_every_mask_of_the_first(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("a.mrc b.mrc -o out/fsc", capsys)
    table = pd.read_csv(folder / "out" / "fsc" / "fsc.csv")
    assert list(table) == ["shell", "resolution", "unmasked", "spherical", "loose", "tight"]
    first, second = halves()
    masks = {
        "unmasked": np.ones_like(first),
        "spherical": sphere_mask(SIZE, 16.0),
        "loose": threshold_mask(first, apix=APIX, dilate=25.0, soft_edge=15.0),
        "tight": threshold_mask(first, apix=APIX, dilate=3 * APIX, soft_edge=3 * APIX),
    }
    for name, mask in masks.items():
        curve = fourier_shell_correlation(first * mask, second * mask)
        assert table[name].to_numpy() == pytest.approx(curve, abs=1e-5)
        if name in ("unmasked", "tight"):
            check_said(printed, name, curve)
    assert table["resolution"][1:].to_numpy() == pytest.approx(SIZE * APIX / np.arange(1, 17), rel=1e-5)
    assert (folder / "out" / "fsc" / "fsc.png").read_bytes().startswith(b"\x89PNG")


def test_a_mask_that_is_given_takes_the_place_of_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("a.mrc b.mrc -o fsc --mask mask.mrc", capsys)
    table = pd.read_csv(folder / "fsc" / "fsc.csv")
    assert list(table) == ["shell", "resolution", "unmasked", "masked"]
    mask = sphere_mask(SIZE, 9.0, 4.0)
    first, second = halves()
    curve = fourier_shell_correlation(first * mask, second * mask)
    assert table["masked"].to_numpy() == pytest.approx(curve, abs=1e-5)
    check_said(printed, "masked", curve)
    assert "inside mask.mrc" in printed


def test_half_maps_are_corrected_for_the_tight_mask_of_their_mean(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("a.mrc b.mrc -o fsc --half-maps", capsys)
    table = pd.read_csv(folder / "fsc" / "fsc.csv")
    assert list(table) == ["shell", "resolution", "unmasked", "spherical", "loose", "tight", "corrected"]
    first, second = halves()
    mask = threshold_mask(merge_halves(first, second).full, apix=APIX, dilate=3 * APIX, soft_edge=3 * APIX)
    start = first_shell_below(fourier_shell_correlation(first, second), 0.8)
    curve = corrected_curve(first, second, mask, start)
    assert table["corrected"].to_numpy() == pytest.approx(curve, abs=1e-4)
    check_said(printed, "corrected", curve)
    assert 9 < resolution(curve, SIZE, APIX, 0.143) < 13, "the truth ends at 12 Å"


def test_half_maps_are_corrected_for_a_given_mask(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("a.mrc b.mrc -o fsc --half-maps --mask mask.mrc", capsys)
    table = pd.read_csv(folder / "fsc" / "fsc.csv")
    assert list(table) == ["shell", "resolution", "unmasked", "masked", "corrected"]
    first, second = halves()
    start = first_shell_below(fourier_shell_correlation(first, second), 0.8)
    expected = corrected_curve(first, second, sphere_mask(SIZE, 9.0, 4.0), start)
    assert table["corrected"].to_numpy() == pytest.approx(expected, abs=1e-4)


def test_local_resolution_is_a_map_of_angstroms(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("a.mrc b.mrc -o fsc --half-maps --local-resolution", capsys)
    with mrcfile.open(folder / "fsc" / "local_resolution.mrc") as file:
        assert file.voxel_size.x == pytest.approx(APIX)
        assert np.array_equal(file.data, local_resolution(*halves(), APIX))
        assert 2 * APIX <= file.data.min() <= file.data.max() <= SIZE * APIX * 1.001
    assert "local resolution inside the mask: median" in printed


def test_the_mean_of_half_maps_is_weighed_where_they_agree() -> None:
    """Of signal and noise of equal power each half has an FSC of 1/2, and their mean weighs 2/3."""
    rng = np.random.default_rng(0)
    signal, *noises = rng.normal(size=(3, 32, 32, 32))
    first, second = signal + noises[0], signal + noises[1]
    spectrum = np.abs(np.fft.rfftn(merge_halves(first, second).full))
    plain = np.abs(np.fft.rfftn((first + second) / 2))
    assert (spectrum / plain)[0, 0, 6:16] == pytest.approx(2 / 3, abs=0.08)


def test_apix_takes_the_place_of_both_headers(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "32 px, 2 Å/px" in run("unknown.mrc fine.mrc -o fsc --apix 2", capsys)
    assert pd.read_csv(folder / "fsc" / "fsc.csv")["resolution"][16] == pytest.approx(4.0)


def test_a_curve_that_never_falls_is_said_to_reach_nyquist(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("a.mrc a.mrc -o fsc", capsys)
    assert "WARNING: a.mrc and a.mrc hold the same map" in printed
    assert "unmasked 6.00 Å at FSC 0.5, 6.00 Å at 0.143 (Nyquist)" in printed


@pytest.mark.parametrize(("words", "warned"), [("", True), ("--mask mask.mrc", False)])
def test_masks_of_a_negative_map_are_warned_of(
    words: str, warned: bool, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run(f"dark.mrc b.mrc -o fsc {words}", capsys)
    assert ("WARNING: the density of dark.mrc is negative" in printed) == warned


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("a.mrc missing.mrc -o fsc", "missing.mrc: there is no such file; check the path"),
        (
            "a.mrc small.mrc -o fsc",
            "small.mrc: it has 16 x 16 x 16 voxels of 3 Å, a.mrc has 32 x 32 x 32 of 3 Å; bring it there with",
        ),
        (
            "a.mrc fine.mrc -o fsc",
            "fine.mrc: its voxels are 1.5 Å, those of a.mrc 3 Å; compare maps of the same sampling",
        ),
        (
            "a.mrc b.mrc -o fsc --mask small.mrc",
            "small.mrc: it has 16 x 16 x 16 voxels of 3 Å, a.mrc has 32 x 32 x 32 of 3 Å",
        ),
        ("a.mrc b.mrc -o fsc --mask fine.mrc", "fine.mrc: its voxels are 1.5 Å, those of a.mrc 3 Å"),
        ("a.mrc b.mrc -o fsc --mask nothing.mrc", "nothing.mrc: all its voxels are 0; pass a map that holds something"),
        ("a.mrc nothing.mrc -o fsc", "nothing.mrc: all its voxels are 0"),
        ("a.mrc unknown.mrc -o fsc", "unknown.mrc: its header says 0 Å/px; add --apix"),
        (
            "long.mrc long.mrc -o fsc",
            "long.mrc: it has 32 x 24 x 24 voxels, which is no cube; make it one with `drgn-ray",
        ),
        ("a.mrc b.mrc -o fsc --local-resolution", "--local-resolution: it is a property of half maps"),
        ("a.mrc b.mrc -o fsc --apix 0", "--apix 0: it is not above 0"),
        ("a.mrc b.mrc -o s3://bucket/fsc", "-o s3://bucket/fsc: this is a URL; pass the path of a folder"),
        ("a.mrc b.mrc -o file", "-o file: there is a file where a folder should be"),
        ("a.mrc b.mrc -o file/fsc", "-o file/fsc: there is a file where a folder should be"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_leaves_nothing(
    words: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(folder.rglob("*"))
    assert main(["fsc", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"drgn-ray: {sentence}")
    assert error.endswith(".\n")
    assert len(error.splitlines()) == 1
    assert set(folder.rglob("*")) == before
