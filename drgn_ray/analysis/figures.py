"""Pictures: each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import LogFormatter, MaxNLocator

from drgn_ray.analysis.chimerax import colours
from drgn_ray.analysis.latent_space import Clusters, Mixture, PrincipalComponents, drawn
from drgn_ray.physics.fsc import HALF

VIEW_HEXAGONS = (36, 10)  # along and across a map twice as wide as high: regular ones
LEGEND_ROOM = 1.3  # times the height of the bars, so that a legend is not over them
HISTOGRAM_BINS = 40
SHOWN_POINTS = 20_000
SHOWN_GROUPS = 6  # optics groups with a colour of their own
PANELS_A_ROW = 3
_LABEL = {"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.85}


def pca_figure(pca: PrincipalComponents, clusters: Clusters) -> Figure:
    """Density of the particles in the first two principal components, with the numbered k-means centres."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    x = pca.scores[:, 0]
    y = pca.scores[:, 1] if pca.scores.shape[1] > 1 else np.zeros_like(x)
    shown = axes.hexbin(x, y, gridsize=60, bins="log", cmap="Blues", linewidths=0.1)
    figure.colorbar(shown, ax=axes, label="particles")
    shades = colours(len(clusters.particles))
    axes.scatter(x[clusters.particles], y[clusters.particles], s=36, c=shades, edgecolor="black", linewidth=0.6)
    for number, particle in enumerate(clusters.particles):
        axes.annotate(str(number), (x[particle], y[particle]), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes.set_xlabel(f"PC1 ({pca.variance_share[0]:.0%} of the variance)")
    axes.set_ylabel(f"PC2 ({pca.variance_share[1]:.0%})" if len(pca.variance_share) > 1 else "")
    axes.set_title(f"{len(x):,} particles; numbers are k-means volumes")
    return figure


def mixture_figure(pca: PrincipalComponents, states: Mixture) -> Figure:
    """BIC over the number of Gaussians, and the particles of each of the best number of them."""
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts, best = np.arange(1, len(states.bic) + 1), len(states.particles)
    left.plot(counts, states.bic - states.bic.min(), marker="o")
    left.axvline(best, color="grey", linestyle="--", linewidth=0.8)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="Gaussians", ylabel="BIC a particle, above the least")
    limit = ", the most that were tried" if best == len(states.bic) > 1 else ""
    left.set_title(f"of {states.num_fitted:,} particles; least at {best}{limit}")
    few = drawn(len(pca.scores), SHOWN_POINTS)
    x = pca.scores[few, 0]
    y = pca.scores[few, 1] if pca.scores.shape[1] > 1 else np.zeros_like(x)
    shades = np.array(colours(best))
    right.scatter(x, y, s=2, c=shades[states.labels[few]], linewidth=0, rasterized=True)
    for number, share in enumerate(states.share):
        right.scatter([], [], c=shades[number], label=f"{number}: {share:.0%}")
    right.legend(loc="upper right", fontsize=8)
    right.set(xlabel="PC1", ylabel="PC2", title="particles by their likeliest Gaussian")
    return figure


def dimensions_figure(divergence: Float[np.ndarray, " Z"]) -> Figure:
    """Mean KL divergence from the prior, by dimension of the latent."""
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.bar(np.arange(len(divergence)), divergence)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="dimension of z", ylabel="KL divergence, nats", title="a dimension at 0 is not used")
    return figure


def landscape_figure(
    particles: Float[np.ndarray, "N P"],
    of_sketch: Float[np.ndarray, "n P"],
    states: Int[np.ndarray, " n"],
    variance_share: Float[np.ndarray, " P"],
    r2: Float[np.ndarray, " P"],
) -> Figure:
    """Density of the particles in the first two volume components, with the sketch and its states; and each component.

    Parameters
    ----------
    particles, of_sketch
        Scores: predicted, and those of decoded volumes.
    states
        Of the sketch.
    r2
        Cross-validated, of the prediction of each component.
    """
    figure = Figure(figsize=(11.6, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    (x, y), (sketch_x, sketch_y) = (
        (scores[:, 0], scores[:, 1] if scores.shape[1] > 1 else np.zeros(len(scores)))
        for scores in (particles, of_sketch)
    )
    shown = left.hexbin(x, y, gridsize=60, bins="log", cmap="Greys", linewidths=0.1)
    figure.colorbar(shown, ax=left, label="particles")
    for state, colour in enumerate(colours(states.max() + 1)):
        there = states == state
        left.scatter(sketch_x[there], sketch_y[there], s=12, color=colour, edgecolor="black", linewidth=0.3)
        middle = np.median(sketch_x[there]), np.median(sketch_y[there])
        left.text(*middle, str(state), ha="center", va="center", fontweight="bold", bbox=_LABEL | {"edgecolor": colour})
    left.set(
        xlabel="volume PC1", ylabel="volume PC2", title=f"{len(x):,} particles; dots are decoded, numbers are states"
    )
    component = np.arange(1, len(variance_share) + 1)
    right.bar(component, variance_share, color="silver", label="share of the variance")
    right.plot(component, r2, ".-", color="crimson", label="R² of its prediction from z")
    right.set(xlabel="volume PC", ylim=(min(0, *r2), 1.05), title="components")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(loc="center right")
    return figure


def regions_figure(occupancies: Mapping[str, Float[np.ndarray, " N"]]) -> Figure:
    """Histograms of the occupancies of regions over the particles, all of one range."""
    columns = min(len(occupancies), 3)
    rows = -(-len(occupancies) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    low, high = (extreme(extreme(values) for values in occupancies.values()) for extreme in (min, max))
    for axes, (name, values) in zip(panels, occupancies.items(), strict=False):
        axes.hist(values, bins=HISTOGRAM_BINS, range=(min(low, 0), max(high, 1)), color="silver")
        for level in (0, 1):
            axes.axvline(level, color="black", linewidth=0.8, linestyle="--")
        axes.set(title=f"{name}: {np.mean(values > 0.5):.0%} above 0.5", xlabel="occupancy", ylabel="particles")
    for axes in panels[len(occupancies) :]:
        axes.set_visible(False)
    return figure


def path_figure(
    pca: PrincipalComponents,
    way: Float[np.ndarray, "n Z"],
    distance: Float[np.ndarray, " n"],
    log_density: Float[np.ndarray, " n"],
) -> Figure:
    """Draw a way (in the axes of the PCA) over the density of the particles, and the density along it.

    Parameters
    ----------
    distance
        From the beginning, along the way.
    log_density
        Of the particles, up to a constant.
    """
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    x, y = (pca.scores[:, axis] if pca.scores.shape[1] > axis else np.zeros(len(pca.scores)) for axis in (0, 1))
    way_x, way_y = (way[:, axis] if way.shape[1] > axis else np.zeros(len(way)) for axis in (0, 1))
    left.hexbin(x, y, gridsize=60, bins="log", cmap="Greys", linewidths=0.1)
    left.plot(way_x, way_y, color="crimson", marker=".")
    for number in (0, len(way) - 1):
        left.annotate(str(number), (way_x[number], way_y[number]), xytext=(4, 4), textcoords="offset points")
    left.set(xlabel="PC1", ylabel="PC2", title=f"{len(way)} volumes along the way")
    right.plot(distance, -log_density, color="crimson", marker=".")
    right.set(xlabel="distance along the way, units of z", ylabel="-ln(density of particles) + constant")
    right.set_title("where it is high, there are few particles")
    return figure


def learning_curve(history: Sequence[dict[str, float]]) -> Figure:
    """Loss of training and validation, the KL divergence, and what each epoch still changed."""
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    left, right, change = figure.subplots(1, 3)
    epochs = [line["epoch"] for line in history]
    for name, label in (("train_epoch", "training"), ("val", "held out")):
        if history and f"{name}/loss" in history[0]:
            left.plot(epochs, [line[f"{name}/loss"] for line in history], marker=".", label=label)
            right.plot(epochs, [line[f"{name}/kld"] for line in history], marker=".", label=label)
    for name, label in (("latent", "latents, over their spread"), ("volume", "volumes, over their norm")):
        key = f"convergence/{name}_change"
        compared = [line for line in history if key in line]
        if compared:
            change.semilogy(
                [line["epoch"] for line in compared], [line[key] for line in compared], marker=".", label=label
            )
    if change.lines:
        change.legend()
    else:
        _unknown(change, "")
    change.set(xlabel="epoch", ylabel="change since the epoch before")
    for axes in (left, right, change):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="epoch", ylabel="loss")
    right.set(xlabel="epoch", ylabel="KL divergence, nats")
    if left.lines:
        left.legend()
    return figure


def particles_figure(
    *,
    title: str,
    mean_image: Float[np.ndarray, "D D"] | None,
    num_images: int,
    mean_power: Float[np.ndarray, " R"] | None,
    mean_squared_ctf: Float[np.ndarray, " R"] | None,
    apix: float | None,
    directions: Float[np.ndarray, "N 3"] | None,
    defocus_um: Float[np.ndarray, " N"] | None,
    optics_group: Int[np.ndarray, " N"] | None,
) -> Figure:
    """Four panels that say whether particles are what they should be; what is None is said to be unknown.

    Parameters
    ----------
    mean_image
        Mean of `num_images` images.
    mean_power, mean_squared_ctf
        Rotational means over the rings 1 to D/2 of the same images.
    apix
        Å/px of the images; None labels axes in px.
    directions
        Viewing directions, unit vectors.
    """
    figure = Figure(figsize=(10.5, 8.2), layout="constrained")
    figure.suptitle(title)
    (image, spectrum), (views, defocus) = figure.subplots(2, 2)
    _mean_image_panel(image, mean_image, num_images, apix)
    _spectrum_panel(spectrum, mean_power, mean_squared_ctf, apix)
    _views_panel(views, directions)
    _defocus_panel(defocus, defocus_um, optics_group)
    return figure


def _unknown(axes: Axes, title: str) -> None:
    axes.set_title(title)
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "not known here", ha="center", va="center", color="grey", transform=axes.transAxes)


def _mean_image_panel(
    axes: Axes, mean_image: Float[np.ndarray, "D D"] | None, num_images: int, apix: float | None
) -> None:
    if mean_image is None:
        _unknown(axes, "mean image")
        return
    half = len(mean_image) / 2 * (apix or 1)
    low, high = np.percentile(mean_image, (0.5, 99.5))
    shown = axes.imshow(mean_image, cmap="gray", vmin=low, vmax=high, extent=(-half, half, half, -half))
    axes.figure.colorbar(shown, ax=axes, label="grey value", shrink=0.85)
    unit = "px" if apix is None else "Å"
    axes.set(title=f"mean of {num_images:,} images", xlabel=f"x, {unit}", ylabel=f"y, {unit}")


def _spectrum_panel(
    axes: Axes,
    mean_power: Float[np.ndarray, " R"] | None,
    mean_squared_ctf: Float[np.ndarray, " R"] | None,
    apix: float | None,
) -> None:
    if mean_power is None:
        _unknown(axes, "power spectrum")
        return
    frequency = np.arange(1, len(mean_power) + 1) / (2 * len(mean_power) * (apix or 1))
    (power,) = axes.semilogy(frequency, mean_power, color="tab:blue", label="power of the images")
    curves = [power]
    axes.set_ylabel("mean power, grey value²")
    axes.set_xlabel("spatial frequency, 1/px" if apix is None else "spatial frequency, 1/Å")
    if mean_squared_ctf is not None:
        right = axes.twinx()
        (ctf,) = right.plot(frequency, mean_squared_ctf, color="tab:orange", linewidth=1, label="mean CTF²")
        right.set(ylabel="mean CTF²", ylim=(0, 1))
        curves.append(ctf)
    axes.set_xlim(0, frequency[-1])
    axes.legend(handles=curves, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    axes.set_title("power spectrum, rotational mean", pad=26)


def _views_panel(axes: Axes, directions: Float[np.ndarray, "N 3"] | None) -> None:
    """Draw a Mollweide map of equal hexagons: it keeps areas, so colours are densities on the sphere."""
    if directions is None:
        _unknown(axes, "viewing directions")
        return
    x, y = _mollweide(np.arctan2(directions[:, 1], directions[:, 0]), directions[:, 2])
    shown = axes.hexbin(x, y, gridsize=VIEW_HEXAGONS, extent=(-2, 2, -1, 1), bins="log", mincnt=1, cmap="viridis")
    shown.set_clip_path(Ellipse((0, 0), 4, 2, transform=axes.transData))
    bar = axes.figure.colorbar(shown, ax=axes, label="images a hexagon", shrink=0.6)
    bar.ax.yaxis.set_major_formatter(LogFormatter())
    bar.ax.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    for longitude in np.radians(np.arange(-180, 181, 60)):
        height = np.linspace(-1, 1, 201)
        axes.plot(*_mollweide(np.full(201, longitude), height), color="black", linewidth=0.6, alpha=0.4)
    for height in np.cos(np.radians((30, 60, 90, 120, 150))):
        line = _mollweide(np.array([-np.pi, np.pi]), np.full(2, height))
        axes.plot(*line, color="black", linewidth=0.6, alpha=0.4)
        tilt = np.degrees(np.arccos(height))
        axes.text(line[0][0] - 0.08, line[1][0], f"{tilt:.0f}°", ha="right", va="center", fontsize=8)
    axes.set(aspect="equal", xlim=(-2.4, 2.1), ylim=(-1.1, 1.1), title="viewing directions")
    axes.set_xlabel("rot from -180° to 180°; tilt from 0° (top) to 180°")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _mollweide(
    longitude: Float[np.ndarray, " N"], height: Float[np.ndarray, " N"]
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, " N"]]:
    """Map the sphere (height is the sine of the latitude) onto an ellipse of half axes 2 and 1, keeping areas."""
    auxiliary = np.linspace(-np.pi / 2, np.pi / 2, 2001)
    angle = np.interp(height, (2 * auxiliary + np.sin(2 * auxiliary)) / np.pi, auxiliary)
    return 2 * longitude / np.pi * np.cos(angle), np.sin(angle)


def _defocus_panel(
    axes: Axes, defocus_um: Float[np.ndarray, " N"] | None, optics_group: Int[np.ndarray, " N"] | None
) -> None:
    if defocus_um is None:
        _unknown(axes, "defocus")
        return
    group = np.ones(len(defocus_um)) if optics_group is None else optics_group
    values, counts = np.unique(group, return_counts=True)
    largest = np.sort(values[np.argsort(-counts, kind="stable")][:SHOWN_GROUPS])
    parts = {f"group {value:g}": defocus_um[group == value] for value in largest}
    if len(values) > len(largest):
        parts[f"{len(values) - len(largest):,} others"] = defocus_um[~np.isin(group, largest)]
    axes.hist([*parts.values()], bins=HISTOGRAM_BINS, stacked=True, label=[*parts])
    axes.set(title="defocus", xlabel="mean of U and V, µm", ylabel="images")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(parts) > 1:
        axes.set_ylim(top=LEGEND_ROOM * axes.get_ylim()[1])
        axes.legend(title="optics", ncols=4, loc="upper center", fontsize=8)


def fsc_figure(
    curves: Mapping[str, Float[np.ndarray, " shells"]],
    box_size: int,
    apix: float,
    marks: Mapping[float, float],
) -> Figure:
    """FSC curves over spatial frequency.

    Parameters
    ----------
    curves
        By name; shell i is frequency i / (D Å/px).
    marks
        Thresholds and the resolution (Å) at which the curve that counts falls below them.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, curve in curves.items():
        counts = name == list(curves)[-1]
        frequency = np.arange(len(curve)) / (box_size * apix)
        axes.plot(frequency, curve, label=name, linewidth=2.2 if counts else 1.0, zorder=3 if counts else 2)
    for threshold, angstrom in marks.items():
        axes.axhline(threshold, color="grey", linewidth=0.8, linestyle="--")
        if np.isfinite(angstrom):
            axes.plot([1 / angstrom], [threshold], "o", color="black", markersize=4, zorder=4)
    found = ", ".join(f"{angstrom:.2f} Å at FSC {threshold:g}" for threshold, angstrom in marks.items())
    _fsc_axes(axes, apix, f"{list(curves)[-1]}: {found}")
    axes.legend(loc="upper right")
    return figure


def _fsc_axes(axes: Axes, apix: float, title: str) -> None:
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlim=(0, 0.5 / apix), ylim=(-0.1, 1.03), xlabel="spatial frequency, 1/Å", ylabel="FSC", title=title)
    top = axes.secondary_xaxis("top")
    ticks = [tick for tick in axes.get_xticks() if 0 < tick <= 0.5 / apix]
    top.set_xticks(ticks, [f"{1 / tick:.3g} Å" for tick in ticks])


def latent_agreement_figure(
    r2: pd.DataFrame, canonical: Mapping[str, Float[np.ndarray, " n"]], permuted: float
) -> Figure:
    """How well the latents of runs tell one another, and in how many dimensions pairs of runs agree.

    Parameters
    ----------
    r2
        Share of the variance of a row's latents that a linear function of a column's predicts.
    canonical
        Canonical correlations of each pair, falling.
    permuted
        The largest that randomly paired particles give.
    """
    figure = Figure(figsize=(11.2, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    shown = left.imshow(r2, vmin=0, vmax=1, cmap="viridis")
    figure.colorbar(shown, ax=left, label="R², cross-validated")
    for row, column in np.ndindex(r2.shape):
        value = r2.iat[row, column]
        left.text(column, row, f"{value:.2f}", ha="center", va="center", color="black" if value > 0.5 else "white")
    left.set_xticks(range(len(r2.columns)), list(r2.columns), rotation=30, ha="right")
    left.set_yticks(range(len(r2.index)), list(r2.index))
    left.set(xlabel="latents of", ylabel="predict those of", title="linear prediction")
    for pair, correlations in canonical.items():
        right.plot(np.arange(1, len(correlations) + 1), correlations, marker=".", label=pair)
    right.axhline(permuted, color="grey", linestyle="--", label="permuted particles")
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(ylim=(0, 1.03), xlabel="number", ylabel="canonical correlation", title="dimensions that agree")
    right.legend(fontsize=8)
    return figure


def volume_agreement_figure(
    pairs: Mapping[str, Mapping[str, Float[np.ndarray, " shells"]]], box_size: int, apix: float
) -> Figure:
    """FSC curves over spatial frequency, a panel for each pair of runs.

    Parameters
    ----------
    pairs
        By pair and name of the curve, of which there are three; shell i is frequency i / (D Å/px).
    """
    columns = min(len(pairs), PANELS_A_ROW)
    rows = -(-len(pairs) // columns)
    figure = Figure(figsize=(max(4.2 * columns, 5.6), 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (pair, curves) in zip(panels, pairs.items(), strict=False):
        for (name, curve), style in zip(curves.items(), ("-", ":", "--"), strict=True):
            axes.plot(np.arange(len(curve)) / (box_size * apix), curve, style, label=name)
        axes.axhline(HALF, color="grey", linewidth=0.8, linestyle="--")
        _fsc_axes(axes, apix, pair)
    for axes in panels[len(pairs) :]:
        axes.remove()
    panels[0].legend(loc="lower left", fontsize=8)
    return figure


def volume_figure(volume: Float[np.ndarray, "D D D"], apix: float) -> Figure:
    """Central slices and projections of a volume along its three axes."""
    figure = Figure(figsize=(9.4, 6.2), layout="constrained")
    rows = figure.subplots(2, 3)
    half = len(volume) / 2 * apix
    centre = len(volume) // 2
    for axis, (name, across, up) in enumerate((("z", "x", "y"), ("y", "x", "z"), ("x", "y", "z"))):
        pictures = {"slice": volume.take(centre, axis=axis), "projection": volume.sum(axis=axis)}
        for axes, (kind, picture) in zip(rows[:, axis], pictures.items(), strict=True):
            low, high = np.percentile(picture, (1, 99.8))
            axes.imshow(picture, cmap="gray", origin="lower", vmin=low, vmax=high, extent=(-half, half, -half, half))
            axes.set(title=f"{kind} along {name}", xlabel=f"{across}, Å", ylabel=f"{up}, Å")
    return figure
