"""Posteriors of fluxes and masks, and catalogs over their image."""

import numpy as np
from astropy.table import Table
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter

from ..metrics.arrays import ONE_SIGMA
from ..posterior.draws import Posterior
from ..posterior.flags import Flag
from .images import GALAXY_COLORS, ISOLATED_COLOR, plot_image

__all__ = ["plot_blend", "plot_blends", "plot_field", "plot_fluxes"]

GALAXY_NAMES = ("central", "companion")
CREDIBLE = (0.95, 0.68)
MASK_COLORS = "viridis"


def plot_fluxes(
    posterior: Posterior,
    *,
    blend: int = 0,
    band: int = 0,
    truth: ArrayLike | None = None,
    axes: Axes | None = None,
) -> Axes:
    """Show the joint posterior of the fluxes of a pair: draws, 68 % and 95 % regions, and the marginals.

    Parameters
    ----------
    posterior
        A posterior of pairs.
    blend
        Index of the blend in `posterior`.
    band
        Index of the band.
    truth
        The true fluxes of the two galaxies, marked by a cross.
    axes
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        The joint distribution; the marginals are its ``child_axes``.

    Raises
    ------
    ValueError
        If the blends are not pairs.
    """
    if posterior.flux.sizes["galaxy"] != 2:
        raise ValueError(f"posterior must be of pairs, got {posterior.flux.sizes['galaxy']} galaxies")
    axes = axes or Figure(figsize=(4.4, 4.4), layout="constrained").subplots()
    flux = posterior.flux.isel(blend=blend, band=band).transpose("galaxy", "chain", "draw")
    draws = flux.values.reshape(2, -1)
    unit = flux.attrs["unit"]
    labels = [f"{name} flux" + (f" [{unit}]" if unit else "") for name in GALAXY_NAMES]
    axes.set_xlabel(labels[0], color=GALAXY_COLORS[0])
    axes.set_ylabel(labels[1], color=GALAXY_COLORS[1])
    axes.locator_params(nbins=4)
    limits = [_limits(values) for values in draws]
    axes.set(xlim=limits[0], ylim=limits[1])
    if np.isfinite(draws).all():
        _joint(axes, draws, limits)
    else:
        missing = " and ".join(GALAXY_NAMES[galaxy] for galaxy in range(2) if np.isnan(draws[galaxy]).any())
        axes.text(0.5, 0.5, f"{missing}\nnot detected", transform=axes.transAxes, ha="center", va="center")
        axes.set(**{f"{side}ticks": [] for side, values in zip("xy", draws, strict=True) if np.isnan(values).any()})
    _marginals(axes, draws)
    if truth is not None:
        axes.plot(*np.asarray(truth, dtype=float).ravel(), "+", color="k", ms=13, mew=2, zorder=5, label="truth")
        axes.legend(loc="upper right", frameon=False, handletextpad=0.2, borderpad=0.1)
    return axes


def plot_blend(
    posterior: Posterior,
    image: ArrayLike,
    *,
    blend: int = 0,
    truth: ArrayLike | None = None,
    axes: np.ndarray | None = None,
) -> np.ndarray:
    """Show a blend and its posterior: the image, the mask probabilities of both galaxies, and their fluxes.

    Parameters
    ----------
    posterior
        A posterior of pairs; its first band is shown.
    image
        Stamp of the blend ``(y, x)`` or ``(band, y, x)``.
    blend
        Index of the blend in `posterior`.
    truth
        The true fluxes of the two galaxies, marked by a cross.
    axes
        Four axes to draw in; None makes a figure.

    Returns
    -------
    numpy.ndarray
        The four axes.

    Raises
    ------
    ValueError
        If the blends are not pairs, or the image is not a stamp.
    """
    if axes is None:
        axes = _rows(1)[0]
    image, scale = np.asarray(image), posterior.dataset.attrs.get("pixel_scale")
    plot_image(image[0] if image.ndim == 3 else image, pixel_scale=scale, axes=axes[0])
    number = int(posterior.dataset["blend"][blend])
    axes[0].set_title(f"blend {number}", fontsize="medium")
    bits = int(np.bitwise_or.reduce(posterior.flags.values[blend]))
    if bits:
        _note(axes[0], str(Flag(bits)).replace(", ", "\n"), (0.03, 0.97), va="top")
    for galaxy, panel in enumerate(axes[1:3]):
        _mask(panel, axes[0], posterior, blend, galaxy)
    plot_fluxes(posterior, blend=blend, truth=truth, axes=axes[3])
    return axes


def plot_blends(posterior: Posterior, images: ArrayLike, *, most: int = 8) -> np.ndarray:
    """Show blends and their posteriors, one row per blend as by `plot_blend`.

    Parameters
    ----------
    posterior
        A posterior of pairs.
    images
        The stamps ``(blend, y, x)`` or ``(blend, band, y, x)``.
    most
        Largest number of blends to show, the first ones.

    Returns
    -------
    numpy.ndarray
        The axes ``(blend, 4)``.

    Raises
    ------
    ValueError
        If there are no blends, or not one stamp for each.
    """
    images = np.asarray(images)
    if len(images) != len(posterior) or not len(posterior):
        raise ValueError(f"images must hold a stamp for each of {len(posterior)} blends, got {len(images)}")
    rows = min(len(posterior), most)
    grid = _rows(rows)
    for blend, axes in enumerate(grid):
        plot_blend(posterior, images[blend], blend=blend, axes=axes)
    if rows < len(posterior):
        grid[0, 0].figure.suptitle(f"the first {rows} of {len(posterior)} blends")
    return grid


def plot_field(image: ArrayLike, catalog: Table, *, axes: Axes | None = None) -> Axes:
    """Show an image with the numbered sources of a catalog: pairs joined by a line, isolated sources apart.

    Parameters
    ----------
    image
        Pixels ``(y, x)``.
    catalog
        A table as from `Posterior.summary`; x and y are positions in `image`.
    axes
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        The image with its sources.
    """
    axes = plot_image(image, axes=axes or Figure(figsize=(7.5, 7.5), layout="constrained").subplots())
    isolated = (np.asarray(catalog["flags"]) & Flag.ISOLATED) > 0
    x, y, galaxy = (np.asarray(catalog[name], dtype=float) for name in ("x", "y", "galaxy"))
    groups = {
        "isolated source": (isolated, ISOLATED_COLOR),
        "central galaxy of a pair": (~isolated & (galaxy == 0), GALAXY_COLORS[0]),
        "its companion": (~isolated & (galaxy > 0), GALAXY_COLORS[1]),
    }
    for blend in np.unique(np.asarray(catalog["blend"])[~isolated]):
        pair = ~isolated & (np.asarray(catalog["blend"]) == blend)
        axes.plot(x[pair], y[pair], color="k", lw=1.2, alpha=0.7)
    handles, halo = [], [withStroke(linewidth=3.5, foreground="w")]
    for label, (chosen, color) in groups.items():
        if chosen.any():
            style = {"marker": "o", "ms": 11, "mfc": "none", "mec": color, "mew": 1.8, "ls": "none"}
            style["path_effects"] = halo
            axes.plot(x[chosen], y[chosen], **style)
            handles.append(Line2D([], [], label=f"{label} ({chosen.sum()})", **style))
    for row in np.flatnonzero(np.isfinite(x + y)):
        look = {"textcoords": "offset points", "fontsize": 8, "path_effects": halo, "annotation_clip": True}
        axes.annotate(str(catalog["id"][row]), (x[row], y[row]), (7, 5), **look)
    if handles:
        axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False)
    return axes


def _rows(rows: int) -> np.ndarray:
    figure = Figure(figsize=(12.5, 3 * rows + 0.3), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    return figure.subplots(rows, 4, squeeze=False, width_ratios=[1, 1, 1.2, 1.2])


def _note(axes: Axes, text: str, position: tuple[float, float], **style: str) -> None:
    outline = [withStroke(linewidth=3, foreground="w")]
    axes.text(*position, text, transform=axes.transAxes, fontsize="small", path_effects=outline, **style)


def _mask(panel: Axes, image_axes: Axes, posterior: Posterior, blend: int, galaxy: int) -> None:
    color = GALAXY_COLORS[galaxy]
    draws = posterior.flux.isel(blend=blend, galaxy=galaxy, band=0).values
    measured = _measured(np.median(draws), np.std(draws, ddof=min(1, draws.size - 1)))  # as in catalogs
    panel.set_title(f"{GALAXY_NAMES[galaxy]}: {measured}", color=color, fontsize="medium")
    panel.set(xticks=[], yticks=[])
    if "mask" not in posterior.dataset:
        panel.set_box_aspect(1)
        text = f"no mask from {posterior.dataset.attrs['method']}"
        panel.text(0.5, 0.5, text, ha="center", transform=panel.transAxes)
        return
    mask = posterior.mask.isel(blend=blend, galaxy=galaxy).values
    panel.imshow(mask, vmin=0, vmax=1, cmap=MASK_COLORS, origin="lower", interpolation="nearest")
    if (mask > 0.5).any() and (mask < 0.5).any():
        panel.contour(mask, [0.5], colors="w", linewidths=1.0)
        image_axes.contour(mask, [0.5], colors=color, linewidths=1.5)
    if galaxy == 1:
        _mask_scale(panel)


def _mask_scale(panel: Axes) -> None:
    bar = panel.inset_axes((1.04, 0, 0.05, 1))
    panel.figure.colorbar(ScalarMappable(Normalize(0, 1), MASK_COLORS), cax=bar, ticks=[0, 0.5, 1])
    bar.axhline(0.5, color="w", lw=1)
    bar.set_ylabel("mask probability", labelpad=3)


def _measured(middle: float, error: float) -> str:
    if np.isnan(middle):
        return "not detected"
    if not 1e-4 < error < 1e5:
        return f"{middle:.4g} ± {error:.2g}"
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{middle:.{digits}f} ± {error:.{digits}f}"


def _limits(values: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(values).all():
        return 0.0, 1.0
    low, middle, high = np.quantile(values, ONE_SIGMA)
    reach = max(4 * (high - low) / 2, 1e-6 * abs(middle), np.finfo(float).tiny)
    return middle - reach, middle + reach


def _joint(axes: Axes, draws: np.ndarray, limits: list[tuple[float, float]]) -> None:
    axes.plot(*draws[:, :2000], ".", color="0.6", ms=2, alpha=0.5, mew=0, rasterized=True)
    counts, *edges = np.histogram2d(*draws, bins=64, range=limits)
    density = gaussian_filter(counts, 3.0)
    ordered = np.sort(density.ravel())[::-1]
    share = np.cumsum(ordered) / max(ordered.sum(), 1)
    levels = np.unique([ordered[min(np.searchsorted(share, part), len(share) - 1)] for part in CREDIBLE])
    if len(levels) == len(CREDIBLE):
        centers = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
        axes.contourf(*centers, density.T, [*levels, np.inf], colors=["0.35", "0.15"], alpha=0.35)
        axes.contour(*centers, density.T, levels, colors="0.15", linewidths=[1, 1.6])
    correlation = np.corrcoef(draws)[0, 1] if (draws.std(axis=1) > 0).all() else np.nan
    _note(axes, f"correlation {correlation:.2f}", (0.03, 0.03), va="bottom")


def _marginals(axes: Axes, draws: np.ndarray) -> None:
    top = axes.inset_axes((0, 1.02, 1, 0.2), sharex=axes)
    right = axes.inset_axes((1.02, 0, 0.2, 1), sharey=axes)
    sides = zip((top, right), draws, ("vertical", "horizontal"), GALAXY_COLORS, strict=True)
    for panel, values, orientation, color in sides:
        panel.axis("off")
        if np.isfinite(values).all():
            bins = np.linspace(*_limits(values), 41)
            panel.hist(values, bins, color=color, alpha=0.75, orientation=orientation, histtype="stepfilled")
