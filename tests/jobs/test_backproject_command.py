"""``drgn-ray backproject`` on 300 simulated particles: its files, its numbers, what it says, and what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest

from conversions.simulated import read_truth
from drgn_ray.analysis.agreement import volume_correlation
from drgn_ray.analysis.volumes import write_mrc
from drgn_ray.training.run_directory import RunDirectory
from jobs.cli import main

FILES = {"backproject.mrc", "half1_unfil.mrc", "half2_unfil.mrc", "mask.mrc", "fsc.csv", "fsc.png", "slices.png"}
BackProjected = Callable[..., tuple[Path, str]]


@pytest.fixture
def back_projected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> BackProjected:
    """Run the command in this process, each time into a new folder; return that and what it printed."""
    numbers = count()

    def run(source: str | Path, *words: str) -> tuple[Path, str]:
        output = tmp_path / f"maps{next(numbers)}"
        capsys.readouterr()
        assert main(["backproject", str(source), "-o", str(output), "--workers", "0", *words]) == 0
        return output, capsys.readouterr().out

    return run


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


class TestOfAStore:
    """The consensus."""

    def test_all_files_are_written_in_the_stores_sampling(
        self, store_path: Path, back_projected: BackProjected
    ) -> None:
        folder, _ = back_projected(store_path)
        assert names_in(folder) == FILES
        for name in ("backproject.mrc", "half1_unfil.mrc", "half2_unfil.mrc", "mask.mrc"):
            with mrcfile.open(folder / name) as file:
                assert file.data.shape == (32, 32, 32)
                assert float(file.voxel_size.x) == pytest.approx(6.0)
        mask = mrcfile.read(folder / "mask.mrc")
        assert (mask.min(), mask.max()) == (0, 1)

    def test_the_map_is_the_molecule_and_positive(
        self, store_path: Path, simulated: Path, back_projected: BackProjected
    ) -> None:
        folder, said = back_projected(store_path)
        truth = np.mean([read_truth(simulated.parent).volume(row, 32, 6.0) for row in range(300)], axis=0)
        volume = mrcfile.read(folder / "backproject.mrc")
        assert volume_correlation(volume, truth) > 0.8
        assert volume_correlation(volume[:, :, ::-1], truth) < volume_correlation(volume, truth) - 0.1
        assert "300 images" in said
        assert "density is positive, as it should be (skewness +" in said

    def test_the_table_holds_every_curve_and_the_resolution_that_is_said(
        self, store_path: Path, back_projected: BackProjected
    ) -> None:
        folder, said = back_projected(store_path)
        table = pd.read_csv(folder / "fsc.csv")
        names = ["unmasked", "spherical", "loose", "tight", "corrected"]
        assert list(table) == ["shell", "resolution", *names]
        assert table["shell"].tolist() == list(range(17))
        assert table["resolution"][0] == np.inf
        assert table["resolution"][16] == pytest.approx(12.0)
        assert table[names].abs().to_numpy().max() < 1 + 1e-5
        assert table["unmasked"][2] > 0.9
        shell = int(np.flatnonzero(table["unmasked"][1:] < 0.143)[0]) + 1
        above, under = table["unmasked"][shell - 1], table["unmasked"][shell]
        crossing = 32 * 6.0 / (shell - 1 + (above - 0.143) / (above - under))
        assert f"{crossing:.2f} Å at 0.143" in said.split("unmasked")[1]

    def test_the_half_maps_are_of_different_images(self, store_path: Path, back_projected: BackProjected) -> None:
        folder, _ = back_projected(store_path)
        halves = [mrcfile.read(folder / f"half{number}_unfil.mrc") for number in (1, 2)]
        assert 0.3 < volume_correlation(*halves) < 0.99

    def test_another_map_is_compared_with_it(
        self, store_path: Path, simulated: Path, tmp_path: Path, back_projected: BackProjected
    ) -> None:
        truth = np.mean([read_truth(simulated.parent).volume(row, 32, 6.0) for row in range(300)], axis=0)
        write_mrc(tmp_path / "truth.mrc", truth, 6.0, "the true mean")
        folder, said = back_projected(store_path, "--ref", str(tmp_path / "truth.mrc"))
        assert names_in(folder) == FILES | {"fsc_ref.csv", "fsc_ref.png"}
        table = pd.read_csv(folder / "fsc_ref.csv")
        assert list(table) == ["shell", "resolution", "unmasked", "spherical", "loose", "tight"]
        assert table["tight"][3] > 0.9
        assert f"against {tmp_path}/truth.mrc: tight " in said

    def test_a_list_of_rows_alone_is_inserted(
        self, store_path: Path, tmp_path: Path, back_projected: BackProjected
    ) -> None:
        (tmp_path / "rows.txt").write_text(" ".join(map(str, range(100, 220))))
        _, said = back_projected(store_path, "--indices", str(tmp_path / "rows.txt"))
        assert "120 images" in said

    def test_a_symmetry_makes_the_map_symmetric(self, store_path: Path, back_projected: BackProjected) -> None:
        folder, said = back_projected(store_path, "--sym", "C2")
        assert names_in(folder) == FILES | {"fsc_symmetry.csv", "fsc_symmetry.png"}
        assert "against the map without C2: tight " in said
        assert pd.read_csv(folder / "fsc_symmetry.csv")["tight"][4:8].min() < 0.9, "the molecule has no symmetry"
        volume = mrcfile.read(folder / "half1_unfil.mrc")[1:, 1:, 1:]
        assert volume_correlation(volume, volume[:, ::-1, ::-1]) > 0.999

    def test_maps_that_are_there_are_kept(
        self, store_path: Path, back_projected: BackProjected, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder, _ = back_projected(store_path)
        again = ["backproject", str(store_path), "-o", str(folder), "--workers", "0"]
        assert main(again) == 2
        assert "backproject.mrc: it is already here; pass another -o, or --overwrite" in capsys.readouterr().err
        assert main([*again, "--overwrite"]) == 0

    def test_cryodrgns_names_in_the_compatible_mode(self, store_path: Path, back_projected: BackProjected) -> None:
        folder, _ = back_projected(store_path, "--like-cryodrgn")
        halves = {"half_map_a.mrc", "half_map_b.mrc"}
        assert names_in(folder) == FILES - {"half1_unfil.mrc", "half2_unfil.mrc"} | halves
        assert pd.read_csv(folder / "fsc.csv")["shell"].tolist() == list(range(16))


@pytest.mark.parametrize(("converted_with", "remedy"), [("--no-invert", "--invert"), ("--invert", "--no-invert")])
def test_density_of_the_wrong_sign_is_said_with_the_flag_that_mends_it(
    converted_with: str, remedy: str, simulated: Path, tmp_path: Path, back_projected: BackProjected
) -> None:
    star = simulated if converted_with == "--no-invert" else darkened(simulated, tmp_path)
    store = str(tmp_path / "wrong.zarr")
    assert main(["convert", str(star), "-o", store, "-D", "32", "--workers", "0", converted_with]) == 0
    _, said = back_projected(store)
    assert "DENSITY IS NEGATIVE (skewness -" in said
    assert f"convert the particles again with {remedy}\n" in said
    assert main(["convert", str(star), "-o", store, "-D", "32", "--workers", "0", remedy, "--overwrite"]) == 0
    _, said = back_projected(store)
    assert "density is positive" in said


def darkened(star: Path, folder: Path) -> Path:
    """The same particles with protein dark."""
    images = mrcfile.read(star.parent / "particles.mrcs")
    with mrcfile.new(folder / "particles.mrcs") as file:
        file.set_data(-images)
        file.set_image_stack()
    copied = folder / "particles.star"
    copied.write_bytes(star.read_bytes())
    return copied


class TestOfARun:
    """Volumes of the particles behind states."""

    def test_every_cluster_has_its_volume_and_what_the_network_makes_of_it(
        self, trained: RunDirectory, back_projected: BackProjected
    ) -> None:
        folder, said = back_projected(trained.path, "--clusters", "all")
        assert names_in(folder) == {"cluster_00", "cluster_01", "cluster_02", "states.csv"}
        table = pd.read_csv(folder / "states.csv")
        assert table["state"].tolist() == ["cluster_00", "cluster_01", "cluster_02"]
        assert table["images"].sum() == 300
        assert {"half_maps_0.143", "decoded_0.5"} < set(table)
        labels = pd.read_csv(next(trained.path.glob("analyze.*/kmeans3/labels.csv")))["label"]
        volumes = []
        for number in range(3):
            cluster = folder / f"cluster_{number:02d}"
            assert names_in(cluster) == FILES | {"decoded.mrc", "fsc_decoded.csv", "fsc_decoded.png"}
            assert f"{cluster}/backproject.mrc\n  {(labels == number).sum()} images" in said
            decoded = mrcfile.read(next(trained.path.glob(f"analyze.*/kmeans3/vol_{number:03d}.mrc")))
            assert np.allclose(mrcfile.read(cluster / "decoded.mrc"), decoded, atol=1e-4 * np.abs(decoded).max())
            volumes.append(mrcfile.read(cluster / "backproject.mrc"))
        assert volume_correlation(volumes[0], volumes[1]) < 0.999
        assert (
            len(re.findall(r"against the decoded volume, up to the [\d.]+ Å that the half maps reach: tight ", said))
            == 3
        )
        table = pd.read_csv(folder / "states.csv")
        assert (table["decoded_0.143"] >= table["half_maps_0.143"] - 0.01).all(), "finer than its half maps"

    def test_chosen_clusters_alone(self, trained: RunDirectory, back_projected: BackProjected) -> None:
        folder, _ = back_projected(trained.path, "--clusters", "2,0")
        assert names_in(folder) == {"cluster_00", "cluster_02", "states.csv"}

    def test_neighbours_of_particles(self, trained: RunDirectory, back_projected: BackProjected) -> None:
        folder, said = back_projected(trained.path, "--particles", "17,204", "--neighbors", "80")
        assert names_in(folder) == {"particle_17", "particle_204", "states.csv"}
        for name in ("particle_17", "particle_204"):
            assert names_in(folder / name) >= FILES | {"decoded.mrc", "fsc_decoded.csv"}
        assert said.count("80 images") == 2

    def test_neighbours_of_a_latent(self, trained: RunDirectory, back_projected: BackProjected) -> None:
        folder, _ = back_projected(trained.path, "-z", "0", "0.1")
        assert names_in(folder) == {"latent", "states.csv"}

    def test_a_run_without_a_choice_is_its_store(
        self, trained: RunDirectory, store_path: Path, back_projected: BackProjected
    ) -> None:
        of_run = mrcfile.read(back_projected(trained.path)[0] / "backproject.mrc")
        of_store = mrcfile.read(back_projected(store_path)[0] / "backproject.mrc")
        assert np.array_equal(of_run, of_store)


class TestRefusals:
    """One sentence, exit code 2, nothing written."""

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            (["STORE", "--clusters", "1"], "--clusters: a store alone has no latents; pass the run directory"),
            (["STORE", "--particles", "1"], "--particles: a store alone has no latents; pass the run directory"),
            (["STORE", "-z", "0", "0"], "-z: a store alone has no latents; pass the run directory"),
            (["RUN", "--clusters", "1", "--particles", "1"], "--clusters and --particles: they say different things;"),
            (["RUN", "--clusters", "1,9"], "--clusters 1,9: "),
            (["RUN", "--clusters", "one"], "--clusters one: these are no numbers; pass them as 3,7."),
            (["RUN", "--clusters", "1", "--ksample", "7"], "it has no k-means labels; type `drgn-ray analyze"),
            (["RUN", "--particles", "300"], "particle 300: it is not among"),
            (["RUN", "--particles", "3", "--neighbors", "301"], "--neighbors 301: the run has 300 latents; pass 2 to"),
            (["RUN", "-z", "0", "0", "0"], "-z: it has 3 numbers; pass 2, as the run has dimensions."),
            (["STORE", "--sym", "Q4"], "--sym Q4: there is no such point group; pass Cn or Dn"),
            (["STORE", "--ref", "small.mrc"], "small.mrc: it has 16 x 16 x 16 voxels of 6 Å, "),
            (["STORE", "--ref", "coarse.mrc"], "coarse.mrc: its voxels are 7 Å, those of "),
            (["STORE", "--ref", "none.mrc"], "none.mrc: there is no such file; check the path."),
            (["STORE", "--ntilts", "0"], "--ntilts 0: it is not above 0; pass a positive number."),
            (["STORE", "--dose-per-tilt", "-3"], "--dose-per-tilt -3: it is not above 0;"),
            (["STORE", "--neighbors", "5"], "--neighbors: it is not said whose; add --particles or -z."),
            (["RUN", "-z", "nan", "1"], "-z: it holds something that is no number;"),
            (["STORE", "--workers", "-1"], "--workers -1: it is a count; pass 0 or more."),
            (["nowhere"], "nowhere: there is no particle store here;"),
        ],
    )
    def test_a_mistake_is_one_sentence(
        self,
        words: list[str],
        sentence: str,
        store_path: Path,
        trained: RunDirectory,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name, size, apix in (("small.mrc", 16, 6.0), ("coarse.mrc", 32, 7.0)):
            write_mrc(tmp_path / name, np.ones((size,) * 3), apix, "of another grid")
        known = {"STORE": str(store_path), "RUN": str(trained.path)}
        capsys.readouterr()
        assert main(["backproject", *(known.get(word, word) for word in words), "-o", "maps"]) == 2
        error = capsys.readouterr().err
        assert sentence in error
        assert len(error.strip().splitlines()) == 1
        assert not (tmp_path / "maps").exists()

    def test_a_url_is_no_folder(self, store_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["backproject", str(store_path), "-o", "s3://bucket/maps"]) == 2
        expected = "drgn-ray: -o s3://bucket/maps: this is a URL; pass the path of a folder.\n"
        assert capsys.readouterr().err == expected

    def test_a_half_map_without_images(
        self, simulated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = str(tmp_path / "one.zarr")
        assert main(["convert", str(simulated), "-o", store, "-D", "16", "--first", "1", "--workers", "0"]) == 0
        assert main(["backproject", store, "-o", str(tmp_path / "maps")]) == 2
        assert f"{store}: its half map 2 would have no image; choose more particles." in capsys.readouterr().err
        assert not (tmp_path / "maps").exists()
