"""Masks and images of a posterior: those of a source, and those of a scene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .cutouts import Cutout, Cutouts

if TYPE_CHECKING:
    from photutils.segmentation import SegmentationImage

    from .draws import Posterior

__all__ = ["image", "label_image", "mask", "model_image", "segmentation"]


def mask(posterior: Posterior, label: int) -> Cutout:
    """Return the probability that a source's own light exceeds 3 sky rms in each pixel, all bands in quadrature.

    Parameters
    ----------
    posterior
        The posterior.
    label
        The source.

    Returns
    -------
    Cutout
        Probabilities ``(y, x)``, and their standard deviation over the dropout passes.
    """
    return _pixels(posterior).cutout("mask", posterior.index(label), posterior.wcs)


def image(posterior: Posterior, label: int) -> Cutout:
    """Return the deblended image of a source.

    Parameters
    ----------
    posterior
        The posterior.
    label
        The source.

    Returns
    -------
    Cutout
        Its light ``(band, y, x)`` in image units, and the standard deviation.
    """
    return _pixels(posterior).cutout("image", posterior.index(label), posterior.wcs)


def model_image(posterior: Posterior, scene: int = 0) -> NDArray[np.floating]:
    """Return the sum of the deblended images of all sources of a scene.

    Parameters
    ----------
    posterior
        The posterior.
    scene
        Number of the scene.

    Returns
    -------
    NDArray
        ``(band, y, x)`` in image units.
    """
    pixels = _pixels(posterior)
    kind = np.result_type(np.float32, *(cut.dtype for cut in pixels.known.get("image", ())[:1]))
    total = np.zeros((posterior.dataset.sizes["band"], *pixels.shape), dtype=kind)
    for number in np.flatnonzero(posterior.dataset["scene"].values == scene):
        found = pixels.cutout("image", number)
        total[:, *found.slices] += found.data
    return total


def label_image(posterior: Posterior, scene: int = 0) -> NDArray[np.int32]:
    """Return the most probable owner of each pixel of a scene.

    Parameters
    ----------
    posterior
        The posterior.
    scene
        Number of the scene.

    Returns
    -------
    NDArray
        The label of the source with the highest mask probability ``(y, x)``, 0 where none reaches one half.
    """
    pixels, label = _pixels(posterior), posterior.dataset["label"].values
    owner, best = np.zeros(pixels.shape, dtype=np.int32), np.full(pixels.shape, 0.5)
    for number in np.flatnonzero(posterior.dataset["scene"].values == scene):
        found = pixels.cutout("mask", number)
        higher = found.data >= best[found.slices]
        owner[found.slices][higher] = label[number]
        best[found.slices][higher] = found.data[higher]
    return owner


def segmentation(posterior: Posterior, scene: int = 0) -> SegmentationImage:
    """Return the most probable owner of each pixel of a scene, as photutils takes it.

    Parameters
    ----------
    posterior
        The posterior.
    scene
        Number of the scene.

    Returns
    -------
    photutils.segmentation.SegmentationImage
        Of the labels that `label_image` returns.
    """
    from photutils.segmentation import SegmentationImage

    return SegmentationImage(label_image(posterior, scene))


def _pixels(posterior: Posterior) -> Cutouts:
    if posterior.cutouts is None:
        raise AttributeError(f"this posterior of method {posterior.dataset.attrs['method']!r} has no masks or images")
    return posterior.cutouts
