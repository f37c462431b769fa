"""SEP's photometry as a `Posterior`: sources are detected cold and hot, and their Kron fluxes measured band by band.

The draws are independent normals with SEP's errors. These contain no correlation, neither of the noise between pixels
nor of neighbors' fluxes, and no error of the deblending: that is what a network improves on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..metrics.detections import match_positions
from ..photometry.detection import COLD, HOT, Detection, detect, detect_cold_hot, kron_flux
from ..posterior.cutouts import Cutouts
from ..posterior.draws import Posterior
from ..posterior.flags import Flag
from ..scene import Scene

__all__ = ["SepDeblender"]

KNOWN = ("scene", "group", "x", "y", "flags", "axis_ratio", "angle", "sky_rms", "corner")
REACH = 10.0  # pixels; a detection farther from a given position is another source


@dataclass(frozen=True)
class SepDeblender:
    """Measure the sources of scenes with SEP, as a baseline for other methods.

    Sources are detected in the sum of the bands, each over its sky noise: cold, and hot wherever nothing cold is
    (Rix et al. 2004, doi:10.1086/420885; settings of Boucaud et al. 2020, doi:10.1093/mnras/stz3056, table 3). Fluxes
    are Kron fluxes without the pixels of other sources. Groups are sources whose segments touch.

    Parameters
    ----------
    draws
        Number of draws; there is one chain.
    pairs
        Detect as Boucaud et al. (2020, section 5.1) do in stamps of two galaxies: cold, and hot in the whole stamp if
        that finds fewer than two.

    Raises
    ------
    ValueError
        If there are fewer than two draws.
    """

    draws: int = 1000
    pairs: bool = False

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise ValueError(f"draws must be at least 2, got {self.draws}")

    def scenes(
        self, scene: Scene, *, positions: tuple[Tensor, Tensor, Tensor] | None = None, seed: int = 0
    ) -> Posterior:
        """Detect and measure the sources of scenes.

        Parameters
        ----------
        scene
            The images; pixels that are not finite are bad. Known sources are not looked at.
        positions
            Scene, x and y of sources ``(source,)``, ordered by scene. Each gets the detection within 10 pixels that
            belongs to it, one to one with the least sum of distances. By default all detections are answered.
        seed
            Seed of the draws.

        Returns
        -------
        Posterior
            Draws of ``flux_auto`` in one chain, and segments as masks. Given positions without a detection have NaN
            as flux, an empty mask and `Flag.NOT_DETECTED`.

        Raises
        ------
        ValueError
            If SEP cannot segment an image.
        """
        given = None if positions is None else [np.asarray(values) for values in positions]
        parts, groups = [], 0
        for number in range(len(scene)):
            wanted = None if given is None else np.stack([values[given[0] == number] for values in given[1:]], -1)
            parts.append(self._measured(scene, number, wanted, seed))
            parts[-1]["group"] += groups
            groups = int(parts[-1]["group"].max(initial=groups - 1)) + 1
        return self._posterior(scene, parts)

    def _measured(self, scene: Scene, number: int, wanted: NDArray | None, seed: int) -> dict[str, NDArray | list]:
        """Return what is known of the sources of one scene, by names of `Posterior.from_draws`."""
        image, rms = (values[number].double().numpy() for values in (scene.image, scene.sky_rms))
        detection = (detect_cold_hot if self.pairs else _detect_everywhere)(_combined(image, rms), 1.0)
        bands = zip(image, rms.tolist(), scene.exposure[number].tolist(), strict=True)
        measured = [kron_flux(pixels, detection, sky, exposure=depth) for pixels, sky, depth in bands]
        place = np.stack([detection.x, detection.y], axis=-1)
        chosen, at = np.arange(len(detection)), place
        if wanted is not None:
            chosen, at = match_positions(place, wanted, radius=REACH), wanted
        # A last row, at index -1, stands for what was not detected.
        none = np.full((1, len(rms)), np.nan)
        flux, error = (np.append(np.stack(values, -1), none, 0) for values in zip(*measured, strict=True))
        normal = np.random.default_rng([seed, number]).normal(size=(self.draws, len(at), len(rms)))
        axes = np.append(np.stack([detection.semi_minor / detection.semi_major, detection.angle]), [[np.nan]] * 2, 1)
        touching = _touching(detection)
        alone = touching.max(initial=-1) + 1 + np.arange(len(at))
        boxes = ndimage.find_objects(detection.segmentation)
        cutouts = [_cutout(detection, boxes, index, *position) for index, position in zip(chosen, at, strict=True)]
        return {
            "scene": np.full(len(at), number),
            "group": np.unique(np.where(chosen >= 0, np.append(touching, 0)[chosen], alone), return_inverse=True)[1],
            "x": at[:, 0],
            "y": at[:, 1],
            "draws": flux[chosen] + error[chosen] * normal,
            "flags": np.where(chosen < 0, int(Flag.NOT_DETECTED), 0),
            "axis_ratio": axes[0, chosen],
            "angle": axes[1, chosen],
            "sky_rms": np.broadcast_to(rms, (len(at), len(rms))),
            "corner": np.array([corner for corner, _ in cutouts]).reshape(-1, 2),
            "mask": [mask for _, mask in cutouts],
        }

    def _posterior(self, scene: Scene, parts: list[dict]) -> Posterior:
        bands, shape = scene.image.shape[1], scene.image.shape[-2:]
        draws = [np.zeros((self.draws, 0, bands)), *(part["draws"] for part in parts)]
        masks = [mask for part in parts for mask in part["mask"]]
        known = {name: np.concatenate([part[name] for part in parts]) for name in KNOWN} if parts else {}
        corner = known.pop("corner", np.zeros((0, 2)))
        place = {name: known.pop(name, np.zeros(0)) for name in ("scene", "group", "x", "y")}
        return Posterior.from_draws(
            flux_auto=np.concatenate(draws, axis=1)[None],
            **place,
            bands=("",) if bands == 1 else tuple(map(str, range(bands))),
            zero_point=scene.zero_point,
            pixel_scale=scene.pixel_scale,
            method="sep",
            columns=known,
            cutouts=Cutouts(corner, shape, mask=masks),
            scenes=len(scene),
        )


def _combined(image: NDArray, rms: NDArray) -> NDArray[np.float64]:
    """Return the sum of the good bands, each over its sky noise, with unit noise."""
    ratio = image / rms[:, None, None]
    good = np.isfinite(ratio)
    with np.errstate(invalid="ignore"):
        return np.where(good, ratio, 0).sum(0) / np.sqrt(np.where(good.any(0), good.sum(0), np.nan))


def _detect_everywhere(image: NDArray, sky_rms: float) -> Detection:
    """Find sources cold, and hot ones that share no pixel with them."""
    cold, hot = (detect(image, sky_rms, **settings) for settings in (COLD, HOT))
    new = np.setdiff1d(hot.label, hot.segmentation[cold.segmentation > 0])
    number = np.zeros(len(hot) + 1, dtype=np.int32)
    number[new] = len(cold) + 1 + np.arange(len(new))
    joined = {name: np.concatenate([v, vars(hot)[name][new - 1]]) for name, v in vars(cold).items() if v.ndim == 1}
    return Detection(np.where(cold.segmentation > 0, cold.segmentation, number[hot.segmentation]), **joined)


def _touching(detection: Detection) -> NDArray[np.int64]:
    """Return the group of each source: those whose segments touch along an edge, and so on."""
    labels = detection.segmentation
    sides = [(labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])]
    links = np.concatenate([np.stack(side, axis=-1).reshape(-1, 2) for side in sides])
    links = np.unique(links[(links > 0).all(-1)] - 1, axis=0)
    graph = coo_array((np.ones(len(links)), tuple(links.T)), shape=(len(detection),) * 2)
    return connected_components(graph, directed=False)[1]


def _cutout(
    detection: Detection, boxes: list[tuple[slice, slice]], index: int, x: float, y: float
) -> tuple[list[int], NDArray[np.float32]]:
    """Return corner and pixels of a segment; of an undetected source, one empty pixel at its position."""
    if index < 0:
        height, width = detection.segmentation.shape
        return [int(np.clip(round(y), 0, height - 1)), int(np.clip(round(x), 0, width - 1))], np.zeros((1, 1), "f4")
    rows, columns = boxes[index]
    return [rows.start, columns.start], (detection.segmentation[rows, columns] == index + 1).astype(np.float32)
