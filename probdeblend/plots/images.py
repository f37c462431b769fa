"""Images and stamps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
from astropy.stats import mad_std
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import AsinhNorm
    from matplotlib.figure import Figure

__all__ = ["EXACT_COLOR", "PALETTE", "new_figure", "plot_image", "plot_rgb", "plot_stamps", "show", "stretch"]

EXACT_COLOR = "0.6"  # of what an exact posterior would show
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#B5A900")
"""Colors of sources and curves, which color-blind readers can tell apart (Okabe and Ito)."""

RGB_LINEAR, RGB_SOFTENING = 8.0, 5.0  # sky rms up to which colors are linear; of the stretch above


def new_figure(width: float, height: float) -> Figure:
    """Return a new figure of a size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def stretch(image: NDArray) -> AsinhNorm:
    """Return the asinh stretch of an image: linear within the sky noise, logarithmic above."""
    from matplotlib.colors import AsinhNorm

    good = image[np.isfinite(image)]
    if not good.size:
        raise ValueError("image must have a finite pixel, got none")
    sky = np.median(good)
    noise = mad_std(good) or good.std() or 1.0
    return AsinhNorm(2 * noise, vmin=sky - 2 * noise, vmax=max(np.quantile(good, 0.9995), sky + 10 * noise))


def show(axes: Axes, pixels: NDArray, corner: tuple[int, int] = (0, 0), *, step: int = 1, **look: object) -> None:
    """Show pixels ``(y, x)`` or colors ``(y, x, 3)``, each `step` pixels wide, from the row and column `corner` on."""
    (y, x), (rows, columns) = corner, pixels.shape[:2]
    extent = (x - 0.5, x + columns * step - 0.5, y - 0.5, y + rows * step - 0.5)
    axes.imshow(pixels, origin="lower", interpolation="nearest", extent=extent, **look)


def plot_image(image: ArrayLike, *, axes: Axes | None = None) -> Axes:
    """Show an image with an asinh stretch: linear within the sky noise, logarithmic above.

    Parameters
    ----------
    image
        Pixels ``(y, x)``; bad ones may be NaN.
    axes
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        The image.

    Raises
    ------
    ValueError
        If `image` is not two-dimensional or has no finite pixel.
    """
    image = np.asarray(image, dtype=float)
    if image.ndim != 2:
        raise ValueError(f"image must have the axes (y, x), got shape {image.shape}")
    norm = stretch(image)
    axes = axes or new_figure(5, 5).subplots()
    show(axes, image, norm=norm, cmap="gray_r")
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(-0.5, image.shape[0] - 0.5))
    axes.set(xlabel="x [pixel]", ylabel="y [pixel]")
    return axes


def plot_rgb(image: ArrayLike, *, axes: Axes | None = None) -> Axes:
    """Show three bands in colors, with the stretch of Lupton et al. (2004, doi:10.1086/382245).

    Each band is scaled by its own sky noise; the hue of a pixel does not depend on its brightness.

    Parameters
    ----------
    image
        Pixels ``(3, y, x)``, from the bluest band to the reddest; bad ones may be NaN.
    axes
        Where to draw; None makes a figure.

    Returns
    -------
    Axes
        The image.

    Raises
    ------
    ValueError
        If `image` has not three bands, or one has no finite pixel.
    """
    from astropy.visualization import make_lupton_rgb

    image = np.asarray(image, dtype=float)
    if image.ndim != 3 or len(image) != 3:
        raise ValueError(f"image must have the axes (band, y, x) with three bands, got shape {image.shape}")
    norms = [stretch(band) for band in image]  # from two sky rms below the sky on
    over = [np.nan_to_num(2 * (band - norm.vmin) / norm.linear_width) for band, norm in zip(image, norms, strict=True)]
    axes = plot_image(image[0], axes=axes)
    axes.images[0].set(data=make_lupton_rgb(*over[::-1], stretch=RGB_LINEAR, Q=RGB_SOFTENING))
    return axes


def plot_stamps(
    stamps: ArrayLike | Sequence[ArrayLike],
    titles: Sequence[str],
    *,
    outlines: ArrayLike | None = None,
    colors: Sequence[str] | None = None,
    columns: int = 6,
) -> NDArray[np.object_]:
    """Show a page of stamps, such as a contact sheet.

    Parameters
    ----------
    stamps
        Pixels ``(stamp, y, x)``, or a list of images of any sizes.
    titles
        One title per stamp, of one line or several.
    outlines
        Masks ``(stamp, outline, y, x)`` to draw as contours, in the colors of `PALETTE`.
    colors
        Color of the frame of each stamp; None for black.
    columns
        Stamps per row.

    Returns
    -------
    NDArray
        The `Axes` of each stamp ``(stamp,)``.

    Raises
    ------
    ValueError
        If there is no stamp, or not one title for each.
    """
    if not len(stamps) or len(titles) != len(stamps):
        raise ValueError(f"titles must be as many as stamps, and at least one, got {len(titles)} for {len(stamps)}")
    rows = -(-len(stamps) // columns)
    panels = new_figure(2.0 * columns, 2.5 * rows).subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(stamps) :]:
        axes.axis("off")
    for number, axes in enumerate(panels[: len(stamps)]):
        plot_image(stamps[number], axes=axes)
        axes.set(xticks=[], yticks=[], xlabel="", ylabel="")
        axes.set_title(titles[number], fontsize=7)
        for mask, color in zip(() if outlines is None else outlines[number], cycle(PALETTE), strict=False):
            if np.any(mask):
                axes.contour(np.asarray(mask, dtype=float), [0.5], colors=[color], linewidths=0.7)
        if colors is not None:
            axes.spines[:].set(color=colors[number], linewidth=2)
    return panels[: len(stamps)]
