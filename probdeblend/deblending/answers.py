"""What the network answers for the sources of an image, as columns, flags and cutouts of a posterior."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from ..networks.dropout import GroupDraws
from ..networks.scenes import SHAPES
from ..posterior.cutouts import Cutouts
from ..posterior.flags import Flag
from ..scene import SOURCE_TYPES
from .tiles import Reading, Window

__all__ = ["Answers", "ImageDescription", "columns_of", "cutouts_of", "flags_of"]

STUDENT_T = math.sqrt(5 / 3)  # standard deviation of the shapes' Student-t over its scale
LARGEST_GROUP = 16
EDGE = 3.0  # pixels from the edge of the image within which a center is flagged
BAD_RADIUS = 4.0  # pixels around a center where a bad pixel raises a flag


@dataclass(frozen=True)
class ImageDescription:
    """What the catalog states of the image."""

    bands: tuple[str, ...]
    sky_rms: NDArray[np.float64]
    pixel_scale: float
    shape: tuple[int, int]
    zero_point: tuple[float, ...] = ()
    unit: str = ""
    wcs: WCS | None = None


@dataclass(eq=False)
class Answers:
    """The network's answers for the sources of an image."""

    group: NDArray[np.int64]
    log_flux: NDArray[np.float32]
    shape: NDArray[np.float64]
    shape_width: NDArray[np.float64]
    kind: NDArray[np.float64]
    existence: NDArray[np.float64]

    @classmethod
    def empty(cls, sources: int, bands: int, *, chains: int, draws: int) -> Answers:
        """Return answers to be filled in."""
        return cls(
            group=np.zeros(sources, dtype=np.int64),
            log_flux=np.zeros((chains, draws, sources, bands, 2), dtype=np.float32),
            shape=np.zeros((sources, len(SHAPES))),
            shape_width=np.zeros((sources, len(SHAPES))),
            kind=np.zeros((sources, len(SOURCE_TYPES))),
            existence=np.zeros(sources),
        )

    def put(self, member: NDArray[np.int64], drawn: GroupDraws) -> None:
        """Put draws of groups ``(group, source)`` in the places of their sources."""
        self.log_flux[:, :, member] = drawn.log_flux.numpy()
        for name in ("shape", "shape_width", "kind", "existence"):
            getattr(self, name)[member] = getattr(drawn, name).double().numpy()


def columns_of(readings: list[Reading], answers: list[Answers], pixel_scale: float) -> dict[str, NDArray]:
    """Columns of the catalog that the heads answer."""
    shape = dict(zip(SHAPES, np.concatenate([a.shape for a in answers]).T, strict=True))
    width = dict(zip(SHAPES, STUDENT_T * np.concatenate([a.shape_width for a in answers]).T, strict=True))
    radius, index = (np.exp(shape[name]) for name in ("ln_radius", "ln_index"))
    ellipticity = np.hypot(shape["e1"], shape["e2"]).clip(1e-3, 0.95)
    spread = np.hypot(width["e1"], width["e2"]) / math.sqrt(2)
    kind = np.concatenate([a.kind for a in answers])
    return {
        "dx": shape["dx"],
        "dy": shape["dy"],
        "x_err": width["dx"],
        "y_err": width["dy"],
        "half_light_radius": radius * pixel_scale,
        "half_light_radius_err": radius * width["ln_radius"] * pixel_scale,
        "axis_ratio": (1 - ellipticity) / (1 + ellipticity),
        "axis_ratio_err": 2 * spread / (1 + ellipticity) ** 2,
        "angle": 0.5 * np.arctan2(shape["e2"], shape["e1"]) % math.pi,
        "angle_err": np.minimum(0.5 * spread / ellipticity, math.pi / math.sqrt(12)),
        "sersic_index": index,
        "sersic_index_err": index * width["ln_index"],
        "existence": np.concatenate([a.existence for a in answers]),
        "kind_probability": kind,
        "star": kind[:, SOURCE_TYPES.index("star")],
        "contested": np.concatenate([r.contested for r in readings]),
    }


def cutouts_of(readings: list[Reading], windows: list[Window], described: ImageDescription) -> Cutouts:
    """Masks and deblended images: the share of each source times the pixels."""
    corner, masks, images = [], [], []
    scale = iter(described.sky_rms)
    for reading, window in zip(readings, windows, strict=True):
        for cut in reading.cuts:
            rows, columns = (slice(c, c + n) for c, n in zip(cut.corner, cut.mask.shape, strict=True))
            pixels = window(rows, columns)[0].cpu().numpy()
            corner.append(cut.corner)
            masks.append(cut.mask)
            images.append((cut.share * pixels * next(scale)[:, None, None]).astype(np.float32))
    return Cutouts(
        corner=np.array(corner, dtype=np.int64).reshape(-1, 2), mask=masks, image=images, shape=described.shape
    )


def _near_bad(window: Window, shape: tuple[int, int], x: float, y: float) -> bool:
    """Whether a bad pixel lies near a center."""
    half = int(BAD_RADIUS)
    rows = slice(max(round(y) - half, 0), min(round(y) + half + 1, shape[0]))
    columns = slice(max(round(x) - half, 0), min(round(x) + half + 1, shape[1]))
    return not bool(window(rows, columns)[1].all())


def flags_of(
    readings: list[Reading], answers: list[Answers], windows: list[Window], shape: tuple[int, int], *, brightest: float
) -> NDArray[np.int64]:
    """Return the flags of the sources of several images of one shape; `brightest` is the largest usual ln flux."""
    flags = []
    for reading, answer, window in zip(readings, answers, windows, strict=True):
        x, y = reading.x, reading.y
        edge = np.minimum(np.minimum(x, shape[1] - 1 - x), np.minimum(y, shape[0] - 1 - y)) < EDGE
        bad = np.array([_near_bad(window, shape, *place) for place in zip(x, y, strict=True)], dtype=bool)
        bright = reading.anchor.amax(-1).cpu().numpy() > brightest if len(reading) else np.zeros(0, dtype=bool)
        large = np.bincount(answer.group, minlength=1)[answer.group] >= LARGEST_GROUP
        raised = {
            Flag.EDGE: edge,
            Flag.BAD_PIXELS: bad,
            Flag.UNLISTED: reading.unlisted,
            Flag.DOUBTFUL: answer.existence < 0.5,
            Flag.BRIGHT: bright,
            Flag.LARGE_GROUP: large,
        }
        flags.append(sum(int(flag) * where.astype(np.int64) for flag, where in raised.items()))
    return np.concatenate(flags)
