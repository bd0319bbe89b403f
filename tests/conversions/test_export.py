"""What comes out of a store is what went in: STAR to STAR, CS to CS, byte by byte; and from one to the other."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile
from cryosparc.dataset import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from star_sets import StarSet, write_empty_stacks_for
from test_cryosparc import small_table, write_images_of
from test_cryosparc import written as write_table

from conversions import csdat
from conversions.export import export
from conversions.inputs import read_particles
from conversions.star import read_star_file, write_star_file
from drgn_ray.errors import ConfigError
from drgn_ray.particles.store import ParticleStore
from jobs.cli import main


def converted(source: str | Path, *words: str, name: str = "store.zarr") -> ParticleStore:
    output = Path(source).parent / name
    command = ["convert", str(source), "-o", str(output), "--workers", "0", "--no-invert", *words]
    assert main(command) == 0
    return ParticleStore(output)


def random_half(count: int) -> np.ndarray:
    return np.sort(np.random.default_rng(7).permutation(count)[: count // 2])


class TestStar:
    """RELION's tables."""

    @pytest.mark.parametrize(
        ("star", "flags"),
        [
            ("adk_sim/particles.star", "-D 16"),
            ("fixtures/relion31.v2.star", "-D 32"),
            ("fixtures/sta_testing_bin8.star", "--apix 15.68"),
            ("empiar10076_sim/10076_both_32_sim.star", "--apix 13.1"),
            ("relion_made/relion_proj_batch.star", ""),
            ("tilt10499/ribo10499_10.star", ""),
        ],
    )
    def test_a_half_of_a_real_table_comes_back_token_by_token(
        self, star: str, flags: str, reference_data: Path, tmp_path: Path
    ) -> None:
        source, output = reference_data / star, str(tmp_path / "store.zarr")
        words = ["convert", str(source), "-o", output, "--workers", "0", "--no-invert", *flags.split()]
        assert main(words) == 0
        store = ParticleStore(output)
        rows = random_half(len(store))
        export(store, rows, [str(tmp_path / "half.star")])
        original, half = read_star_file(str(source)), read_star_file(str(tmp_path / "half.star"))
        assert half.version == original.version
        assert [block.name for block in half.blocks] == [block.name for block in original.blocks]
        for before, after in zip(original.blocks, half.blocks, strict=True):
            is_table = "rlnImageName" in before.table.column_names
            assert after.table.equals(before.table.take(rows) if is_table else before.table)

    def test_other_programs_read_the_same_numbers(
        self, adk_star: Path, adk_cropped: ParticleStore, tmp_path: Path
    ) -> None:
        rows = random_half(5000)
        export(adk_cropped, rows, [str(tmp_path / "half.star")])
        original, half = starfile.read(adk_star), starfile.read(tmp_path / "half.star")
        pd.testing.assert_frame_equal(half["particles"], original["particles"].iloc[rows].reset_index(drop=True))
        pd.testing.assert_frame_equal(half["optics"], original["optics"])

    def test_relions_header_is_kept(self, reference_data: Path, tmp_path: Path) -> None:
        """RELION takes a file without its version line for one of RELION 3.0."""
        store = converted_elsewhere(reference_data / "fixtures/relion31.star", tmp_path, "-D", "16")
        export(store, np.arange(2), [str(tmp_path / "two.star")])
        lines = (tmp_path / "two.star").read_text().splitlines()
        assert lines.count("# version 30001") == 2
        assert lines[lines.index("data_particles") + 2] == "loop_ "
        assert "_rlnCoordinateX #1 " in lines


def converted_elsewhere(source: Path, folder: Path, *words: str) -> ParticleStore:
    output = str(folder / "store.zarr")
    assert main(["convert", str(source), "-o", output, "--workers", "0", "--no-invert", *words]) == 0
    return ParticleStore(output)


TOKEN = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters="\"'#_"), min_size=1)
VALUES = st.one_of(
    TOKEN, st.floats(allow_nan=False).map(repr), st.sampled_from(["", "two words", "007", "1e-3", "[1,2]"])
)


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.tuples(VALUES, VALUES, TOKEN), min_size=2, max_size=30),
    keep=st.data(),
    version=st.sampled_from([None, 30001, 50001]),
)
def test_any_table_comes_back(rows: list[tuple[str, str, str]], keep: st.DataObject, version: int | None) -> None:
    """Through a file, a store and another file."""
    frame = pd.DataFrame(rows, columns=["rlnFirst", "rlnSecond", "rlnLast"])
    kept = np.array(sorted(keep.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1))))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frame.insert(1, "rlnImageName", [f"{number + 1}@a.mrcs" for number in range(len(rows))])
        for column in ("Rot", "Tilt", "Psi"):
            frame[f"rlnAngle{column}"] = [f"{value:.6f}" for value in np.linspace(0, 90, len(rows))]
        frame["rlnImagePixelSize"] = "1.5"
        write_frame(folder / "a.star", frame, version)
        write_empty_stacks_for(list(frame["rlnImageName"]), folder, 4)
        store = converted(folder / "a.star", "--no-ctf")
        export(store, kept, [str(folder / "b.star")])
        again = read_star_file(str(folder / "b.star"))
    assert again.version == version
    pd.testing.assert_frame_equal(
        again.blocks[0].table.to_pandas().astype(object), frame.iloc[kept].reset_index(drop=True).astype(object)
    )


def write_frame(path: Path, frame: pd.DataFrame, version: int | None) -> None:
    """Spelled out, so that the writer is not tested against itself."""
    quoted = [[f'"{v}"' if not v or " " in v else v for v in row] for row in frame.to_numpy()]
    head = [f"# version {version}"] if version else []
    labels = [f"_{label} #{number}" for number, label in enumerate(frame, 1)]
    path.write_text("\n".join([*head, "data_particles", "", "loop_", *labels, *map(" ".join, quoted)]) + "\n")


class TestCs:
    """cryoSPARC's tables."""

    def test_a_half_of_a_real_table_comes_back(self, reference_data: Path, tmp_path: Path) -> None:
        source = reference_data / "fixtures/cryosparc_P12_J24_001_particles.cs"
        table = csdat.read_cs(str(source))[:300]
        csdat.write_cs(str(tmp_path / "J24.cs"), table)
        write_images_of(table, tmp_path)
        store = converted(tmp_path / "J24.cs", "-D", "8")
        rows = random_half(300)
        export(store, rows, [str(tmp_path / "half.cs")])
        half = np.load(tmp_path / "half.cs")
        assert half.dtype == table.dtype
        np.testing.assert_array_equal(half, table[rows])

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def test_any_table_comes_back(self, data: st.DataObject) -> None:
        table = small_table()
        kept = np.array(sorted(data.draw(st.sets(st.integers(0, 11), min_size=1))))
        table["uid"] = data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=12, max_size=12, unique=True))
        table["ctf/df1_A"] = data.draw(st.lists(st.floats(0, 1e5, width=32), min_size=12, max_size=12))
        with tempfile.TemporaryDirectory() as name:
            write_images_of(table, Path(name))
            store = converted(write_table(Path(name), table))
            export(store, kept, [str(Path(name) / "kept.cs")])
            np.testing.assert_array_equal(np.load(Path(name) / "kept.cs"), table[kept])


class TestFromOneToTheOther:
    """A table of another program is made of the store's columns; reading it gives the same particles."""

    NAMES = (
        *("rotation", "translation", "apix", "defocus_u", "defocus_v", "defocus_angle", "voltage", "cs"),
        *("amplitude_contrast", "phase_shift", "half_set", "ctf_scalefactor", "ctf_bfactor"),
    )

    def assert_same_particles(self, folder: Path, first: str, second: str) -> None:
        one, two = (read_particles(str(folder / name)) for name in (first, second))
        for name in self.NAMES:
            np.testing.assert_allclose(two.columns[name], one.columns[name], rtol=2e-6, atol=2e-6, err_msg=name)
        for path in ("stacks", "stack_of", "index_of"):
            assert list(getattr(one, path)) == list(getattr(two, path)), path

    def test_cs_to_star(self, tmp_path: Path) -> None:
        table = small_table()
        write_images_of(table, tmp_path)
        store = converted(write_table(tmp_path, table))
        export(store, np.arange(12), [str(tmp_path / "x.star")])
        self.assert_same_particles(tmp_path, "particles.cs", "x.star")
        assert starfile.read(tmp_path / "x.star")["optics"]["rlnImageSize"].tolist() == [16]

    def test_star_to_cs(self, star_set: StarSet) -> None:
        star = star_set.write()
        store = converted(star)
        export(store, np.arange(20), [str(star_set.folder / "x.cs")])
        self.assert_same_particles(star_set.folder, star.name, "x.cs")
        uid = Dataset.load(star_set.folder / "x.cs")["uid"]
        assert len(set(uid)) == 20

    def test_particles_in_no_half_set_stay_in_none(self, star_set: StarSet) -> None:
        star_set.particles = star_set.particles.drop(columns="rlnRandomSubset")
        store = converted(star_set.write())
        export(store, np.arange(20), [str(star_set.folder / "x.cs")])
        assert not read_particles(str(star_set.folder / "x.cs")).columns["half_set"].any()

    def test_a_selection_keeps_its_uids(self, star_set: StarSet) -> None:
        store = converted(star_set.write())
        export(store, np.arange(20), [str(star_set.folder / "all.cs")])
        export(store, np.array([3, 17]), [str(star_set.folder / "two.cs")])
        uids = [np.load(star_set.folder / name)["uid"] for name in ("all.cs", "two.cs")]
        np.testing.assert_array_equal(uids[0][[3, 17]], uids[1])

    def test_pickles_to_star(self, reference_data: Path, tmp_path: Path) -> None:
        fixtures = reference_data / "fixtures"
        words = f"--poses {fixtures}/hand_rot_trans.pkl --ctf {fixtures}/test_ctf.100.pkl"
        store = converted_elsewhere(fixtures / "hand.mrcs", tmp_path, *words.split())
        export(store, np.arange(100), [str(tmp_path / "x.star")])
        table = read_particles(str(tmp_path / "x.star"), datadir=str(fixtures))
        np.testing.assert_allclose(table.columns["rotation"], store.columns["rotation"], atol=2e-6)
        np.testing.assert_allclose(table.columns["translation"], store.columns["translation"], atol=1e-5)
        assert table.stacks[0].path == str(fixtures / "hand.mrcs")


def test_a_stack_holds_the_images_of_the_rows(star_set: StarSet) -> None:
    store = converted(star_set.write(), "--dtype", "float32")
    export(store, np.array([4, 0, 19]), [str(star_set.folder / "x.mrcs")])
    with mrcfile.open(star_set.folder / "x.mrcs") as file:
        np.testing.assert_array_equal(file.data, star_set.images[[4, 0, 19]])
        assert file.is_image_stack()
        assert float(file.voxel_size.x) == 2.0


class TestCommand:
    """``drgn-ray export`` chooses rows and writes files."""

    @pytest.fixture
    def store(self, star_set: StarSet) -> ParticleStore:
        (star_set.folder / "odd.txt").write_text("\n".join(map(str, range(1, 20, 2))))
        return converted(star_set.write(), "--ind", str(star_set.folder / "odd.txt"))

    def exported(self, store: ParticleStore, *words: str) -> list[int]:
        output = Path(store.path).parent / "rows.txt"
        assert main(["export", store.path, "-o", str(output), "--overwrite", *words]) == 0
        return np.loadtxt(output, dtype=int, ndmin=1).tolist()

    def test_all_rows_by_default(self, store: ParticleStore) -> None:
        assert self.exported(store) == list(range(1, 20, 2))

    def test_indices_are_rows_of_the_source(self, store: ParticleStore, tmp_path: Path) -> None:
        (tmp_path / "lasso.txt").write_text("15, 3, 7")
        assert self.exported(store, "--indices", str(tmp_path / "lasso.txt")) == [3, 7, 15]

    def test_a_mask_over_the_source_chooses_rows(self, store: ParticleStore, tmp_path: Path) -> None:
        np.save(tmp_path / "mask.npy", np.isin(np.arange(20), [3, 7, 15]))
        assert self.exported(store, "--indices", str(tmp_path / "mask.npy")) == [3, 7, 15]

    def test_the_others(self, store: ParticleStore, tmp_path: Path) -> None:
        (tmp_path / "lasso.txt").write_text("15 3 7")
        kept = self.exported(store, "--indices", str(tmp_path / "lasso.txt"), "--others")
        assert kept == [1, 5, 9, 11, 13, 17, 19]

    def test_clusters_of_a_table_of_labels(self, store: ParticleStore, tmp_path: Path) -> None:
        labels = pd.DataFrame({"source_row": np.arange(1, 20, 2), "label": [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]})
        labels.to_csv(tmp_path / "labels.csv", index=False)
        assert self.exported(store, "--labels", str(tmp_path / "labels.csv"), "--clusters", "1,4") == [3, 9, 13, 19]

    @pytest.mark.parametrize("suffix", ["pkl", "npy"])
    def test_lists_of_rows_come_in_every_kind(self, store: ParticleStore, suffix: str, tmp_path: Path) -> None:
        path = tmp_path / f"ind.{suffix}"
        assert main(["export", store.path, "-o", str(path)]) == 0
        rows = pickle.loads(path.read_bytes()) if suffix == "pkl" else np.load(path)
        assert rows.tolist() == list(range(1, 20, 2))

    def test_inputs_for_cryodrgn_of_a_store(self, store: ParticleStore, tmp_path: Path) -> None:
        assert main(["export", store.path, "--cryodrgn", str(tmp_path / "c")]) == 0
        assert {path.name for path in (tmp_path / "c").iterdir()} == {"particles.mrcs", "poses.pkl", "ctf.pkl"}

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            ([], "export: it is not said what to write; pass -o FILE or --cryodrgn FOLDER."),
            (["-o", "x.tif"], "-o x.tif: its name ends in none of .star, .cs, .mrcs, .pkl, .npy, .txt;"),
            (["-o", "x.star", "--clusters", "1"], "--clusters: a store alone has no latents; pass the run directory"),
            (["-o", "x.star", "--latent-box", "z0:0:1"], "--latent-box: a store alone has no latents;"),
            (["-o", "x.star", "--indices", "even.txt"], "even.txt: row 2 is not among the particles of the store;"),
            (
                ["-o", "x.star", "--indices", "far.txt"],
                "far.txt: row numbers run from 3 to 99, the particles from 0 to",
            ),
            (["-o", "even.txt"], "even.txt: something is already here; pass another name, or --overwrite"),
            (["-o", "x.star", "--labels", "l.csv"], "--labels, --ksample: it is not said which clusters; pass"),
            (["-o", "s3://b/x.star"], "-o s3://b/x.star: exports are written to local files; pass a path."),
            (["-o", "late.star", "--cryodrgn", "."], "something is already here; pass another folder."),
            (["-o", "x.star", "--others"], "export: the selection keeps no particle; widen it."),
        ],
    )
    def test_what_cannot_be_is_refused(
        self,
        words: list[str],
        sentence: str,
        store: ParticleStore,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("even.txt").write_text("2 4")
        Path("far.txt").write_text("3 99")
        before = set(tmp_path.iterdir())
        capsys.readouterr()
        assert main(["export", store.path, *words]) == 2
        error = capsys.readouterr().err
        assert error.startswith("drgn-ray: ")
        assert sentence in error
        assert set(tmp_path.iterdir()) == before


def test_a_block_of_pairs_comes_back_as_pairs(tmp_path: Path) -> None:
    """As RELION 5 writes data_general."""
    text = "\n# version 50001\n\ndata_general\n\n_rlnTomoSubTomosAre2DStacks       1\n_rlnNote 'two words'\n \n"
    (tmp_path / "a.star").write_text(text)
    star = read_star_file(str(tmp_path / "a.star"))
    assert star.blocks[0].table.to_pylist() == [{"rlnTomoSubTomosAre2DStacks": "1", "rlnNote": "two words"}]
    write_star_file(str(tmp_path / "b.star"), star)
    assert read_star_file(str(tmp_path / "b.star")).blocks[0].table.equals(star.blocks[0].table)


def test_no_output_is_written_where_one_name_is_wrong(star_set: StarSet) -> None:
    store = converted(star_set.write())
    with pytest.raises(ConfigError):
        export(store, np.arange(2), [str(star_set.folder / "x.star"), str(star_set.folder / "x.doc")])
    assert not (star_set.folder / "x.star").exists()
