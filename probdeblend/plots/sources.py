"""Figures of sources, of groups and of fields, from the posteriors of `probdeblend.posterior`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import gaussian_filter
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import KDTree

from ..metrics.arrays import ONE_SIGMA
from .images import PALETTE, new_figure, plot_image, show, stretch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from probdeblend.posterior.draws import Posterior

__all__ = ["plot_field", "plot_group", "plot_source"]

OUTSIDE = (0.05, 0.32)  # fractions of the draws outside of the regions that are drawn
MASK_COLORS = "viridis"
NEIGHBORS = 5  # nearest sources, which have other colors
MOST_FLUXES = 5  # of a group
MOST_LABELS = 150  # in a field; more of them hide it
MOST_PIXELS = 1500  # on a side of a field; of larger ones the means of squares of pixels are shown
DEPTH = 1.5  # of the colors, relative to the gray of the image


def plot_source(
    posterior: Posterior, label: int, image: ArrayLike | None = None, *, band: int = 0
) -> NDArray[np.object_]:
    """Show a source: the image, its mask probability, its light, what is left of the image, and its flux.

    Parameters
    ----------
    posterior
        A posterior with masks.
    label
        The source.
    image
        Image of its scene ``(y, x)`` or ``(band, y, x)``; by default the sum of the deblended images.
    band
        Index of the band.

    Returns
    -------
    NDArray
        The five `Axes`.
    """
    figure = new_figure(15, 3.3)
    panels = figure.subplots(1, 5, width_ratios=[1, 1, 1, 1, 1.2])
    number = posterior.index(label)
    mask = posterior.cutouts.cutout("mask", number)
    pixels = _scene_image(posterior, int(posterior.dataset["scene"][number]), image, band)
    norm = stretch(pixels)
    show(panels[0], pixels[mask.slices], mask.corner, norm=norm, cmap="gray_r")
    show(panels[1], mask.data, mask.corner, vmin=0, vmax=1, cmap=MASK_COLORS)
    figure.colorbar(panels[1].images[0], ax=panels[1], ticks=[0, 0.5, 1], shrink=0.8)
    if "image" in posterior.cutouts.known:
        own = posterior.cutouts.cutout("image", number).data[band]
        for panel, light in zip(panels[2:], (own, pixels[mask.slices] - own), strict=False):
            show(panel, light, mask.corner, norm=norm, cmap="gray_r")
    else:
        panels[2].text(0.5, 0.5, "no image", ha="center", transform=panels[2].transAxes)
    _outline(panels[0], mask, PALETTE[1])
    for panel, title in zip(panels, (f"source {label}", "mask probability", "deblended", "rest"), strict=False):
        panel.set_title(title, fontsize="medium")
        panel.set_box_aspect(mask.data.shape[0] / mask.data.shape[1])
    draws, kind = _draws(posterior, band)
    draws, unit = draws[number], posterior.dataset.attrs["unit"]
    low, middle, high = np.quantile(draws, ONE_SIGMA)
    panels[4].set(xlabel=kind + (f" [{unit}]" if unit else ""), yticks=[])
    measured = f"{middle:#.4g} ± {(high - low) / 2:#.2g}" if np.isfinite(middle) else "not detected"
    panels[4].set_title(measured, fontsize="medium")
    if np.isfinite(draws).all():
        panels[4].hist(draws, np.linspace(*_limits(draws), 41), color=PALETTE[1], alpha=0.75)
        panels[4].axvspan(low, high, color="0.5", alpha=0.2, lw=0, zorder=0)
    return panels


def plot_group(
    posterior: Posterior, label: int, image: ArrayLike | None = None, *, band: int = 0
) -> tuple[Axes, NDArray[np.object_]]:
    """Show a group: the masks of its sources in colors over the image, and the joint posterior of their fluxes.

    Parameters
    ----------
    posterior
        A posterior with masks.
    label
        A source of the group.
    image
        Image of the scene ``(y, x)`` or ``(band, y, x)``; by default the sum of the deblended images.
    band
        Index of the band.

    Returns
    -------
    tuple
        The `Axes` of the image, and those of the fluxes ``(source, source)``, one row and one column per source: this
        one and at most four that are correlated most with it.
    """
    number = posterior.index(label)
    members = np.flatnonzero(posterior.dataset["group"] == posterior.dataset["group"][number])
    draws, kind = _draws(posterior, band)
    error = draws[members] - draws[members].mean(1, keepdims=True)
    tied = np.abs((error * error[members == number]).sum(1)) / (error.std(1) + np.finfo(float).tiny)
    tied[members == number] = np.inf
    shown = np.sort(members[np.argsort(-np.nan_to_num(tied))[:MOST_FLUXES]])
    figure = new_figure(4.5 + 2.2 * max(len(shown), 1.5), 2.2 * max(len(shown), 2))
    left, right = figure.subfigures(1, 2, width_ratios=[4.5, 2.2 * max(len(shown), 1.5)])
    axes = left.subplots()
    colors = {source: PALETTE[place % len(PALETTE)] for place, source in enumerate(members)}
    _group_image(axes, posterior, colors, _scene_image(posterior, posterior.dataset["scene"][number], image, band))
    corner = right.subplots(len(shown), len(shown), squeeze=False, sharex="col")
    limits = {source: _limits(draws[source]) for source in shown}
    for (row, column), panel in np.ndenumerate(corner):
        first, second = shown[column], shown[row]
        panel.tick_params(labelsize="x-small", labelleft=column == 0 < row, left=column < row)
        if column > row:
            panel.axis("off")
        elif column == row:
            bins = np.linspace(*limits[first], 41)
            panel.hist(draws[first][np.isfinite(draws[first])], bins, color=colors[first], alpha=0.75)
        else:
            _joint(panel, draws[[first, second]], [limits[first], limits[second]])
        if row == len(shown) - 1:
            name = posterior.dataset["label"].values[first]
            panel.set_xlabel(f"{kind} of {name}", color=colors[first], fontsize="small")
    return axes, corner


def plot_field(
    posterior: Posterior, image: ArrayLike | None = None, *, scene: int = 0, band: int = 0
) -> NDArray[np.object_]:
    """Show a field beside its deblended sources: each source's light in a color that its neighbors do not have.

    Up to 150 sources have their labels; then lines also join the sources of a group, and triangles mark flags.

    Parameters
    ----------
    posterior
        A posterior with images, or with masks.
    image
        Image of the scene ``(y, x)`` or ``(band, y, x)``, or a section of a file, which is read in strips; by default
        the sum of the deblended images.
    scene
        Number of the scene.
    band
        Index of the band.

    Returns
    -------
    NDArray
        The `Axes` of the image and of the sources; sources have their labels where there are at most 150.
    """
    from matplotlib.colors import to_rgb

    pixels = _scene_image(posterior, scene, image, band)
    step = -(-max(pixels.shape) // MOST_PIXELS)
    pixels = _binned(pixels, step)
    figure = new_figure(12.2, max(6 * pixels.shape[0] / pixels.shape[1], 1.5) + 0.3)
    panels, norm = figure.subplots(1, 2, sharex=True, sharey=True), stretch(pixels)
    show(panels[0], pixels, step=step, norm=norm, cmap="gray_r")
    sources = np.flatnonzero(posterior.dataset["scene"].values == scene)
    x, y, label = (posterior.dataset[name].values[sources] for name in ("x", "y", "label"))
    colors = np.array([to_rgb(color) for color in PALETTE])[_apart(x, y)]
    light, mixed = np.zeros(pixels.shape, np.float32), np.zeros((*pixels.shape, 3), np.float32)
    known = "image" if "image" in posterior.cutouts.known else "mask"
    for source, color in zip(sources, colors, strict=True):
        found = posterior.cutouts.cutout(known, source)
        own = np.maximum(found.data[band] if known == "image" else found.data, 0)
        margins = [(side.start % step, -side.stop % step) for side in found.slices]  # up to the squares of the image
        own = np.pad(own, margins)
        own = own.reshape(len(own) // step, step, -1, step).mean((1, 3))
        outer = tuple(slice(at // step, at // step + size) for at, size in zip(found.corner, own.shape, strict=True))
        light[outer] += own
        mixed[outer] += own[..., None] * color
    depth = np.clip(DEPTH * (norm(light) - norm(0)) if known == "image" else light, 0, 1)[..., None]
    show(panels[1], 1 - depth * (1 - mixed / np.maximum(light, 1e-30)[..., None]), step=step)
    panels[0].set(xlabel="x [pixel]", ylabel="y [pixel]")
    panels[1].set(xlabel="x [pixel]")
    if len(sources) <= MOST_LABELS:
        flagged = posterior.dataset["flags"].values[sources] > 0
        panels[1].plot(x[flagged], y[flagged], "^", mfc="none", mec="0.2", mew=0.8, ms=9)
        group = posterior.dataset["group"].values[sources]
        apart = np.nan_to_num(np.hypot(x[:, None] - x, y[:, None] - y)) * (group[:, None] == group)
        joined = np.stack(minimum_spanning_tree(apart).nonzero())
        panels[1].plot(x[joined], y[joined], color="0.2", lw=0.7)
        for number, text in enumerate(label):
            _note(panels[1], str(text), x[number], y[number], color=0.7 * colors[number], offset=(7, 6))
    return panels


def _scene_image(posterior: Posterior, scene: int, image: ArrayLike | None, band: int) -> NDArray:
    pixels = posterior.model_image(int(scene)) if image is None else image
    pixels = pixels if hasattr(pixels, "shape") else np.asarray(pixels)
    pixels = pixels[band] if len(pixels.shape) == 3 else pixels
    if pixels.shape != posterior.cutouts.shape:
        raise ValueError(f"image must have the shape of the scene, {posterior.cutouts.shape}, got {pixels.shape}")
    return pixels


def _binned(pixels: ArrayLike, step: int) -> NDArray[np.float64]:
    """Return the means of squares of pixels, NaN where none is finite; the last squares may be incomplete."""
    found, beyond = [], -pixels.shape[1] % step
    for first in range(0, pixels.shape[0], step):
        strip = np.ma.filled(np.ma.asarray(pixels[first : first + step, :]).astype(np.float64), np.nan)
        strip = np.pad(strip, [(0, 0), (0, beyond)], constant_values=np.nan).reshape(len(strip), -1, step)
        found.append(np.ma.masked_invalid(strip).mean((0, 2)).filled(np.nan))
    return np.stack(found)


def _draws(posterior: Posterior, band: int) -> tuple[NDArray, str]:
    """Return the draws ``(source, draw)`` of the total flux, or of the Kron flux where that alone is known."""
    name = "flux" if "flux" in posterior.dataset else "flux_auto"
    draws = posterior.dataset[name].isel(band=band).transpose("source", "chain", "draw").values.astype(float)
    return draws.reshape(len(draws), draws.shape[1] * draws.shape[2]), "flux" if name == "flux" else "Kron flux"


def _outline(axes: Axes, mask: object, color: str) -> None:
    if (mask.data > 0.5).any() and (mask.data < 0.5).any():
        (y, x), (rows, columns) = mask.corner, mask.data.shape
        axes.contour(x + np.arange(columns), y + np.arange(rows), mask.data, [0.5], colors=[color], linewidths=1.3)


def _group_image(axes: Axes, posterior: Posterior, colors: dict[int, str], pixels: NDArray) -> None:
    plot_image(pixels, axes=axes)
    label, x, y = (posterior.dataset[name].values for name in ("label", "x", "y"))
    edges = []
    for source, color in colors.items():
        mask = posterior.cutouts.cutout("mask", source)
        edges.append([(side.start, side.stop) for side in mask.slices])
        _outline(axes, mask, color)
        _note(axes, str(label[source]), x[source], y[source], color=color)
    (bottom, left), (top, right) = np.min(edges, axis=(0, 2)), np.max(edges, axis=(0, 2))
    axes.set(xlim=(left - 0.5, right - 0.5), ylim=(bottom - 0.5, top - 0.5))


def _apart(x: NDArray, y: NDArray) -> NDArray[np.int64]:
    """Return a color for each source that its nearest neighbors before it do not have."""
    places = np.nan_to_num(np.stack([x, y], 1))
    near = KDTree(places).query(places, k=range(1, NEIGHBORS + 2))[1]  # beyond the last one, the number of sources
    colors = np.full(len(x) + 1, -1)
    for source, others in enumerate(near):
        taken = set(colors[others])
        colors[source] = next(color for color in range(len(PALETTE)) if color not in taken)
    return colors[:-1]


def _note(axes: Axes, text: str, x: float, y: float, *, color: object, offset: tuple[float, float] = (0, 0)) -> None:
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2, foreground="w")]
    look = {"ha": "center", "va": "center", "fontsize": "x-small", "annotation_clip": True, "path_effects": halo}
    axes.annotate(text, (x, y), offset, textcoords="offset points", color=color, **look)


def _limits(values: NDArray) -> tuple[float, float]:
    if not np.isfinite(values).all():
        return 0.0, 1.0
    low, middle, high = np.quantile(values, ONE_SIGMA)
    reach = max(2 * (high - low), 1e-6 * abs(middle), np.finfo(float).tiny)
    return middle - reach, middle + reach


def _joint(axes: Axes, draws: NDArray, limits: list[tuple[float, float]]) -> None:
    """Show draws of two fluxes ``(2, draw)`` with their 68 % and 95 % regions and their correlation."""
    axes.plot(*draws[:, :1000], ".", color="0.6", ms=2, alpha=0.5, mew=0, rasterized=True)
    axes.set(xlim=limits[0], ylim=limits[1])
    if not np.isfinite(draws).all() or not (draws.std(axis=1) > 0).all():
        return
    counts, *edges = np.histogram2d(*draws, bins=64, range=limits)
    density = gaussian_filter(counts, 3.0)
    levels = np.quantile(np.repeat(density, counts.astype(int).ravel()), OUTSIDE)
    centers = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    axes.contour(*centers, density.T, np.unique(levels), colors="0.15", linewidths=[1, 1.6])
    axes.set_title(f"correlation {np.corrcoef(draws)[0, 1]:.2f}", fontsize="x-small", pad=2)
