"""``drgn-ray volume``: the map it writes is the one asked for, and what cannot be done is one sentence."""

from __future__ import annotations

from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from drgn_ray.analysis.volumes import read_mrc, write_mrc
from drgn_ray.physics import volume as physics
from drgn_ray.physics.mask import default_threshold, threshold_mask
from drgn_ray.physics.simulate import BlobMolecule, density
from jobs.cli import main

SIZE, APIX = 32, 2.0
POSITION = torch.tensor([[0.0, 0, -8], [9, 0, -3], [0, 7, 3], [-7, 0, 9], [5, -4, 0]])


def map_of(position: torch.Tensor, box_size: int = SIZE, apix: float = APIX) -> np.ndarray:
    """Blobs of 3 Å, in mass/Å³."""
    return density(BlobMolecule(position, torch.arange(1.0, 6.0), 3.0), box_size, apix).numpy() / apix**3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with map.mrc, and some that are hard to work with."""
    monkeypatch.chdir(tmp_path)
    volume = map_of(POSITION)
    write_mrc(tmp_path / "map.mrc", volume, APIX, "test")
    write_mrc(tmp_path / "unknown.mrc", volume, 0.0, "no voxel size")
    write_mrc(tmp_path / "odd.mrc", volume[:31, :31, :31], APIX, "odd")
    write_mrc(tmp_path / "long.mrc", volume[:, 4:-4, 4:-4], APIX, "no cube")
    write_mrc(tmp_path / "negative.mrc", -volume, APIX, "negative")
    write_mrc(tmp_path / "mask.mrc", (volume > 0.002).astype(np.float32), APIX, "mask")
    write_mrc(tmp_path / "small_mask.mrc", np.ones((16, 16, 16)), APIX, "mask of another box")
    write_mrc(tmp_path / "fine_mask.mrc", np.ones((32, 32, 32)), 1.0, "mask of another sampling")
    (tmp_path / "text.mrc").write_text("no map")
    (tmp_path / "stack.mrcs").write_bytes((tmp_path / "map.mrc").read_bytes())
    with mrcfile.new(tmp_path / "complex.mrc") as file:
        file.set_data(np.ones((8, 8, 8), np.complex64))
    (tmp_path / "sub").mkdir()
    return tmp_path


def run(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Run the command; return what it printed."""
    code = main(["volume", *words.split()])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


def written(path: Path) -> np.ndarray:
    assert mrcfile.validate(path)
    assert not list(path.parent.glob(".*")), "a partial file is left"
    return read_mrc(str(path)).data


def test_the_other_hand_is_the_map_of_the_mirrored_molecule(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "flip hand: mirrored along z about voxel 16" in run("map.mrc -o out.mrc --flip-hand", capsys)
    expected = map_of(POSITION * torch.tensor([1, 1, -1]))
    assert written(folder / "out.mrc") == pytest.approx(expected, abs=1e-7)


def test_a_resampled_map_has_the_new_voxel_size_and_the_same_density(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("map.mrc -o out.mrc -D 40", capsys)
    assert "resample: 32 px of 2 Å -> 40 px of 1.6 Å" in printed
    assert "map of 40 x 40 x 40 px, 1.6 Å/px" in printed
    expected = map_of(POSITION, 40, 1.6)
    assert np.abs(written(folder / "out.mrc") - expected).max() < 2e-3 * expected.max()
    assert read_mrc("out.mrc").apix == pytest.approx(1.6)


def test_crop_comes_before_resampling_whatever_the_order_of_the_flags(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("map.mrc -o out.mrc -D 30 --crop 24", capsys)
    assert printed.index("crop: 32 x 32 x 32 -> 24 x 24 x 24 px, 2 Å/px") < printed.index("resample: 24 px of 2 Å")
    assert read_mrc("out.mrc").apix == pytest.approx(1.6)
    expected = physics.resample(physics.crop(map_of(POSITION), 24), 30)
    assert written(folder / "out.mrc") == pytest.approx(expected, abs=1e-6)


def test_filters_are_those_of_the_new_sampling(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("map.mrc -o out.mrc --low-pass 9 --sharpen -60 --invert -D 24", capsys)
    order = ["resample: 32", "invert: ", "sharpen: B = -60.0 Å²", "low-pass: 9 Å (Nyquist is 5.333 Å)"]
    assert sorted(order, key=printed.index) == order
    apix = APIX * 32 / 24
    expected = physics.low_pass(physics.sharpen(-physics.resample(map_of(POSITION), 24), apix, -60.0), apix, 9.0)
    assert written(folder / "out.mrc") == pytest.approx(expected, abs=1e-6)


def test_a_positive_bfactor_is_said_to_blur(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "blur: B = 80.0 Å²" in run("map.mrc -o out.mrc --sharpen 80", capsys)
    assert written(folder / "out.mrc").max() < map_of(POSITION).max()


def test_the_bfactor_found_is_that_of_the_atoms(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One blob of width σ decays by 8π²σ²."""
    blob = BlobMolecule(torch.zeros(1, 3), torch.ones(1), 1.5)
    write_mrc(folder / "blob.mrc", density(blob, 48, 1.0).numpy(), 1.0, "blob")
    printed = run("blob.mrc -o out.mrc --sharpen auto --low-pass 3", capsys)
    said = float(printed.split("sharpen: B = ")[1].split(" Å²")[0])
    assert said == pytest.approx(-8 * np.pi**2 * 1.5**2, rel=0.01)
    assert "(Guinier fit from 10 to 3 Å)" in printed
    spectrum = np.abs(np.fft.rfftn(written(folder / "out.mrc")))[0, 0]
    assert spectrum[5:14] == pytest.approx(spectrum[5], rel=0.02), "amplitudes are flat up to 3 Å, shell 16"


def test_a_mask_multiplies_the_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("map.mrc -o out.mrc --flip-hand --mask mask.mrc", capsys)
    expected = physics.flip_hand(map_of(POSITION)) * (map_of(POSITION) > 0.002)
    assert written(folder / "out.mrc") == pytest.approx(expected, abs=1e-7)


def test_a_mask_with_other_values_is_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_mrc(folder / "loud.mrc", np.full((32, 32, 32), 7.0), APIX, "no mask")
    assert "WARNING: loud.mrc holds 7 to 7; a mask is between 0 and 1" in run(
        "map.mrc -o o.mrc --mask loud.mrc", capsys
    )


def test_a_made_mask_says_its_threshold_and_what_is_next(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("map.mrc -o out.mrc --make-mask --dilate 5 --soft-edge 6", capsys)
    volume = map_of(POSITION)
    assert written(folder / "out.mrc") == pytest.approx(threshold_mask(volume, apix=APIX, dilate=5.0, soft_edge=6.0))
    assert f"make mask: threshold {default_threshold(volume):.4g}, half of the 99.99th percentile (" in printed
    assert "dilated by 5 Å (2 px), soft edge 6 Å (3.0 px)" in printed
    assert "next: drgn-ray fsc half1_unfil.mrc half2_unfil.mrc --half-maps --mask out.mrc -o fsc" in printed
    assert "relion_postprocess --i half1_unfil.mrc --mask out.mrc --angpix 2 " in printed


def test_a_made_mask_has_cryodrgns_defaults_and_is_made_of_the_result(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("negative.mrc -o out.mrc --invert --low-pass 15 --make-mask --threshold 0.002", capsys)
    expected = threshold_mask(
        physics.low_pass(map_of(POSITION), APIX, 15.0), apix=APIX, threshold=0.002, dilate=25.0, soft_edge=15.0
    )
    assert written(folder / "out.mrc") == pytest.approx(expected, abs=1e-5)
    assert "threshold 0.002 (" in printed
    assert "dilated by 25 Å (12 px), soft edge 15 Å (7.5 px)" in printed


def test_a_mask_of_everything_is_warned_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "WARNING: the mask leaves nothing out" in run("map.mrc -o out.mrc --make-mask --dilate 500", capsys)
    assert written(folder / "out.mrc").min() == 1


def test_apix_takes_the_place_of_the_header(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "apix: 1.5 Å/px (the header says 2)" in run("map.mrc -o out.mrc --apix 1.5", capsys)
    assert np.array_equal(written(folder / "out.mrc"), read_mrc("map.mrc").data)
    assert read_mrc("out.mrc").apix == pytest.approx(1.5)
    run("unknown.mrc -o filtered.mrc --apix 1.5 --low-pass 6", capsys)
    assert written(folder / "filtered.mrc") == pytest.approx(physics.low_pass(map_of(POSITION), 1.5, 6.0), abs=1e-7)


def test_an_unknown_voxel_size_is_warned_of_where_it_does_not_matter(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    printed = run("unknown.mrc -o out.mrc --invert", capsys)
    assert "WARNING: the header of unknown.mrc says 0 Å/px; set it right with --apix" in printed
    assert written(folder / "out.mrc") == pytest.approx(-map_of(POSITION))


def test_a_map_that_is_no_cube_is_filtered_mirrored_and_made_one(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    volume = map_of(POSITION)[:, 4:-4, 4:-4]
    run("long.mrc -o out.mrc --invert --flip-hand --low-pass 8", capsys)
    expected = physics.low_pass(-physics.flip_hand(volume), APIX, 8.0)
    assert written(folder / "out.mrc") == pytest.approx(expected, abs=1e-7)
    run("long.mrc -o cube.mrc --crop 32 -D 16", capsys)
    assert written(folder / "cube.mrc") == pytest.approx(physics.resample(physics.crop(volume, 32), 16), abs=1e-6)
    run("long.mrc -o long_mask.mrc --make-mask --dilate 2 --soft-edge 0", capsys)
    run("long.mrc -o masked.mrc --mask long_mask.mrc", capsys)
    assert written(folder / "masked.mrc") == pytest.approx(volume * written(folder / "long_mask.mrc"), abs=1e-7)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("map.mrc -o out.mrc", "volume: it is not said what to do; pass one or more of --apix, --crop"),
        ("missing.mrc -o out.mrc --invert", "missing.mrc: there is no such file; check the path"),
        ("text.mrc -o out.mrc --invert", "text.mrc: it cannot be read as MRC ("),
        ("stack.mrcs -o out.mrc --invert", "stack.mrcs: its name says that it is a stack of images; pass a map"),
        ("complex.mrc -o out.mrc --invert", "complex.mrc: it cannot be read as MRC (its values are complex)"),
        ("map.mrc -o map.mrc --invert", "-o map.mrc: this is IN, which would be lost; pass another name"),
        ("map.mrc -o sub/../map.mrc --invert", "-o sub/../map.mrc: this is IN, which would be lost"),
        ("map.mrc -o mask.mrc --mask mask.mrc", "-o mask.mrc: this is --mask, which would be lost"),
        ("map.mrc -o s3://b/out.mrc --invert", "-o s3://b/out.mrc: a map is written to a file, not to a URL"),
        ("map.mrc -o no/out.mrc --invert", "-o no/out.mrc: there is no folder no; make it with `mkdir -p no`"),
        ("map.mrc -o sub --invert", "-o sub: this is a folder; pass the name of a file"),
        ("map.mrc -o out.mrc.gz --invert", "-o out.mrc.gz: its name ends neither in .mrc nor in .map"),
        ("map.mrc -o out.mrc -D 25", "-D 25: it is odd; pass an even number, as 26"),
        ("map.mrc -o out.mrc -D 0", "-D 0: it is not above 0; pass a positive number (voxels)"),
        ("map.mrc -o out.mrc -D -8", "-D -8: it is not above 0"),
        ("map.mrc -o out.mrc --crop 0", "--crop 0: it is not above 0"),
        ("map.mrc -o out.mrc --crop 1", "--crop 1: one voxel is no volume"),
        ("map.mrc -o out.mrc --apix -1", "--apix -1: it is not above 0"),
        ("map.mrc -o out.mrc --apix nan", "--apix nan: it is not above 0"),
        ("map.mrc -o out.mrc --low-pass 0", "--low-pass 0: it is not above 0; pass a positive number (Å)"),
        ("map.mrc -o out.mrc --low-pass 3.9", "--low-pass 3.9: voxels of 2 Å hold nothing finer than 4 Å (Nyquist)"),
        ("map.mrc -o out.mrc --low-pass 6 -D 16", "--low-pass 6: voxels of 4 Å hold nothing finer than 8 Å (Nyquist)"),
        ("map.mrc -o out.mrc --low-pass 100", "--low-pass 100: the box is 64 Å, so nothing would be left"),
        ("map.mrc -o out.mrc --sharpen auto", "--sharpen auto: it is not said up to which resolution to fit; add"),
        ("map.mrc -o out.mrc --sharpen auto --low-pass 9.9", "--sharpen auto: there are "),
        ("map.mrc -o out.mrc --sharpen nan", "--sharpen nan: it is no number; pass a B-factor"),
        ("map.mrc -o out.mrc --sharpen -90000", "--sharpen -90000.0: the values overflow; pass"),
        ("map.mrc -o out.mrc --invert --dilate 3", "--dilate: it shapes a mask, and none is made; add --make-mask"),
        ("map.mrc -o out.mrc --make-mask --threshold 0", "--threshold 0: it is not above 0"),
        ("map.mrc -o out.mrc --make-mask --threshold 9", "--threshold 9: no voxel reaches it, the densest is "),
        ("map.mrc -o out.mrc --make-mask --dilate -3", "--dilate -3: it is below 0 or no number"),
        ("map.mrc -o out.mrc --make-mask --soft-edge nan", "--soft-edge nan: it is below 0 or no number"),
        ("negative.mrc -o out.mrc --make-mask", "negative.mrc: hardly any density is positive; pass --invert"),
        (
            "map.mrc -o out.mrc --mask small_mask.mrc",
            "small_mask.mrc: it has 16 x 16 x 16 voxels of 2 Å, map.mrc has 32 x 32",
        ),
        (
            "map.mrc -o out.mrc -D 16 --mask mask.mrc",
            "mask.mrc: it has 32 x 32 x 32 voxels of 2 Å, the result has 16 x 16",
        ),
        ("map.mrc -o out.mrc --mask fine_mask.mrc", "fine_mask.mrc: its voxels are 1 Å, those of map.mrc 2 Å"),
        ("map.mrc -o out.mrc --mask missing.mrc", "missing.mrc: there is no such file"),
        (
            "unknown.mrc -o out.mrc --low-pass 6",
            "unknown.mrc: its header says 0 Å/px, and --low-pass is in Å; add --apix",
        ),
        ("unknown.mrc -o out.mrc --make-mask", "unknown.mrc: its header says 0 Å/px, and --make-mask is in Å"),
        ("unknown.mrc -o out.mrc --sharpen -50", "unknown.mrc: its header says 0 Å/px, and --sharpen is in Å"),
        ("long.mrc -o out.mrc -D 16", "long.mrc: 32 x 24 x 24 voxels are no cube, which -D does not resample; pass an"),
        (
            "odd.mrc -o out.mrc -D 16",
            "odd.mrc: 31 x 31 x 31 voxels are odd, which -D does not resample; pass an even --",
        ),
        ("map.mrc -o out.mrc -D 16 --crop 21", "map.mrc: 21 x 21 x 21 voxels are odd"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_leaves_nothing(
    words: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert main(["volume", *words.split()]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"drgn-ray: {sentence}")
    assert error.endswith(".\n")
    assert len(error.splitlines()) == 1
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    "words", ["map.mrc -o out.mrc --sharpen strongly", "map.mrc --invert", "map.mrc -o o.mrc -D x"]
)
def test_a_call_that_cannot_be_parsed_ends_with_exit_code_2(words: str, folder: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["volume", *words.split()])
    assert ended.value.code == 2
