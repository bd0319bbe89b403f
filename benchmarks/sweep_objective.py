"""Whether what sweeps rank trials by ranks them as the ground truth does.

python -m benchmarks.sweep_objective --data FOLDER

Sixteen networks are drawn, and trained on adk_sim downsampled to 32 px by `drgn-ray tune` (`sweep_objective.yaml`; or
`--sweep` names a sweep of adk_sim that is there); those that finish are ranked by half sets too.  Of each, as far as it
was trained, volumes of 100 images are decoded and scored against the truth (area under the per-image FSC).  Spearman's
rank correlation over the networks of that score with every candidate objective goes into `docs/sweeps.md`, with a
figure, and so does the winner beside the default network, trained for as long.  What is done stays in `--folder`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks.common import DRGN_RAY, ROOT, environment, markdown_table, run_measured
from benchmarks.truth import by_shell, score, scored_images
from drgn_ray.analysis.latent_space import cluster
from drgn_ray.analysis.run import load_run
from drgn_ray.analysis.support import CONSENSUS, MODEL, PERMUTED
from drgn_ray.distributed.states import NUM_STATES, compare_states
from drgn_ray.particles.store import ParticleStore, StoreWriter
from drgn_ray.training.checkpoint import load_position
from drgn_ray.training.leaderboard import leaderboard
from drgn_ray.training.run_directory import RunDirectory
from drgn_ray.training.sweep_directory import SweepDirectory

SWEEP = Path(__file__).with_suffix(".yaml")
DOCUMENT, FIGURE = ROOT / "docs" / "sweeps.md", ROOT / "docs" / "images" / "sweep_objective.png"
MARKERS = "<!-- benchmarks.sweep_objective: begin -->\n", "<!-- benchmarks.sweep_objective: end -->\n"
# By column: what it is, and 1 where larger is better.
OBJECTIVES = {
    "gain": ("gain over one volume, held out (the default)", 1),
    "val_loss": ("the trial's own loss, held out", -1),
    "recon_loss": ("the trial's own reconstruction error, held out", -1),
    "fsc_model": ("FSC with back-projections of states", 1),
    "fsc_over_consensus": ("the same, less that of one volume", 1),
    "fsc_over_permuted": ("the same, less that of another state's volume", 1),
}
ON_REQUEST = {
    "half_sets": ("FSC of trainings on either half for the same particles, less that for others", 1),
    "half_sets_same": ("the former alone", 1),
}
DEFAULT = ("--zdim", 4, "--enc-dim", 256, "--dec-dim", 256, "--val-fraction", 0, "--workers", 0, "--no-analysis")
SIDE, TRUE_SIDE = 32, 64  # px, of the images that are trained on, and of the truth
TRUTHS = {"D/8": "FSC to half of Nyquist", "D/4": "FSC to Nyquist"}  # shells by the box of the truth


def main() -> int:
    """Train what is not there yet, score it, and write table and figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "drgn_ray_sweep_objective"))
    parser.add_argument("--data", type=Path, default=os.environ.get("DRGN_RAY_DATA"), help="folder with adk_sim/")
    parser.add_argument("--sweep", type=Path, help="folder of a sweep of adk_sim, to score without training")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("pass --data FOLDER, or set DRGN_RAY_DATA")
    sweep = arguments.sweep or _train(arguments.folder, arguments.data)
    directory = SweepDirectory(sweep)
    board = leaderboard(directory, directory.trials()).set_index("trial")
    store = ParticleStore(directory.trials()[0].config.particles)
    truth, program = arguments.data / "adk_sim", arguments.data / "score.py"
    scores = [_score_trial(RunDirectory(sweep / "trials" / name), store, program, truth) for name in board.index]
    table = pd.concat([board, pd.DataFrame(scores, index=board.index)], axis=1)
    finished = table[table["state"] == "finished"].copy()
    if "half_sets" in finished:
        finished["half_sets_same"] = [_agreement_of_halves(sweep / "halves" / name) for name in finished.index]
    text = "\n\n".join(
        [
            _correlations(table, OBJECTIVES),
            f"The same over the {len(finished)} that finished:",
            _correlations(finished, OBJECTIVES | {name: of for name, of in ON_REQUEST.items() if name in finished}),
            _trials(table),
            _beside_default(arguments.folder, table, store, program, truth),
        ]
    )
    print(text)
    before, rest = DOCUMENT.read_text().split(MARKERS[0])
    DOCUMENT.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{rest.split(MARKERS[1])[1]}")
    _draw(table)
    return 0


def _train(folder: Path, data: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    store, sweep = folder / "adk_sim.zarr", folder / "sweep"
    writer = StoreWriter(str(store))
    if writer.is_free() or writer.unfinished_info():
        _run("convert", data / "adk_sim" / "particles.star", "-o", store, "-D", SIDE, "--workers", 0)
    _run("tune", store, SWEEP, "-o", sweep, "--no-analysis", "--rank-by", "half_sets")
    return sweep


def _run(*words: object) -> None:
    command = [str(word) for word in (*DRGN_RAY, *words)]
    run_measured(command, Path.cwd(), environment(), " ".join(command))


def _against_truth(run: RunDirectory, store: ParticleStore, program: Path, truth: Path) -> dict[str, Any]:
    print(f"{run.path.name} ...", file=sys.stderr)
    if not run.latents_file.exists():
        _run("embed", run.path, "--workers", 0)
    if not (run.path / "volumes").exists():
        images = ",".join(map(str, scored_images(len(store))))
        _run("decode", run.path, "-o", run.path / "volumes", "-D", TRUE_SIDE, "--particles", images, "--workers", 0)
    return score(program, truth, load_run(run.path).latents.of(np.arange(len(store))), run.path / "volumes", ())


def _score_trial(run: RunDirectory, store: ParticleStore, program: Path, truth: Path) -> dict[str, float]:
    done = run.path / "score.json"
    if done.exists():
        return json.loads(done.read_text())
    found, trained = _against_truth(run, store, program, truth), load_run(run.path)
    centres = cluster(trained.latents.z, NUM_STATES).particles
    supported = compare_states(run, store, trained.model, trained.latents, centres)
    assert supported is not None
    model = supported.scores(MODEL).mean()
    last = load_position(run.checkpoints).history[-1]
    kept = {
        **by_shell(found),
        "spearman_z": found["spearman_linear_cv"],
        "val_loss": last["val/loss"],
        "fsc_model": model,
        "fsc_over_consensus": model - supported.scores(CONSENSUS).mean(),
        "fsc_over_permuted": model - supported.scores(PERMUTED).mean(),
    }
    done.write_text(json.dumps(kept))
    return kept


def _agreement_of_halves(folder: Path) -> float:
    """FSC of volumes of the same particles, mean of the shells below Nyquist."""
    return float(pd.read_csv(folder / "volumes.csv")["same_particle"][1:-1].mean())


def _beside_default(folder: Path, table: pd.DataFrame, store: ParticleStore, program: Path, truth: Path) -> str:
    """Train the default network for as long as the winner took, and for as long as all trials did."""
    winner = table.iloc[0]
    rows = [[f"winner, {table.index[0]} ({winner['kind']})", winner]]
    once = _train_default(folder / "default_once", store, 1)
    for said, minutes in (("winner", winner["minutes"]), ("whole sweep", table["minutes"].sum())):
        epochs = math.ceil(minutes / _minutes(once))
        run = _train_default(folder / f"default_{epochs}", store, epochs)
        found = by_shell(_against_truth(run, store, program, truth))
        rows.append([f"256x3, zdim 4, as long as the {said}", {"epochs": epochs, "minutes": _minutes(run), **found}])
    cells = [
        [said, str(row["epochs"]), f"{row['minutes']:.2f}", *(f"{row[name]:.4f}" for name in TRUTHS)]
        for said, row in rows
    ]
    return markdown_table(["", "epochs", "minutes", *TRUTHS.values()], cells)


def _train_default(run: Path, store: ParticleStore, epochs: int) -> RunDirectory:
    _run("train", store.path, "-o", run, *DEFAULT, "-n", epochs)
    return RunDirectory(run)


def _minutes(run: RunDirectory) -> float:
    return load_position(run.checkpoints).history[-1]["perf/total_seconds"] / 60


def _correlations(table: pd.DataFrame, objectives: Mapping[str, tuple[str, int]]) -> str:
    rows = [
        [said, *(f"{_correlation(sign * table[name], table[truth]):+.2f}" for truth in TRUTHS)]
        for name, (said, sign) in objectives.items()
    ]
    return markdown_table(["ranked by", *TRUTHS.values()], rows)


def _correlation(first: pd.Series, second: pd.Series) -> float:
    return float(first.corr(second, method="spearman"))


def _trials(table: pd.DataFrame) -> str:
    columns = {
        "kind": 0,
        "model.zdim": 0,
        "model.beta": 3,
        "training.lr": 5,
        "epochs": 0,
        "gain": 2,
        "recon_loss": 4,
        "val_loss": 4,
    }
    columns |= {"fsc_over_permuted": 3, **dict.fromkeys(TRUTHS, 4)}
    shown: Sequence[list[str]] = [
        [
            f"{row[name]:.{digits}f}" if isinstance(row[name], float) else str(row[name])
            for name, digits in columns.items()
        ]
        for row in table.sort_values("D/4", ascending=False).to_dict("records")
    ]
    return markdown_table([*columns], shown)


def _draw(table: pd.DataFrame) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True)
    for axis, name in zip(axes, ("gain", "val_loss", "recon_loss"), strict=True):
        said, sign = OBJECTIVES[name]
        points = axis.scatter(sign * table[name], table["D/4"], c=np.log2(table["model.zdim"]), cmap="viridis")
        correlation = _correlation(sign * table[name], table["D/4"])
        axis.set(title=f"Spearman {correlation:+.2f}", xlabel=f"{'-' * (sign < 0)}{said}".replace(", ", "\n"))
    axes[0].set_ylabel("per-image FSC to Nyquist, area")
    figure.colorbar(points, ax=axes, label="log2 zdim")
    figure.savefig(FIGURE, dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    sys.exit(main())
