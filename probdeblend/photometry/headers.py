"""What FITS headers say of an image: world coordinates, unit, zero point and gain, and which extensions go along."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.io.fits.verify import VerifyError
from astropy.nddata.bitmask import bitfield_to_boolean_mask, extend_bit_flag_map, interpret_bit_flags
from astropy.wcs import WCS
from astropy.wcs.utils import proj_plane_pixel_area
from numpy.typing import NDArray

__all__ = ["Parts", "choose", "companions", "described", "deviations", "flux_unit", "gain", "number_of", "zero_point"]

ZERO_POINT_CARDS = ("ABMAGZP", "MAGZERO", "MAGZPT", "ZEROPOINT")
SIP_CARD = re.compile(r"(A|B|AP|BP)_(ORDER|DMAX|\d+_\d+)")
SCALE_CARD = re.compile(r"(CDELT|CD\d_|PC\d_)\d[A-Z]?")
SCALES, FULL_TURN = (1e-6, 1e5), 360.0  # arcsec per pixel, degrees
WCS_CARD = re.compile(r"(WCSAXES|(CRPIX|CRVAL|CDELT|CROTA)\d+|(CD|PC)\d+_\d+)[A-Z]?")
ZERO_POINT_TOLERANCE = 0.02  # mag
MOST_AXES = 9  # of world coordinates; wcslib allocates the square of what a header claims

EXTENSIONS = {"SCI": ("SCI",), "ERR": ("ERR", "RMS", "VAR", "VARIANCE", "IVAR", "UNCERT"), "DQ": ("DQ", "MASK")}
"""Names of extensions with an image, its noise and its data quality, in the order in which they are looked for."""

ACCOMPANYING = {*EXTENSIONS["ERR"], *EXTENSIONS["DQ"], "PSFIMAGE"}

SHOWN = 8  # HDUs in an error
VARIANCES, WEIGHTS = ("VAR", "VARIANCE", "VARIANCEUNCERTAINTY"), ("IVAR", "INVERSEVARIANCE", "WHT", "WGT", "WEIGHT")
POWERS = dict.fromkeys(VARIANCES, 0.5) | dict.fromkeys(WEIGHTS, -0.5)
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
    name: str
    dtype: np.dtype
    ndim = 2

    def __getitem__(self, part: tuple[slice, ...]) -> NDArray:
        return self.read(part)


def choose(path: object, hdus: fits.HDUList, hdu: int | str | None, kind: str) -> fits.ImageHDU:
    """Return the HDU with that number or name, or the only one that holds an image or has a name of that kind."""
    images = {n: item for n, item in enumerate(hdus) if item.is_image and item.header.get("NAXIS", 0) >= 2}
    if not images:
        raise ValueError(f"{path}: no HDU holds an image")
    name, _, version = str(hdu).upper().replace(" ", "").partition(",")
    named = [n for n, item in images.items() if name == item.name.upper() and version in ("", str(item.ver))]
    chosen = list(images) if hdu is None else [int(name)] if name.isdecimal() and int(name) in images else named
    if hdu is None and len(images) > 1:
        chosen = [n for n in images if images[n].name in EXTENSIONS[kind]]
        chosen = chosen or [n for n in images if kind == "SCI" and images[n].name not in ACCOMPANYING]
    if len(chosen) == 1:
        return images[chosen[0]]
    sizes = ((n, item, " x ".join(map(str, item.shape[::-1]))) for n, item in images.items())
    names = [f"{n} or {item.name},{item.ver} ({size})" if item.name else f"{n} ({size})" for n, item, size in sizes]
    described = "; ".join([*names[:SHOWN], *([f"{len(names) - SHOWN} more"] if len(names) > SHOWN else [])])
    raise ValueError(f"{path}: hdu must be one of {described}, got {hdu}; write '{path}[{next(iter(images))}]'")


def deviations(name: str, header: fits.Header, unit: str, notes: list[str]) -> Callable[[NDArray], NDArray]:
    """Return what turns the pixels of an extension into standard deviations in a unit.

    By its name, an extension is a variance, an inverse variance or weight, or else a standard deviation already.
    """
    kind = str(header.get("UTYPE", header.get("EXTNAME", ""))).upper()
    power, factor, own = POWERS.get(kind, 1.0), 1.0, _unit(header)
    if unit and own not in ("", unit):
        try:
            factor = (u.Unit(own, parse_strict="silent") ** power).to(u.Unit(unit, parse_strict="silent"))
        except ValueError:
            raise ValueError(f"{name} must be in {unit}, got {own}") from None
    if power != 1:
        notes.append(f"{name} is taken to the power of {power:g}, as {kind} is no standard deviation")
    return lambda values: factor * np.where(values > 0, values, np.nan).astype(np.float64) ** power


def companions(
    path: object, hdus: fits.HDUList, chosen: fits.ImageHDU, parts: Callable, dq: object, notes: list[str]
) -> dict[str, Parts]:
    """Return the pixels of an image, masked where they are bad, and its noise, from the extensions of its file."""
    alike = [item for item in hdus if item.is_image and (item.shape, item.ver) == (chosen.shape, chosen.ver)]
    others = {item.name: item for item in reversed(alike) if item is not chosen}
    noise, quality = (next(filter(None, map(others.get, EXTENSIONS[kind])), None) for kind in ("ERR", "DQ"))
    pixels = parts(chosen)
    found = {"data": pixels}
    if noise is not None:
        values = parts(noise)
        try:
            turned = deviations(values.name, noise.header, _unit(chosen.header), notes)
            found["noise"] = replace(values, read=lambda part: turned(values[part]))
        except ValueError as error:
            notes.append(f"{error}, so it is not used")
    longest = 8 if dq is None and quality is not None and quality.name == "MASK" else 64
    if quality is not None and 0 < quality.header["BITPIX"] <= longest:
        flags, (bits, words) = parts(quality), _bad_bits(path, [chosen.header, hdus[0].header], dq)
        notes.append(f"pixels are bad where {flags.name} has {words}")
        bad = partial(bitfield_to_boolean_mask, ignore_flags=~bits)
        found["data"] = replace(pixels, read=lambda part: np.ma.array(pixels[part], mask=bad(flags[part])))
    elif dq is not None:
        raise ValueError(f"{path}: dq must be left out for an image without an extension DQ, got {dq!r}")
    elif quality is not None:  # bits of longer masks may mean that there are sources
        notes.append(f"{parts(quality).name} is not used, as what it holds is not known")
    return found


def _bad_bits(path: object, headers: Sequence[fits.Header], dq: object) -> tuple[int, str]:
    """Return the bits of a data quality that make a pixel bad, those that a user names or the usual ones, and words."""
    cards = {str(header.get(card)).upper() for header in headers for card in ("TELESCOP", "INSTRUME", "DETECTOR")}
    camera = next((name for name in BAD if cards.issuperset(name.split())), "")
    names = FLAGS[camera.split()[0]].split() if camera else []
    flags = extend_bit_flag_map("Flags", **{name: 1 << bit for bit, name in enumerate(names)})
    try:
        bits = BAD.get(camera, -1) if dq is None else interpret_bit_flags(dq, flag_name_map=flags) or 0
    except (AttributeError, TypeError, ValueError):
        form = " or ".join(["numbers", *filter(None, [", ".join(names)])])
        raise ValueError(f"{path}: dq must list bits as {form}, got {dq!r}") from None
    listed = [bit for bit in range(32) if (~bits if bits < 0 else bits) >> bit & 1]
    words = " or ".join(names[bit] if bit < len(names) else str(1 << bit) for bit in listed)
    return bits, f"any bit{words and ' but '}{words}" if bits < 0 else f"bit {words or 0}"


def described(path: object, hdus: fits.HDUList, chosen: fits.ImageHDU, notes: list[str]) -> dict[str, object]:
    """Return what the headers of an image and of its file say of it."""
    headers = [hdu.header for hdu in hdus if hdu in (chosen, hdus[0])]
    wcs, unit = _celestial(path, chosen.header, hdus, notes), _unit(chosen.header)
    scale = None if wcs is None else 3600 * float(np.sqrt(proj_plane_pixel_area(wcs)))
    magnitude = next(filter(None, (zero_point(path, header, unit, notes) for header in headers)), None)
    _, factor, fixed = flux_unit(unit, scale or math.nan)
    if fixed is not None and not math.isnan(factor):
        fixed += -2.5 * math.log10(factor)
        if magnitude is not None and abs(magnitude - fixed) > ZERO_POINT_TOLERANCE:
            notes.append(f"{path}: the zero point {magnitude:g} is not used, as the unit {unit} has {fixed:.4g}")
        magnitude = fixed
    known = {"wcs": wcs, "pixel_scale": scale, "zero_point": magnitude, "unit": unit}
    return known | {"gain": gain(headers, unit)}


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


def number_of(name: object, header: fits.Header, card: str, notes: list[str] | None = None) -> float | None:
    """Return the number that a card holds, or None without the card; refuse or note what is none."""
    if card not in header:
        return None
    try:
        value = header[card]
    except VerifyError:
        value = header.cards[card].image.partition("=")[2].strip(" '")
    known = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if known and (value > 0 or WCS_CARD.fullmatch(card)):
        return float(value)
    wrong = f"{name}: {card} must be a {'' if WCS_CARD.fullmatch(card) else 'positive '}number, got {value!r}"
    if notes is None:
        raise ValueError(wrong)
    notes.append(f"{wrong}, so it is not used")
    return None


def _celestial(path: object, header: fits.Header, hdus: fits.HDUList, notes: list[str]) -> WCS | None:
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
    reason = f"without {', '.join(missing)}" if missing else "without a pair of celestial axes of any scale"
    try:
        wcs = WCS(header, fobj=hdus, naxis=2)
        scale = 3600 * np.sqrt(proj_plane_pixel_area(wcs)) if wcs.has_celestial and not missing else math.nan
        if SCALES[0] < scale < SCALES[1] and (abs(wcs.wcs.crval) <= FULL_TURN).all():
            return wcs
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"that have no meaning ({' '.join(str(error).split()).rpartition(': ')[2].rstrip('.')})"
    notes.append(f"{path}: world coordinates {reason} are not used")
    return None


def _unit(header: fits.Header) -> str:
    """Return the unit of an image, in astropy's spelling if astropy knows it."""
    raw = str(header.get("BUNIT") or "").strip()
    spelled = re.sub(r"\b(electron|count|photon)s\b", r"\1", raw.lower())
    spelled = re.sub(r"\bsec(onds?)?\b", "s", re.sub(r"\be-", "electron", spelled))
    for candidate in (raw, spelled):
        unit = u.Unit(candidate, parse_strict="silent")
        if not isinstance(unit, u.UnrecognizedUnit):
            return unit.to_string()
    return raw


def zero_point(name: object, header: Mapping[str, object], unit: str, notes: list[str]) -> float | None:
    """Return the zero point that cards state, or None; note those that are no numbers."""
    cards = (*ZERO_POINT_CARDS, "PHOTFLAM", "PHOTPLAM")
    *stated, flam, plam = (number_of(name, header, card, notes) for card in cards)
    if unit in ("electron / s", "ct / s") and flam and plam:
        stated.append(-2.5 * math.log10(flam) - 5 * math.log10(plam) - 2.408)
    return next(filter(None, stated), None)


def gain(headers: Sequence[Mapping[str, object]], unit: str) -> float | None:
    """Return the counts per unit of an image that EXPTIME and GAIN state, or None."""
    values = ([number_of("", header, card, []) for header in headers] for card in ("EXPTIME", "GAIN"))
    exposure, per_adu = (next(filter(None, value), None) for value in values)
    counts, _, rate = unit.partition(" / ")
    per_count = {"electron": 1.0, "ph": 1.0, "ct": per_adu, "adu": per_adu, "DN": per_adu}.get(counts)
    time = {"": 1.0, "s": exposure}.get(rate)
    return per_count * time if per_count and time else None
