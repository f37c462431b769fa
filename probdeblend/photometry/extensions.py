"""Noise and data quality of an image in other extensions of its file."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from os import PathLike

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata.bitmask import bitfield_to_boolean_mask, extend_bit_flag_map, interpret_bit_flags
from numpy.typing import NDArray

__all__ = ["EXTENSIONS", "Parts", "bad_bits", "choose", "companion", "deviations", "flagged"]

EXTENSIONS = {
    "SCI": ("SCI",),
    "ERR": ("ERR", "RMS", "VAR", "VARIANCE", "IVAR", "INVVAR", "UNCERT"),
    "DQ": ("DQ", "MASK"),
}
"""Names of extensions with an image, its noise and its data quality, in the order in which they are looked for."""

ACCOMPANYING = {*EXTENSIONS["ERR"], *EXTENSIONS["DQ"], "PSFIMAGE"}

POWERS = {
    **dict.fromkeys(("VAR", "VARIANCE", "VARIANCEUNCERTAINTY"), 0.5),
    **dict.fromkeys(("IVAR", "INVVAR", "INVERSEVARIANCE", "WHT", "WGT", "WEIGHT"), -0.5),
}
"""What a variance, inverse variance or weight is raised to for the standard deviation, by its EXTNAME or UTYPE."""

# The flags of the JWST pipeline (jwst-pipeline.readthedocs.io, "Data quality flags"), and those of HST as stginga
# names them in dqflags_wfc3.txt and dqflags_acs.txt; from the lowest bit.
FLAGS = {
    "JWST": "DO_NOT_USE SATURATED JUMP_DET DROPOUT OUTLIER PERSISTENCE AD_FLOOR CHARGELOSS UNRELIABLE_ERROR "
    "NON_SCIENCE DEAD HOT WARM LOW_QE RC TELEGRAPH NONLINEAR BAD_REF_PIXEL NO_FLAT_FIELD NO_GAIN_VALUE NO_LIN_CORR "
    "NO_SAT_CHECK UNRELIABLE_BIAS UNRELIABLE_DARK UNRELIABLE_SLOPE UNRELIABLE_FLAT OPEN ADJ_OPEN UNRELIABLE_RESET "
    "MSA_FAILED_OPEN OTHER_BAD_PIXEL REFERENCE_PIXEL",
    "WFC3": "LOST FILLED BADPIX MASKED HOT CTE WARM BADBIAS SATURATED BADREF TRAP ATODSAT CRDRIZ CRREJ CRMAX USER",
    "ACS": "LOST FILLED BADPIX MASKED HOT UNSTABLE WARM BADCOL SATURATED BADREF TRAP ATODSAT CRDRIZ CRREJ USER UNUSED",
}
# Bits that make a pixel bad: those of jwst.resample, and all but those that drizzlepac's pipeline accepts (final_bits),
# hot and warm pixels and the blobs of WFC3/IR; saturated pixels are bad here.
BAD = {"JWST": 1 | 512, "WFC3 IR": ~(16 | 512), "WFC3": ~(16 | 64), "ACS": ~(16 | 64)}


@dataclass(frozen=True, eq=False)
class Parts:
    """Pixels ``(y, x)`` that are read part by part."""

    shape: tuple[int, ...]
    read: Callable[[tuple[slice, ...]], NDArray]
    name: str = ""
    ndim = 2

    def __getitem__(self, part: tuple[slice, ...]) -> NDArray:
        return self.read(part)

    @property
    def dtype(self) -> np.dtype:
        """Type of the pixels."""
        return self[:1, :1].dtype


def choose(path: str | PathLike[str], hdus: fits.HDUList, hdu: int | str | None, kind: str) -> fits.ImageHDU:
    """Return the HDU with that number or name, or the only one that holds an image or is named as its kind is."""
    images = {n: item for n, item in enumerate(hdus) if item.is_image and item.header.get("NAXIS", 0) >= 2}
    if not images:
        raise ValueError(f"{path}: no HDU holds an image")
    name, _, version = str(hdu).upper().replace(" ", "").partition(",")
    names = EXTENSIONS[kind] if hdu is None else (name,)
    named = [n for n, item in images.items() if item.name.upper() in names and version in ("", str(item.ver))]
    if hdu is None and kind == "SCI":  # or all others go along with it, as in the files of CCDData
        named = named or [n for n, item in images.items() if item.name not in ACCOMPANYING]
    chosen = [int(name)] if name.isdecimal() and int(name) in images else named
    if hdu is None and len(images) == 1:
        chosen = list(images)
    if len(chosen) == 1:
        return images[chosen[0]]
    sizes = ((n, item, " x ".join(map(str, item.shape[::-1]))) for n, item in images.items())
    described = "; ".join(f"{n} or {item.name},{item.ver} ({size})" for n, item, size in sizes)
    raise ValueError(f"{path}: hdu must be one of {described}, got {hdu}")


def companion(hdus: fits.HDUList, chosen: fits.ImageHDU, kind: str) -> fits.ImageHDU | None:
    """Return the HDU of a kind that has the version and the shape of the image that is chosen, or None."""
    alike = [item for item in hdus if item.is_image and item.shape == chosen.shape and item.ver == chosen.ver]
    found = (item for name in EXTENSIONS[kind] for item in alike if item.name == name and item is not chosen)
    return next(found, None)


def deviations(
    name: str, header: fits.Header, own: str, unit: str, notes: list[str]
) -> Callable[[NDArray], NDArray[np.float64]]:
    """Return what turns the pixels of an extension in a unit of its own into standard deviations in another unit.

    By its name, an extension is a variance, an inverse variance or weight, or else a standard deviation already.
    """
    kind = str(header.get("UTYPE", header.get("EXTNAME", ""))).upper()
    power, factor = POWERS.get(kind, 1.0), 1.0
    if unit and own not in ("", unit):
        try:
            factor = (u.Unit(own, parse_strict="silent") ** power).to(u.Unit(unit, parse_strict="silent"))
        except ValueError:
            raise ValueError(f"{name} must be in {unit}, got {own}") from None
    if power != 1:
        notes.append(f"{name} is taken to the power of {power:g}, as {kind} is no standard deviation")
    return lambda values: factor * np.where(values > 0, values, np.nan).astype(np.float64) ** power


def bad_bits(path: str | PathLike[str], headers: Iterable[fits.Header], dq: object) -> tuple[int, str]:
    """Return the bits of a data quality that make a pixel bad, those that a user names or the usual ones, and words."""
    cards = {str(header.get(card)).upper() for header in headers for card in ("TELESCOP", "INSTRUME", "DETECTOR")}
    camera = next((name for name in BAD if cards.issuperset(name.split())), "")
    names = FLAGS[camera.split()[0]].split() if camera else []
    values = {name: 1 << bit for bit, name in enumerate(names)}
    try:
        flags = extend_bit_flag_map("Flags", **values)
        bits = BAD.get(camera, -1) if dq is None else interpret_bit_flags(dq, flag_name_map=flags) or 0
    except (AttributeError, TypeError, ValueError):
        form = " or ".join(["numbers", *filter(None, [", ".join(names)])])
        raise ValueError(f"{path}: dq must list bits as {form}, got {dq!r}") from None
    listed = [bit for bit in range(32) if (~bits if bits < 0 else bits) >> bit & 1]
    words = " or ".join(names[bit] if bit < len(names) else str(1 << bit) for bit in listed)
    return bits, f"any bit{words and ' but '}{words}" if bits < 0 else f"bit {words or 0}"


def flagged(quality: Parts, bits: int) -> Parts:
    """Return where a data quality has one of some bits."""
    return Parts(quality.shape, lambda part: bitfield_to_boolean_mask(quality[part], ignore_flags=~bits))
