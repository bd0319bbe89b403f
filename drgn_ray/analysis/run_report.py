"""What a comparison of runs says: tables, figures, and a verdict on every pair in words."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd

from drgn_ray.analysis.figures import latent_agreement_figure, volume_agreement_figure
from drgn_ray.analysis.run_agreement import ANOTHER, CLEAR, NEIGHBORS, SAME, RunAgreement
from drgn_ray.text import as_cell

# Correlation of the differences between states from which two runs are said to tell the same story, or a part of it.
SAME_STORY, PART_OF_IT = 0.8, 0.4


def write_agreement(folder: Path, found: RunAgreement) -> None:
    """Write ``comparison.md``, the same and more as tables (``.csv``), and ``latents.png`` and ``volumes.png``."""
    tables = {
        "runs": found.runs,
        "latents": _latent_table(found),
        "volumes": _volume_table(found),
        "comparison": found.table(),
    }
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.6g")
    canonical = {", ".join(pair): of_pair.canonical for pair, of_pair in found.latents.items()}
    permuted = max(of_pair.permuted for of_pair in found.latents.values())
    latent_agreement_figure(_r2(found), canonical, permuted).savefig(folder / "latents.png", dpi=150)
    curves = {", ".join(pair): of_pair.curves for pair, of_pair in found.volumes.items()}
    volume_agreement_figure(curves, found.box_size, found.apix).savefig(folder / "volumes.png", dpi=150)
    (folder / "comparison.md").write_text(note(found))


def verdict(found: RunAgreement, pair: tuple[str, str]) -> str:
    """Say in words whether two runs tell the same story, and what tells it."""
    (first, second), latents, volumes = pair, found.latents[pair], found.volumes[pair]
    differ = volumes.difference_correlation
    least_of_all = max(PART_OF_IT, volumes.permuted)
    story = "the same story" if differ >= SAME_STORY else "partly the same story" if differ >= least_of_all else None
    count, least = len(latents.canonical), f"{latents.permuted:.2f}"
    resolved, of_another = (_angstrom(found.resolution(pair, curve), found.apix) for curve in (SAME, ANOTHER))
    return (
        f"{first} and {second} tell {story or 'different stories'}: differences between states correlate {differ:.2f}"
        f" (permuted particles reach {volumes.permuted:.2f});"
        f" volumes agree to {resolved}, those of other particles to {of_another}; {latents.count_above(CLEAR)} of"
        f" {count} latent dimensions agree (canonical correlation above {CLEAR:g}), {latents.count_above(0)} are above"
        f" {least}, which permuted particles reach; {first}'s latents predict {latents.second_from_first:.0%} of the"
        f" variance of {second}'s, and {second}'s {latents.first_from_second:.0%} of {first}'s"
    )


def _angstrom(resolution: float, apix: float) -> str:
    return f"{resolution:.3g} Å{' (Nyquist)' if resolution <= 2 * apix else ''}"


def metrics(found: RunAgreement) -> dict[str, float]:
    """Numbers of every pair by name, ``differences/a b`` and so on, in the letters that MLflow allows."""
    named: dict[str, float] = {}
    for row in found.table().to_dict("records"):
        pair = re.sub(r"[^\w. -]", "_", f"{row.pop('first')} {row.pop('second')}")
        named |= {f"{name}/{pair}": float(value) for name, value in row.items()}
    return named


def note(found: RunAgreement) -> str:
    """Markdown: verdicts, tables, and how to read them."""
    verdicts = "\n".join(f"- {verdict(found, pair)}" for pair in found.latents)
    pairs = found.table()
    pairs.insert(0, "pair", pairs.pop("first") + ", " + pairs.pop("second"))
    by_chance = NEIGHBORS / (found.num_compared - 1)
    return f"""{verdicts}

Latents are those of {particles_of(found)}. Volumes ({found.box_size} px, {found.apix:.4g} Å/px) are those of
{len(found.source_rows)} particles, nearest to the centres of a k-means of {found.runs["run"][0]}'s latents. To look at
them, for each run: `drgn-ray decode RUN --particles {",".join(map(str, found.source_rows))} -o volumes/`

**Runs**

{_markdown(found.runs)}

**Pairs**

{_markdown(pairs)}

**How to read it**

- `differences`: each run's volumes less their mean, correlated with the other run's at the same particles (1: the same
  changes); `_permuted` is what 99% of random pairings of the particles stay below. The verdict goes by this: from
  {SAME_STORY:g} on the same story, from {PART_OF_IT:g} on (and above the permuted) partly. Noise of fine detail
  lowers it.
- `resolution`: where the FSC of both runs' volumes of a particle falls below 0.5, in Å. Where that of another particle
  is as good, it is only the same molecule that agrees.
- `variation`: standard deviation of a run's volumes over the root mean square of their mean. A run that hardly
  varies has found nothing that could agree.
- Canonical correlations and R² allow any linear map between latents. `neighbors` ({NEIGHBORS} nearest ones; by chance
  {by_chance:.2g}) also allow bends, but not other scales of the dimensions. `rand_index` of k-means is low
  where it cuts one cloud in two ways, as it does with the same latents and another seed (`_of_itself`).
- Runs that were trained on the same images may agree on noise that all of them fit. `drgn-ray train --half-sets`
  trains on halves that share no image, which is the harder test; poses and CTFs are still the same.
- Losses compare only between runs of one kind of model with the same held-out particles (`--seed`).
"""


def particles_of(found: RunAgreement) -> str:
    """Say whose latents were compared."""
    if found.num_compared == found.num_particles:
        return f"all {found.num_particles:,} particles"
    return f"{found.num_compared:,} of {found.num_particles:,} particles, drawn at random"


def _latent_table(found: RunAgreement) -> pd.DataFrame:
    """One row a pair, all that was found of the latents."""
    rows = []
    for (first, second), of_pair in found.latents.items():
        numbers = of_pair._asdict()
        canonical = {f"canonical_{number}": value for number, value in enumerate(numbers.pop("canonical"), start=1)}
        counts = {"above_permuted": of_pair.count_above(0), "above_0.9": of_pair.count_above(CLEAR)}
        rows.append({"first": first, "second": second, **counts, **numbers, **canonical})
    return pd.DataFrame(rows)


def _volume_table(found: RunAgreement) -> pd.DataFrame:
    """FSC of every pair, one row a shell: its number, its resolution in Å, and the curves."""
    tables = []
    for (first, second), of_pair in found.volumes.items():
        shells = np.arange(found.box_size // 2 + 1)
        angstrom = np.divide(found.box_size * found.apix, shells, out=np.full(len(shells), np.inf), where=shells > 0)
        head = {"first": first, "second": second, "shell": shells, "resolution": angstrom}
        tables.append(pd.DataFrame(head | {name.replace(" ", "_"): curve for name, curve in of_pair.curves.items()}))
    return pd.concat(tables)


def _r2(found: RunAgreement) -> pd.DataFrame:
    """R² of the runs of the rows, predicted from those of the columns."""
    names = found.runs["run"].tolist()
    table = pd.DataFrame(1.0, index=names, columns=names)
    for (first, second), of_pair in found.latents.items():
        table.loc[second, first], table.loc[first, second] = of_pair.second_from_first, of_pair.first_from_second
    return table


def _markdown(table: pd.DataFrame) -> str:
    """Write a column of a table as a row, since there are more of them than rows."""
    lines = [[name, *map(_said, table[name])] for name in table]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _said(value: object) -> str:
    if not isinstance(value, float):
        return as_cell(value)
    return "not known" if math.isnan(value) else f"{value:.4g}"
