"""SEP's photometry as a `Posterior`: sources are detected cold and hot, and their Kron fluxes measured band by band.

The draws are independent normals with SEP's errors. These contain no correlation, neither of the noise between pixels
nor of neighbors' fluxes, and no error of the deblending: that is what a network improves on.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from ..metrics.detections import match_positions
from ..photometry.detection import COLD, HOT, Detection, detect, detect_cold_hot, kron_flux
from ..posterior.cutouts import Cutouts
from ..posterior.draws import Posterior
from ..posterior.flags import Flag
from ..scene import Scene, check_least
from .deblender import Positions

__all__ = ["SepDeblender"]

REACH = 10.0  # pixels; a detection farther from a given position is another source
TOUCHING = np.ones((3, 3))  # neighbors of a pixel, along edges and at corners, as SEP has them


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
        check_least(2, draws=self.draws)

    def scenes(self, scene: Scene, *, positions: Positions | None = None, seed: int = 0) -> Posterior:
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
        bands, size = scene.image.shape[1], scene.image.shape[-2:]
        given = None if positions is None else np.stack([np.asarray(values) for values in positions])
        nothing = np.zeros((self.draws, 0, bands)), np.zeros((0, 9)), []
        parts = [nothing, *(self._measured(scene, number, given, seed) for number in range(len(scene)))]
        draws, rows, masks = zip(*parts, strict=True)
        number, group, x, y, flags, axis_ratio, angle, *corner = np.concatenate(rows).T
        rms = scene.sky_rms.double().numpy()[number.astype(int)]
        return Posterior.from_draws(
            flux_auto=np.concatenate(draws, axis=1)[None],
            scene=number,
            group=np.unique(np.stack([number, group], 1), axis=0, return_inverse=True)[1].ravel(),
            x=x,
            y=y,
            bands=("",) if bands == 1 else tuple(map(str, range(bands))),
            zero_point=scene.zero_point,
            pixel_scale=scene.pixel_scale,
            method="sep",
            columns={"flags": flags, "axis_ratio": axis_ratio, "angle": angle, "sky_rms": rms},
            cutouts=Cutouts(np.stack(corner, 1), size, mask=[mask for part in masks for mask in part]),
            scenes=len(scene),
        )

    def _measured(self, scene: Scene, number: int, given: NDArray | None, seed: int) -> tuple[NDArray, NDArray, list]:
        """Return the draws, rows and masks of the sources of one scene.

        Rows ``(source, 9)`` hold the scene, the group in it, x, y, flags, axis ratio, angle and the mask's first pixel.
        """
        image, rms = (values[number].double().numpy() for values in (scene.image, scene.sky_rms))
        detection = (detect_cold_hot if self.pairs else _detect_everywhere)(_combined(image, rms), 1.0)
        bands = zip(image, rms.tolist(), scene.exposure[number].tolist(), strict=True)
        measured = [kron_flux(pixels, detection, sky, exposure=depth) for pixels, sky, depth in bands]
        at, chosen = np.stack([detection.x, detection.y], axis=-1), np.arange(len(detection))
        if given is not None:
            place, at = at, given[1:, given[0] == number].T
            chosen = match_positions(place, at, radius=REACH)
        # A last row, at index -1, stands for what was not detected.
        none = np.full((1, len(rms)), np.nan)
        flux, error = (np.append(np.stack(values, -1), none, 0)[chosen] for values in zip(*measured, strict=True))
        draws = flux + error * np.random.default_rng([seed, number]).normal(size=(self.draws, *flux.shape))
        touching = ndimage.label(detection.segmentation > 0, TOUCHING)[0]
        touching = ndimage.maximum(touching, detection.segmentation, detection.label)
        known = np.stack([touching, detection.semi_minor / detection.semi_major, detection.angle], -1)
        group, *axes = np.append(known, none[:, :1].repeat(3, 1), 0)[chosen].T
        group = np.where(chosen < 0, -1 - np.arange(len(at)), group)
        flags = np.where(chosen < 0, int(Flag.NOT_DETECTED), 0)
        # The cutout of what was not detected is one empty pixel at its position.
        middle = np.rint(at).clip(0, np.subtract(detection.segmentation.shape[::-1], 1)).astype(int)
        pixels, found = [np.s_[y : y + 1, x : x + 1] for x, y in middle], ndimage.find_objects(detection.segmentation)
        boxes = [pixel if index < 0 else found[index] for index, pixel in zip(chosen, pixels, strict=True)]
        corner = np.array([(y.start, x.start) for y, x in boxes]).reshape(-1, 2)
        own = np.where(chosen < 0, -1, chosen + 1)
        masks = [(detection.segmentation[box] == n).astype(np.float32) for box, n in zip(boxes, own, strict=True)]
        rows = np.column_stack([np.full(len(at), number), group, at, flags, *axes, corner])
        return draws, rows, masks


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
