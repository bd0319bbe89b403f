"""Score what `drgn-ray train` finds on particle sets with known truth, beside the core-seconds that it took.

python -m benchmarks.time_to_quality

Every model is trained on every set with several seeds, in one process and one thread, and embeds all images.  Volumes
of the same 100 images are decoded (not counted) and scored by the program that `--score` names.  Start-up is what the
same `train` takes when there is nothing left to do.  What is done stays in `--folder`: an interrupted benchmark goes
on where it was, and `--table-only` writes the tables into `docs/quality.md` again.

Finished cryoDRGN runs are scored in the same way: `--cryodrgn-runs` holds `cd_SET/` with `time.json` (core_seconds),
`z.npy` (in the order of the images), `config.yaml` and `weights.N.pkl`.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from mlflow import MlflowClient

from benchmarks import simulated_sets
from benchmarks.common import DRGN_RAY, ROOT, environment, environment_of_others, markdown_table, run_measured
from benchmarks.truth import SHELLS, by_shell, score, scored_images
from drgn_ray.particles.store import ParticleStore, StoreWriter
from drgn_ray.tracking.location import tracking_uri
from drgn_ray.training.embed import load_latents, trained_zdim
from drgn_ray.training.run_directory import RunDirectory

MODELS = {
    "linear": "--model linear",
    "basis": "--decoder basis --encoder linear --zdim 4 -n 6",
    "residual": "--decoder residual --encoder linear --dec-dim 256 --zdim 4 -n 8 --points-share 0.25",
    "backproject": "--decoder residual --init backproject --enc-dim 128 --dec-dim 128 --zdim 4 -n 14 --lr 1e-3"
    " --points-share 0.3",
    "vae": "--enc-dim 128 --dec-dim 128 --zdim 4 -n 14 --lr 1e-3 --points-share 0.2 --coarse-share 0.5",
    "auto": "--preset auto",
}
CRYODRGN, CONSENSUS = "cryoDRGN", "consensus"  # further rows
NUM_IMAGES = 5000  # of a simulated set
DOCUMENT = ROOT / "docs" / "quality.md"
MARKERS = "<!-- benchmarks.time_to_quality: begin -->\n", "<!-- benchmarks.time_to_quality: end -->\n"
ADK_CRYODRGN_SECONDS = 1350  # ten epochs of 135 s; only its scores were kept
ADK_CRYODRGN_SCORES = "adk_vae_z_epoch10.json", "adk_cryodrgn_vae_e10.json"


@dataclass(frozen=True)
class ParticleSet:
    """A particle set: what is reported of its latents, and how it is converted and scored.

    Attributes
    ----------
    figures
        Names of the scoring program, and of the table's columns.
    coordinate
        Flags of the scoring program where the truth is continuous.
    convert
        Flags of `drgn-ray convert`.
    """

    figures: Mapping[str, str] = field(default_factory=dict)
    coordinate: tuple[str, ...] | None = None
    convert: tuple[str, ...] = ()


SETS = {
    "adk_sim": ParticleSet({"spearman_linear_cv": "Spearman", "knn_r2_cv": "kNN R²"}, coordinate=()),
    "empiar10076_sim": ParticleSet({"knn_purity": "kNN purity"}, convert=("--no-invert", "--apix", "13.1")),
    "motion": ParticleSet(
        {"circ_corr_cv": "circular correlation", "mean_abs_angle_err_deg": "angle off, °"}, coordinate=("--circular",)
    ),
    "composition": ParticleSet({"ari_kmeans": "ARI of k-means", "knn_purity": "kNN purity"}),
    "homogeneous": ParticleSet(),
}


def main() -> int:
    """Run what is not there yet, and write the tables."""
    arguments = _parse()
    arguments.runs.mkdir(parents=True, exist_ok=True)
    if not arguments.table_only:
        MlflowClient(tracking_uri(arguments.runs)).search_experiments()  # makes the database, which takes seconds
        for name in arguments.sets:
            prepare(arguments, name)
            back_project(arguments, name)
            score_cryodrgn(arguments, name)
            for model in arguments.models:
                for seed in arguments.seeds:
                    train(arguments, name, model, seed)
    tables = [_models(), *(_table(arguments.runs, name) for name in SETS)]
    text = "\n".join(table for table in tables if table)
    print(text)
    before, rest = DOCUMENT.read_text().split(MARKERS[0])
    DOCUMENT.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{rest.split(MARKERS[1])[1]}")
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "drgn_ray_time_to_quality"))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--data", type=Path, default=os.environ.get("DRGN_RAY_DATA"), help="folder with adk_sim/ etc.")
    parser.add_argument("--score", type=Path, help="the scoring program (default: score.py of the data)")
    parser.add_argument("--cryodrgn", default=os.environ.get("DRGN_RAY_CRYODRGN"), help="cryodrgn, to decode its runs")
    parser.add_argument("--cryodrgn-runs", type=Path, help="folder with finished runs of cryoDRGN")
    parser.add_argument("--table-only", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    if arguments.data is None and not arguments.table_only:
        parser.error("pass --data FOLDER, or set DRGN_RAY_DATA")
    arguments.folder = arguments.folder.absolute()
    arguments.runs = arguments.folder / "runs"
    return arguments


def prepare(arguments: argparse.Namespace, name: str) -> None:
    """Make the particle store of a set and its truth, where they are missing."""
    truth, store = _truth(arguments, name), _store(arguments, name)
    source = truth / "particles.star"
    if name in simulated_sets.SETS and not source.exists():
        simulated_sets.write_set(truth, name, NUM_IMAGES)
    if name == "empiar10076_sim":
        source = arguments.data / name / "10076_both_32_sim.star"
    writer = StoreWriter(str(store))
    if writer.is_free() or writer.unfinished_info():
        _run("convert", source, "-o", store, "--workers", 0, *SETS[name].convert)
    if name == "empiar10076_sim" and not (truth / "labels.npy").exists():
        _lay_out_empiar10076(arguments.data, ParticleStore(store), truth)


def _truth(arguments: argparse.Namespace, name: str) -> Path:
    return (arguments.data if name == "adk_sim" else arguments.folder) / name


def _store(arguments: argparse.Namespace, name: str) -> Path:
    return arguments.folder / f"{name}.zarr"


def _lay_out_empiar10076(data: Path, store: ParticleStore, truth: Path) -> None:
    """Lay out the two class maps, and the class of every image, as the scoring program wants them."""
    (truth / "gt").mkdir(parents=True, exist_ok=True)
    for state, letter in enumerate("DE"):
        shutil.copy(data / "empiar10076_sim" / f"10076_class{letter}_32.mrc", truth / "gt" / f"vol_{state:03d}.mrc")
    label = np.load(data / "reference" / "e10076_labels.npz")["class_D0_E1"][store.columns["particle"]]
    np.save(truth / "labels.npy", label[np.argsort(store.columns["source_row"])])


def train(arguments: argparse.Namespace, name: str, model: str, seed: int) -> None:
    """Train a model and embed all images; then decode and score, out of the count."""
    run = RunDirectory(arguments.runs / f"{name}-{model}-{seed}")
    done = run.path / "score.json"
    if done.exists() and json.loads(done.read_text()).get("flags", MODELS[model]) == MODELS[model]:
        return
    print(f"{run.path.name} ...", file=sys.stderr)
    shutil.rmtree(run.path, ignore_errors=True)
    store = ParticleStore(_store(arguments, name))
    words = ["train", store.absolute_path, "-o", run.path, "--seed", seed, "--num-workers", 0, "--no-analysis"]
    seconds, start_up = (_run(*words, *MODELS[model].split()) for _ in ("all of it", "nothing that is left"))
    volumes, z, decoded = run.path / "volumes", None, []
    if zdim := trained_zdim(run, run.config(), store):
        if not run.latents_file.exists():
            seconds += _run("embed", run.path, "--workers", 0)
        z = load_latents(run.latents_file).of(np.arange(len(store)))
        decoded = ["--particles", ",".join(map(str, scored_images(len(store))))]
    _run("decode", run.path, "-o", volumes, *decoded)
    scores = _score(arguments, name, z, volumes if zdim else volumes / "vol_000.mrc")
    _keep(
        run.path,
        {**scores, "zdim": zdim, "core_seconds": seconds, "startup_core_seconds": start_up, "flags": MODELS[model]},
    )


def back_project(arguments: argparse.Namespace, name: str) -> None:
    """Make and score the consensus of a set."""
    folder = arguments.runs / f"{name}-{CONSENSUS}-0"
    if (folder / "score.json").exists():
        return
    shutil.rmtree(folder, ignore_errors=True)
    seconds = _run("backproject", _store(arguments, name), "-o", folder, "--workers", 0)
    _keep(folder, {**_score(arguments, name, None, folder / "backproject.mrc"), "core_seconds": seconds})


def score_cryodrgn(arguments: argparse.Namespace, name: str) -> None:
    """Score a finished run of cryoDRGN once; without the program only its latents."""
    folder = arguments.runs / f"{name}-{CRYODRGN}-0"
    if name == "adk_sim":
        scores = [json.loads((arguments.data / "baseline" / file).read_text()) for file in ADK_CRYODRGN_SCORES]
        _keep(folder, {**scores[0], **scores[1], "core_seconds": ADK_CRYODRGN_SECONDS})
        return
    theirs = (arguments.cryodrgn_runs or Path()) / f"cd_{name}"
    if (folder / "score.json").exists() or not (theirs / "time.json").exists():
        return
    z, volumes = np.load(theirs / "z.npy"), None
    if arguments.cryodrgn:
        weights = max(theirs.glob("weights.*.pkl"), key=lambda path: int(path.suffixes[0][1:]))
        volumes = folder / "volumes"
        volumes.mkdir(parents=True, exist_ok=True)
        np.savetxt(folder / "z.txt", z[scored_images(len(z))])
        words = [weights, "-c", theirs / "config.yaml", "--zfile", folder / "z.txt", "-o", volumes]
        _run_program(arguments.cryodrgn, "eval_vol", *words, "--vol-start-index", 0)
    seconds = json.loads((theirs / "time.json").read_text())["core_seconds"]
    _keep(folder, {**_score(arguments, name, z, volumes), "core_seconds": seconds})


def _run(*words: object) -> float:
    """Run our program in one thread; return its core-seconds."""
    return _run_program(*DRGN_RAY, *words, within=environment(OMP_NUM_THREADS="1"))


def _run_program(*words: object, within: Mapping[str, str] | None = None) -> float:
    command = [str(word) for word in words]
    _, usage = run_measured(command, Path.cwd(), within or environment_of_others(), " ".join(command))
    return usage.ru_utime + usage.ru_stime


def _score(
    arguments: argparse.Namespace, name: str, z: Float[np.ndarray, "N Z"] | None, volumes: Path | None
) -> dict[str, Any]:
    program = arguments.score or arguments.data / "score.py"
    return score(program, _truth(arguments, name), z, volumes, SETS[name].coordinate)


def _keep(folder: Path, scores: Mapping[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    part = folder / "score.json.part"
    part.write_text(json.dumps(scores, indent=1))
    part.rename(folder / "score.json")


def _models() -> str:
    return "".join(f"- {model}: `drgn-ray train {flags}`\n" for model, flags in MODELS.items())


def _table(runs: Path, name: str) -> str:
    """Write the table of all that was run on a set: mean ± standard deviation over the seeds."""
    rows = []
    for model in (*MODELS, CRYODRGN, CONSENSUS):
        results = [json.loads(path.read_text()) for path in sorted(runs.glob(f"{name}-{model}-*/score.json"))]
        if not results:
            continue
        zdims = ", ".join(str(zdim) for zdim in sorted({each["zdim"] for each in results if "zdim" in each}))
        for each in results:
            each.update(by_shell(each))
        times = [_mean(results, key, 0) for key in ("core_seconds", "startup_core_seconds")]
        latents = [_mean(results, key, 1 if key.endswith("deg") else 3) for key in SETS[name].figures]
        rows.append(
            [model, str(len(results)), *times, zdims or "–", *latents, *(_mean(results, key, 3) for key in SHELLS)]
        )
    head = ["model", "runs", "core-s", "start-up", "zdim", *SETS[name].figures.values(), *SHELLS]
    return f"### {name}\n\n{markdown_table(head, rows)}\n" if rows else ""


def _mean(results: Sequence[Mapping[str, Any]], key: str, digits: int) -> str:
    """Mean ± standard deviation, and of how many runs where some lack it."""
    values = [each[key] for each in results if key in each]
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else ""
    of_some = f" ({len(values)} of {len(results)})" if len(values) < len(results) else ""
    return f"{np.mean(values):.{digits}f}{spread}{of_some}"


if __name__ == "__main__":
    sys.exit(main())
