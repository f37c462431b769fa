"""What the cards of FITS headers say of an image: its world coordinates, unit, zero point and gain."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area

__all__ = ["PIXEL_SCALE_CARDS", "celestial", "flux_unit", "number_of", "stated_gain", "stated_zero_point", "unit_of"]

ZERO_POINT_CARDS = ("ABMAGZP", "MAGZERO", "MAGZPT", "ZEROPOINT")
PIXEL_SCALE_CARDS = ("PIXSCALE", "PIXSCL", "PIXSCAL")
SIP_CARD = re.compile(r"(A|B|AP|BP)_(ORDER|DMAX|\d+_\d+)")
SCALE_CARD = re.compile(r"(CDELT|CD\d_|PC\d_)\d[A-Z]?")
PIXEL_SCALES, FULL_TURN = (1e-6, 1e5), 360.0  # arcsec, degrees
WCS_CARD = re.compile(r"(WCSAXES|(CRPIX|CRVAL|CDELT|CROTA)\d+|(CD|PC)\d+_\d+)[A-Z]?")
MOST_AXES = 9  # of world coordinates; wcslib allocates the square of what a header claims


def flux_unit(unit: str, pixel_scale: float) -> tuple[str, float, float | None]:
    """Return the unit of fluxes in an image, the factor from sums of pixels to it, and its AB magnitude or None.

    Surface brightness is multiplied by the solid angle of a pixel of `pixel_scale` arcsec. The factor is NaN where
    that is NaN, and for units that are not linear in flux or are per beam.
    """
    flux, factor = u.Unit(unit, parse_strict="silent"), 1.0
    bases = getattr(flux, "function_unit", flux).decompose().bases
    if u.dex in bases or u.beam in bases:
        return unit, math.nan, None
    if u.pix in bases:  # per pixel is per sum of pixels
        unit = (flux := flux * u.pix).to_string()
    if u.rad in bases:
        brightness = flux
        flux = min((flux * angle for angle in (u.sr, u.arcsec**2, u.deg**2)), key=lambda one: len(one.bases))
        flux = u.uJy if flux.is_equivalent(u.Jy) else flux
        unit, factor = flux.to_string(), (brightness * u.arcsec**2).to(flux) * pixel_scale**2
    if not flux.is_equivalent(u.AB, maggies := u.zero_point_flux(1 * u.AB)):
        return unit, factor, None
    return unit, factor, -2.5 * math.log10(flux.to(u.AB, equivalencies=maggies))


def number_of(
    path: str | PathLike[str], header: fits.Header, card: str, notes: list[str] | None = None
) -> float | None:
    """Return the number that a card holds, or None without the card; refuse or note what is none."""
    if card not in header:
        return None
    try:
        value = header[card]
    except VerifyError:
        value = header.cards[card].image.partition("=")[2].strip(" '")
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if known and (value > 0 or WCS_CARD.fullmatch(card)):
        return float(value)
    wrong = f"{path}: {card} must be a {'' if WCS_CARD.fullmatch(card) else 'positive '}number, got {value!r}"
    if notes is None:
        raise ValueError(wrong)
    notes.append(f"{wrong}, so it is not used")
    return None


def celestial(path: str | PathLike[str], header: fits.Header, hdus: fits.HDUList, notes: list[str]) -> WCS | None:
    """Return the world coordinates of an image on the sky; note those that cannot be used."""
    header = header.copy()
    for card in filter(WCS_CARD.fullmatch, header):
        value = number_of(path, header, card)
        axes = f"{value:.0f}" if card.startswith("WCSAXES") else card
        if max(map(int, re.findall(r"\d+", axes))) > MOST_AXES:
            raise ValueError(f"{path}: {card} must be of at most {MOST_AXES} axes, got {value:g}")
    if not str(header.get("CTYPE1", "")).strip().endswith("-SIP"):
        for card in [name for name in header if SIP_CARD.fullmatch(name)]:
            del header[card]
    if not any(str(header.get(card, "")).strip() for card in ("CTYPE1", "CTYPE2")):
        return None
    missing = [card for card in ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2") if card not in header]
    missing += [] if any(map(SCALE_CARD.fullmatch, header)) else ["CDELT1", "CDELT2"]
    wrong = f"without {', '.join(missing)}" if missing else "without a pair of celestial axes"
    try:
        wcs, (low, high) = WCS(header, fobj=hdus, naxis=2), PIXEL_SCALES
        if wcs.has_celestial and not missing:
            if low < 3600 * np.sqrt(proj_plane_pixel_area(wcs)) < high and (abs(wcs.wcs.crval) <= FULL_TURN).all():
                return wcs
            wrong = f"with CRVAL beyond a full turn or pixels that are not {low:g} to {high:g} arcsec wide"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        wrong = f"that have no meaning ({' '.join(str(error).split()).rpartition(': ')[2].rstrip('.')})"
    notes.append(f"{path}: world coordinates {wrong} are not used")
    return None


def unit_of(header: fits.Header) -> str:
    """Return the unit of an image, in astropy's spelling if astropy knows it."""
    raw = str(header.get("BUNIT") or "").strip()
    spelled = re.sub(r"\b(electron|count|photon)s\b", r"\1", raw.lower())
    spelled = re.sub(r"\bsec(onds?)?\b", "s", re.sub(r"\be-", "electron", spelled))
    for candidate in (raw, spelled):
        unit = u.Unit(candidate, parse_strict="silent")
        if not isinstance(unit, u.UnrecognizedUnit):
            return unit.to_string()
    return raw


def stated_zero_point(
    path: str | PathLike[str], headers: Iterable[Mapping[str, object]], unit: str, notes: list[str]
) -> float | None:
    """Return the zero point that cards of the first header with one state, or None; note what is no number."""
    for header in headers:
        cards = (*ZERO_POINT_CARDS, "PHOTFLAM", "PHOTPLAM")
        *stated, flam, plam = (number_of(path, header, card, notes) for card in cards)
        if unit in ("electron / s", "ct / s") and flam and plam:
            stated.append(-2.5 * math.log10(flam) - 5 * math.log10(plam) - 2.408)
        if any(stated):
            return next(filter(None, stated))
    return None


def stated_gain(path: str | PathLike[str], headers: Sequence[Mapping[str, object]], unit: str) -> float | None:
    """Return the counts per unit of an image that EXPTIME and GAIN state, or None."""
    values = ([number_of(path, header, card, []) for header in headers] for card in ("EXPTIME", "GAIN"))
    exposure, gain = (next(filter(None, value), None) for value in values)
    counts, _, rate = unit.partition(" / ")
    per_count = {"electron": 1.0, "ph": 1.0, "ct": gain, "adu": gain, "DN": gain}.get(counts)
    time = {"": 1.0, "s": exposure}.get(rate)
    return per_count * time if per_count and time else None
