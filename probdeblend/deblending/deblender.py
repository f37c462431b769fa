"""A trained scene network: images in, posteriors out."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from itertools import groupby
from operator import itemgetter
from typing import Protocol, Self

import numpy as np
import torch
from astropy.wcs import WCS
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional

from ..networks.dropout import GroupDraws, draw_groups, kept_units
from ..networks.scenes import SHAPES, SceneNetwork
from ..networks.sources import SourceFeatures
from ..posterior.calibrator import Calibrator
from ..posterior.draws import Posterior
from ..scene import SOURCE_TYPES, Scene, check_least, on_cpu
from .answers import distances, familiar, posterior_of
from .inputs import Image, Observation, observe, widened
from .positions import locate
from .psfs import PsfLike
from .tiles import Reading, read_image, source_features

__all__ = ["Deblender", "Deblends", "Description", "Positions"]

FAMILIAR = ("token_mean", "token_whitening", "token_limit")  # mean, whitening matrix and largest usual distance
PROCESS = os.getpid()  # that imported this module
ROWS, ENTRIES = 2**13, 2**23  # pairs of sources, over all passes, and draws of sources that are computed at a time

Positions = tuple[Tensor, Tensor, Tensor]
"""The scene, x and y of flat sources, ordered by scene."""


class Deblends(Protocol):
    """Whatever deblends scenes: a network, SEP, refinement, or a wrapper of one."""

    def scenes(self, scene: Scene, *, positions: Positions | None = None, seed: int = 0) -> Posterior:
        """Deblend the images of scenes, without a look at the truth.

        Parameters
        ----------
        scene
            Images and how they were taken.
        positions
            Scene, x and y of the sources ``(source,)``, ordered by scene; None detects them.
        seed
            Same seed, same draws.

        Returns
        -------
        Posterior
            Fluxes and everything else, one row per source.
        """


@dataclass(frozen=True)
class Description:
    """What a network was built as and trained on, as its weights file states it.

    Parameters
    ----------
    settings
        Of the `SceneNetwork`.
    fwhm
        Narrowest and widest PSF of the training, as the width of a Gaussian of its noise-equivalent area, in pixels.
    brightest
        Largest ln flux over sky rms of the training.
    training
        Numbers and words by name: how it was trained.
    """

    settings: dict[str, int | float | bool] = field(default_factory=dict)
    fwhm: tuple[float, float] = (1.7, 6.0)
    brightest: float = 13.0
    training: dict[str, object] = field(default_factory=dict)

    def describe(self) -> str:
        """Return the description as JSON, to be stored beside the weights."""
        return json.dumps(asdict(self))

    @classmethod
    def parse(cls, text: str) -> Self:
        """Make a description from what `describe` returns."""
        numbers = json.loads(text)
        return cls(dict(numbers["settings"]), tuple(numbers["fwhm"]), numbers["brightest"], dict(numbers["training"]))


class Deblender(nn.Module):
    """A trained scene network: images in, posteriors out.

    Call it with an image; `scenes` is the same for batches of small images. It holds no state of a call, so it may be
    used by several threads, and may be pickled. In a forked process torch is left with one thread.

    Parameters
    ----------
    network
        The trained network.
    description
        What it was built as and trained on.
    tokens
        Features of sources ``(source, feature)`` of the training: sources whose features are farther from their mean
        than those of all but one in a thousand are flagged. None if that is loaded from a file.
    """

    def __init__(self, network: SceneNetwork, description: Description, *, tokens: Tensor | None = None) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.description = description
        self.calibrator: Calibrator | None = None
        for name, value in zip(FAMILIAR, (None,) * 3 if tokens is None else familiar(tokens), strict=True):
            self.register_buffer(name, value)

    def forward(  # noqa: PLR0913
        self,
        image: Image | Sequence[Image],
        *,
        psf: PsfLike | None = None,
        sky_rms: ArrayLike | None = None,
        positions: object = None,
        wcs: WCS | None = None,
        zero_point: float | Sequence[float] | None = None,
        gain: float | Sequence[float] | None = None,
        mask: ArrayLike | None = None,
        dq: str | int | Sequence[str | int] | None = None,
        wavelength: float | Sequence[float] | None = None,
        draws: int = 1000,
        passes: int = 32,
        seed: int = 0,
        calibrate: bool = True,
        tile: int = 512,
        progress: Callable[[int, int], None] | None = None,
    ) -> Posterior:
        """Deblend an image of any size.

        Parameters
        ----------
        image
            Pixels ``(y, x)`` or ``(band, y, x)``: an array or tensor of any type and byte order, a masked array, a
            Quantity, an NDData or CCDData, or the path of a FITS file; several bands also as a list of these. All
            bands are on one grid of pixels and in one unit. Pixels that are masked or not finite, and patches of
            exact zeros, are bad.
        psf
            Effective PSF, which includes the pixel: an array ``(y, x)`` or one per band, a FITS path, a GalSim object
            or a PSF model of photutils or astropy, or the name of a camera ("candels_f160w"). None takes that of
            an NDData, or measures it from stars. Bands whose PSF is narrower than those of the training are smoothed
            for the network.
        sky_rms
            Standard deviation of the sky's pixels in the image's unit, or a Quantity: a number, one per band, a map,
            or a path. None takes the uncertainty of an NDData, or the noise that its file holds, or measures it.
        positions
            Sources to measure: ``(n, 2)`` of x and y in pixels, a table with x and y, x_centroid and y_centroid,
            X_IMAGE and Y_IMAGE (which count from 1), or ra and dec, a SkyCoord, a segmentation map, or a path of such
            a table or map. They keep their order, and the labels of a column label, id, number, source_id, object_id,
            objid or name; what is no positive number there becomes a column id of the catalog. Sources outside of the
            image are left out, which is noted. None detects sources.
        wcs
            World coordinates; None takes those of the image.
        zero_point
            AB magnitude of unit flux, for all bands or each; None takes that of the unit, if it is one of flux density
            or surface brightness, or of a file's header.
        gain
            Counts per unit of the image, or a Quantity, for photon noise.
        mask
            Bad pixels ``(y, x)`` or ``(band, y, x)``, or the path of an image that is not zero there.
        dq
            Bits that make a pixel bad in the extension DQ of an image's file: "DO_NOT_USE,SATURATED", "4096", or
            "~64,32" for all but these, as `astropy.nddata.bitmask.interpret_bit_flags` reads them. None takes the usual
            ones of JWST, WFC3 and ACS, and any bit of others.
        wavelength
            Wavelength of the bands in micron, or a Quantity.
        draws
            Number of draws, rounded up to a multiple of `passes`.
        passes
            Number of dropout passes; 0 for none.
        seed
            Same seed, same draws.
        calibrate
            Whether the calibrator of the weights, if they have one, corrects the posterior.
        tile
            Pixels on a side of the tiles that a large image is read in, which does not change the result.
        progress
            Called with the number of tiles that are done, and of all.

        Returns
        -------
        Posterior
            Fluxes in the image's unit, masks, deblended images, positions, shapes and flags, one row per source.

        Raises
        ------
        ValueError
            If bands, noise or mask do not fit the image, a PSF is needed, or it is too narrow or too wide for the
            training; if no position is inside the image, or one is not finite or given twice.
        TypeError
            If the image is not an array of numbers.
        FileNotFoundError
            If a path does not exist.
        """
        known = {"psf": psf, "sky_rms": sky_rms, "wcs": wcs, "zero_point": zero_point, "gain": gain}
        with self._usual(draws), observe(image, **known, mask=mask, dq=dq, wavelength=wavelength) as opened:
            seen = widened(opened, self.description.fwhm)
            given = label = order = name = None
            if positions is not None:
                x, y, label, name = locate(positions, seen.shape, seen.wcs, seen.notes)
                order = np.lexsort((x, y))  # so that the draws do not depend on the order of the list
                given, label = (x[order], y[order]), label[order]
            kept = kept_units(self.network.drop.p, passes, seed).query
            reading = read_image(self.network, seen, positions=given, kept=kept, tile=tile, progress=progress)
            answers = self._answers([reading], draws=draws, passes=passes, seed=seed)
            posterior = self._posterior([seen], [reading], answers, calibrate=calibrate, label=label, order=order)
            if name is not None:
                posterior.dataset.coords["id"] = ("source", name)
            return posterior

    def scenes(
        self,
        scene: Scene,
        *,
        positions: Positions | None = None,
        seed: int = 0,
        draws: int = 1000,
        passes: int = 32,
        calibrate: bool = True,
    ) -> Posterior:
        """Deblend the images of scenes, without a look at the truth.

        Parameters
        ----------
        scene
            Images and how they were taken.
        positions
            Scene, x and y of the sources ``(source,)``, ordered by scene; None detects them.
        seed
            Same seed, same draws, whatever else is in the batch.
        draws, passes, calibrate
            As for a call.

        Returns
        -------
        Posterior
            Fluxes and everything else, one row per source.
        """
        order, given = None, [None] * len(scene)
        if positions is not None:
            number, x, y = (value.double().cpu().numpy() for value in positions)
            order = np.lexsort((x, y, number))
            parts = np.split(order, np.searchsorted(number[order], np.arange(1, len(scene))))
            given = [(x[part], y[part]) for part in parts]
        label = None if order is None else order + 1
        with self._usual(draws):
            seen = [widened(image, self.description.fwhm) for image in _observations(scene)]
            kept = kept_units(self.network.drop.p, passes, seed).query
            readings = [read_image(self.network, *pair, kept=kept) for pair in zip(seen, given, strict=True)]
            answers = self._answers(readings, draws=draws, passes=passes, seed=seed)
            return self._posterior(seen, readings, answers, calibrate=calibrate, label=label, order=order)

    def _answers(self, readings: Sequence[Reading], *, draws: int, passes: int, seed: int) -> GroupDraws:
        """Answer for all sources of images, as arrays; random numbers go with the number of a group's first one."""
        chains, bands, first = max(passes, 1), readings[0].anchor.shape[1], np.cumsum([0, *map(len, readings)])
        log_flux = np.zeros((chains, math.ceil(draws / chains), first[-1], bands, 2), dtype=np.float32)
        others = ((len(SHAPES),), (len(SHAPES),), (len(SOURCE_TYPES),), ())
        answers = GroupDraws(log_flux, *(np.zeros((first[-1], *row)) for row in others))
        groups = [(number, members) for number, reading in enumerate(readings) for members in reading.groups]
        for size in {len(members) for _, members in groups}:
            alike = [(number, members) for number, members in groups if len(members) == size]
            chunk = max(1, min(ROWS // (chains * size), ENTRIES // draws) // (size * bands))
            for part in (alike[start : start + chunk] for start in range(0, len(alike), chunk)):
                parts = [source_features(readings[n], [m for _, m in own]) for n, own in groupby(part, itemgetter(0))]
                features = SourceFeatures(*(torch.cat(values).to(self._device) for values in zip(*parts, strict=True)))
                index = [(row, list(range(size))) for row in range(len(part))]
                keys = [members[0] for _, members in part]
                drawn = draw_groups(self.network, features, index, keys=keys, draws=draws, passes=passes, seed=seed)
                place = np.array([first[number] + members for number, members in part])
                log_flux[:, :, place] = drawn.log_flux
                for kept, values in zip(answers[1:], drawn[1:], strict=True):
                    kept[place] = values
        return answers

    def _posterior(
        self,
        seen: Sequence[Observation],
        readings: Sequence[Reading],
        answers: GroupDraws,
        *,
        calibrate: bool,
        label: NDArray[np.int64] | None,
        order: NDArray[np.int64] | None,
    ) -> Posterior:
        """Put the answers together, in the order of the list where `order` says what they are read in."""
        token = torch.cat([reading.token for reading in readings])
        anomaly = np.full(len(token), math.nan)
        if self.token_mean is not None:  # distance from the features of the training, over the largest usual one
            anomaly = distances(token, self.token_mean.cpu(), self.token_whitening.cpu())
            anomaly /= max(float(self.token_limit), 1e-9)
        brightest = self.description.brightest
        posterior = posterior_of(seen, readings, answers, anomaly=anomaly, brightest=brightest, label=label)
        posterior.dataset.attrs["notes"] = "; ".join(dict.fromkeys(note for image in seen for note in image.notes))
        posterior.dataset.attrs["positions"] = "detected" if label is None else "given"
        if calibrate and self.calibrator is not None:
            posterior = self.calibrator(posterior)
        return posterior if order is None else posterior.select(np.argsort(order))

    @contextmanager
    def _usual(self, draws: int) -> Iterator[None]:
        """Keep the user's default device, mixed precision and error state outside."""
        check_least(1, draws=draws)
        if (precision := self.network.trunk.gate.weight.dtype) != torch.float32:
            raise TypeError(f"the weights must be in single precision, as .float() brings them, got {precision}")
        if os.getpid() != PROCESS:
            torch.set_num_threads(1)  # torch would wait forever for its threads, which a fork does not copy
        off = [torch.autocast(kind, enabled=False) for kind in {"cpu", self._device.type}]
        with on_cpu(), off[0], off[-1], np.errstate(all="ignore"):
            yield

    def train(self, mode: bool = True) -> Self:
        """Stay as it is: dropout is a matter of the `passes` of a call.

        Parameters
        ----------
        mode
            Does not count.

        Returns
        -------
        Deblender
            Itself.
        """
        return super().train(False)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def use(self, calibrator: Calibrator) -> None:
        """Correct posteriors with a calibrator from now on.

        Parameters
        ----------
        calibrator
            Fitted on posteriors of these weights.
        """
        self.calibrator = calibrator

    @cached_property
    def digest(self) -> str:
        """Digest of the network's weights, in hexadecimal digits."""
        names = hashlib.sha256()
        for name, value in sorted(self.network.state_dict().items()):
            names.update(name.encode())
            names.update(value.detach().cpu().contiguous().numpy().tobytes())
        return names.hexdigest()[:16]


def _observations(scene: Scene) -> list[Observation]:
    """Return the images of scenes, each as an image of its own."""
    bands, photon = scene.image.shape[1], scene.photon.float()
    ratio, levels = scene.image / scene.sky_rms[..., None, None], scene.sky_rms.double().cpu().numpy()
    return [
        Observation(
            shape=tuple(ratio.shape[-2:]),
            psf=scene.psf[number].float(),
            noise_kernel=scene.noise_kernel[number].float(),
            photon=photon[number],
            wavelength=scene.wavelength[number],
            window=window,
            sky_rms=lambda x, _, level=levels[number]: np.repeat(level[None], len(x), 0),
            bands=tuple(map(str, range(bands))) if bands > 1 else ("",),
            pixel_scale=scene.pixel_scale,
            zero_point=scene.zero_point,
        )
        for number, window in enumerate(partial(_cut, pixels.float()) for pixels in ratio)
    ]


def _cut(ratio: Tensor, rows: slice, columns: slice) -> tuple[Tensor, Tensor]:
    """Cut a window out of pixels over sky noise ``(band, y, x)``."""
    sides = zip((columns, rows), ratio.shape[:-3:-1], strict=True)
    beyond = [n for side, size in sides for n in (-side.start, side.stop - size)]  # what is negative is cut off
    ratio = functional.pad(ratio, beyond, value=math.nan)
    return ratio.nan_to_num(0.0, 0.0, 0.0), ratio.isfinite().float()
