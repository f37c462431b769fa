"""Pixels of each source: mask probabilities and deblended images, cut out where the source has light; and of scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import xarray as xr
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from photutils.segmentation import SegmentationImage

    from .draws import Posterior

__all__ = ["Cutout", "Cutouts", "image", "label_image", "mask", "model_image", "segmentation"]

PIXELS = {  # arrays of a source, with their axes before (y, x)
    "mask": (),
    "mask_std": (),
    "image": ("band",),
    "image_std": ("band",),
}


@dataclass(frozen=True, eq=False)
class Cutout:
    """A rectangle of pixels of one source.

    Parameters
    ----------
    data
        Mask probability ``(y, x)``, or deblended image ``(band, y, x)`` in image units.
    std
        Standard deviation of `data`, same shape; None where it is not known.
    corner
        Row and column ``(y, x)`` of the first pixel in the image of the scene.
    wcs
        World coordinates of the cutout, or None.
    """

    data: NDArray[np.floating]
    std: NDArray[np.floating] | None
    corner: tuple[int, int]
    wcs: WCS | None = None

    @property
    def slices(self) -> tuple[slice, slice]:
        """Where the cutout lies in the image of the scene ``(y, x)``."""
        return tuple(slice(at, at + size) for at, size in zip(self.corner, self.data.shape[-2:], strict=True))


@dataclass(frozen=True, eq=False, repr=False)
class Cutouts:
    """The pixels of all sources of a posterior; each source has one rectangle, whatever is known there.

    Parameters
    ----------
    corner
        Row and column of the first pixel of each source in the image of its scene ``(source, 2)``.
    shape
        Rows and columns of the image of a scene, within which all cutouts lie.
    mask
        For each source the probability ``(y, x)`` that its own light exceeds 3 sky rms, all bands in quadrature.
    mask_std
        Standard deviation of that probability over the dropout passes.
    image, image_std
        For each source its deblended image ``(band, y, x)`` in image units, and the standard deviation.

    Raises
    ------
    ValueError
        If the arrays are not one per source, those of a source differ in shape, or one is not within the image.
    """

    corner: NDArray[np.integer]
    shape: tuple[int, int]
    mask: Sequence[NDArray] | None = None
    mask_std: Sequence[NDArray] | None = None
    image: Sequence[NDArray] | None = None
    image_std: Sequence[NDArray] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "corner", np.asarray(self.corner, dtype=np.int64).reshape(-1, 2))
        object.__setattr__(self, "shape", tuple(int(side) for side in self.shape))
        sizes = self.sizes
        for name, arrays in self.known.items():
            if len(arrays) != len(self):
                raise ValueError(f"{name} must have an array for each of {len(self)} sources, got {len(arrays)}")
            for array, size in zip(arrays, map(tuple, sizes.tolist()), strict=True):
                if array.ndim != 2 + len(PIXELS[name]) or array.shape[-2:] != size:
                    axes = ", ".join((*PIXELS[name], "y", "x"))
                    raise ValueError(f"{name} must have the axes ({axes}) of {size}, got shape {array.shape}")
        outside = ((self.corner < 0) | (self.corner + sizes > self.shape)).any(1)
        if outside.any():
            first = self.corner[outside][0].tolist()
            raise ValueError(f"corner must place all cutouts within the image of {self.shape}, got {first}")

    def __len__(self) -> int:
        return len(self.corner)

    @property
    def known(self) -> dict[str, Sequence[NDArray]]:
        """The arrays that are known, by their names."""
        return {name: getattr(self, name) for name in PIXELS if getattr(self, name) is not None}

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows and columns of each cutout ``(source, 2)``."""
        arrays = next(iter(self.known.values()), ())
        return np.array([array.shape[-2:] for array in arrays], dtype=np.int64).reshape(-1, 2)

    def cutout(self, name: str, number: int, wcs: WCS | None = None) -> Cutout:
        """Return the pixels of one source.

        Parameters
        ----------
        name
            "mask" or "image".
        number
            Index of the source.
        wcs
            World coordinates of the image.

        Returns
        -------
        Cutout
            Its data and standard deviation.

        Raises
        ------
        AttributeError
            If they are not known.
        """
        if name not in self.known:
            raise AttributeError(f"this posterior has no {name}")
        std = self.known.get(f"{name}_std")
        corner = tuple(self.corner[number].tolist())
        found = Cutout(self.known[name][number], None if std is None else std[number], corner)
        return found if wcs is None else Cutout(found.data, found.std, corner, wcs.slice(found.slices))

    def select(self, index: ArrayLike) -> Self:
        """Return some of the sources.

        Parameters
        ----------
        index
            Their indices.

        Returns
        -------
        Cutouts
            Their pixels.
        """
        known = {name: [arrays[number] for number in index] for name, arrays in self.known.items()}
        return type(self)(self.corner[index], self.shape, **known)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return the sources of several sets, which know the same arrays of scenes of one shape.

        Parameters
        ----------
        parts
            Cutouts.

        Returns
        -------
        Cutouts
            All sources, in the order of the parts.

        Raises
        ------
        ValueError
            If the parts differ in what they know, or in the shape of the scene.
        """
        names, shape = list(parts[0].known), parts[0].shape
        for part in parts:
            if (part.shape, list(part.known)) != (shape, names):
                raise ValueError(f"cutouts must all have {names} of {shape}, got {list(part.known)} of {part.shape}")
        known = {name: [array for part in parts for array in part.known[name]] for name in names}
        return cls(np.concatenate([part.corner for part in parts]), shape, **known)

    def to_dataset(self) -> xr.Dataset:
        """Return the pixels of all sources in one row for each kind, as a file holds them."""
        known = {"shape": np.array(self.shape), "names": " ".join(self.known)}
        stored = {"cutout_corner": (("source", "axis"), self.corner, known)}
        stored["cutout_size"] = (("source", "axis"), self.sizes)
        for name, arrays in self.known.items() if len(self) else ():
            rows = [array.reshape(*array.shape[:-2], -1) for array in arrays]
            stored[f"cutout_{name}"] = ((*PIXELS[name], "pixel"), np.concatenate(rows, axis=-1))
        return xr.Dataset(stored)

    @classmethod
    def from_dataset(cls, dataset: xr.Dataset) -> Self:
        """Return what `to_dataset` stored."""
        corner, sizes = dataset["cutout_corner"], dataset["cutout_size"].values
        bounds = np.cumsum(sizes.prod(1))[:-1]
        known: dict[str, list[NDArray]] = {name: [] for name in corner.attrs["names"].split()}
        for name in known if len(sizes) else ():
            rows = np.split(dataset[f"cutout_{name}"].values, bounds, axis=-1)
            known[name] = [row.reshape(*row.shape[:-1], *size) for row, size in zip(rows, sizes, strict=True)]
        return cls(corner.values, corner.attrs["shape"], **known)


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
