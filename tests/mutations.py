"""Whole files of every kind that users hand to the package, and ways to damage them.

A mutation changes a file in place, with random choices. It returns whether the result must be refused; without an
answer, a right result is as good as a refusal.
"""

import gzip
import json
import os
import shutil
import struct
from pathlib import Path

import h5py
import numpy as np
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from galaxies import galaxy
from scipy.stats import norm

from probdeblend.deblending import load, weights
from probdeblend.posterior import Calibrator
from probdeblend.posterior.calibrator import EDGES, GROUP_EDGES
from probdeblend.posterior.maps import NODES
from probdeblend.simulation import Simulator, write_scenes
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.population import Population
from probdeblend.surveys import write_library

SIDE, RMS = 64, 0.003
SOURCES = np.array([[20.0, 22.0, 600.0], [30.0, 26.0, 400.0], [46.0, 48.0, 500.0]])  # x, y, flux over noise
ABSURD = (np.nan, np.inf, -np.inf, 1e38, -1e38, 1e308, 5e-324, -1e-310, 1e30, 0.0)
VALUES = (None, "text", "", "0.1", True, [], {}, [1.0], float("nan"), float("inf"), -1, 0, 2**20, 2**63, -1e308, 1e308)
SPARSE = 2**34  # bytes


# Whole files


def write_inputs(folder):
    """Write one whole file of each kind."""
    rng = np.random.default_rng(1)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    ratio = rng.normal(size=(SIDE, SIDE))
    for x, y, flux in SOURCES:
        ratio += flux / (8 * np.pi) * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)
    image = fits.PrimaryHDU((RMS * ratio).astype(np.float32), header=_header())
    image.writeto(folder / "plain.fits")
    image.writeto(folder / "image.fits", checksum=True)
    image.writeto(folder / "packed.fits.gz")
    scaled = fits.PrimaryHDU(image.data, header=_header())
    scaled.scale("int16", bscale=RMS / 20, bzero=1.0)
    scaled.header["BLANK"] = -32768
    scaled.writeto(folder / "scaled.fits")
    fits.CompImageHDU(image.data, header=_header(), quantize_level=32).writeto(folder / "tiles.fits")
    fits.PrimaryHDU(np.full((SIDE, SIDE), RMS, dtype=np.float32)).writeto(folder / "rms.fits")
    fits.PrimaryHDU((rng.random((SIDE, SIDE)) < 0.002).astype(np.uint8)).writeto(folder / "mask.fits")
    camera = Camera.candels_f160w()
    fits.PrimaryHDU(np.asarray(camera.psf[0], dtype=np.float32)).writeto(folder / "psf.fits")
    listed = Table(SOURCES[:, :2], names=["x", "y"])
    listed["label"] = [3, 1, 7]
    for name, form in {"csv": "ascii.csv", "ecsv": "ascii.ecsv", "fits": "fits", "vot": "votable"}.items():
        listed.write(folder / f"list.{name}", format=form)
    deblender = load()
    deblender.use(_calibrator())
    weights.save(deblender, folder / "weights.safetensors")
    deblender.calibrator.save(folder / "calibrator.json")
    options = {"psf": "candels_f160w", "sky_rms": RMS, "draws": 20, "passes": 2}
    deblender(folder / "plain.fits", **options).save(folder / "draws.nc")
    scenes = Simulator(Population.published(), camera, (SIDE, SIDE)).batches(2, seed=1, batch_size=2)
    write_scenes(folder / "set", scenes, settings={"seed": 1})
    write_library(folder / "library", [galaxy(number) for number in range(3)])


def _header():
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [150.0, 2.0], [32.0, 32.0]
    wcs.wcs.cd = np.diag([-0.06 / 3600, 0.06 / 3600])
    header = wcs.to_header()
    header.update({"BUNIT": "electron/s", "ABMAGZP": 25.9463, "DATE-OBS": "2010-01-02"})
    return header


def _calibrator():
    """Errors a tenth larger, in all bins."""
    given = norm.ppf(NODES)
    flux, total = (
        np.tile([given, 1.1 * given], (np.prod([len(own) + 1 for own in edges]), 1, 1))
        for edges in (EDGES, GROUP_EDGES)
    )
    kinds = ("total", "auto")
    maps = dict.fromkeys(kinds, flux), dict.fromkeys(kinds, total), dict.fromkeys(kinds, 1.0)
    return Calibrator(*maps, (1.0, 0.5), (900.0, 9.0), "network", (0.9, 0.2), "made-up truths")


# Mutations of the bytes of any file


def flip_bits(path, rng):
    data = np.fromfile(path, np.uint8)
    for place in rng.integers(0, len(data), rng.integers(1, 9)):
        data[place] ^= np.uint8(1 << rng.integers(8))
    data.tofile(path)


def flip_early_bits(path, rng):
    """Most of the structure is in the first kilobytes."""
    data = np.fromfile(path, np.uint8)
    data[rng.integers(0, min(len(data), 3000), 3)] ^= np.uint8(1 << rng.integers(8))
    data.tofile(path)


def cut_off(path, rng):
    os.truncate(path, int(path.stat().st_size * rng.random()))


def lengthen(path, rng):
    with path.open("ab") as file:
        file.write(rng.bytes(int(rng.integers(1, 6000))) if rng.random() < 0.5 else bytes(2880))


def swap_bytes(path, rng):
    data = np.fromfile(path, np.uint8)
    start = int(rng.integers(0, max(len(data) - 64, 1)))
    part = data[start : start + 64]
    data[start : start + 64] = part[: len(part) // 4 * 4].reshape(-1, 4)[:, ::-1].ravel() if len(part) == 64 else part
    data.tofile(path)


def overwrite_part(path, rng):
    data, size = bytearray(path.read_bytes()), int(rng.integers(1, 300))
    start = int(rng.integers(0, len(data)))
    data[start : start + size] = bytes(size) if rng.random() < 0.5 else rng.bytes(size)
    path.write_bytes(data)


def move_part(path, rng):
    data = path.read_bytes()
    start, stop = np.sort(rng.integers(0, len(data), 2))
    path.write_bytes(data[:start] + data[stop:] if rng.random() < 0.5 else data[:stop] + data[start:])


def replace_file(path, rng):
    """Something else stands in its place."""
    path.unlink()
    kind = rng.integers(9)
    if kind == 0:
        path.touch()
    elif kind == 1:
        path.write_text("x y\n1 2\n")
    elif kind == 2:
        path.mkdir()
    elif kind == 3:
        os.mkfifo(path)
    elif kind == 4:
        path.symlink_to(path)
    elif kind == 5:
        path.symlink_to("/dev/zero")
    elif kind == 6:
        path.write_bytes(rng.bytes(5000))
    elif kind == 7:
        path.write_bytes(bytes(5000))
    return True


def claim_gigabytes(path, rng):
    """A sparse file that is read as gigabytes of zeros."""
    os.truncate(path, SPARSE)


BYTES = [flip_bits, flip_early_bits, cut_off, lengthen, swap_bytes, overwrite_part, move_part, replace_file]
BYTES += [claim_gigabytes]


# FITS images

CARDS = ("SIMPLE", "BITPIX", "NAXIS", "NAXIS1", "NAXIS2", "EXTEND", "BSCALE", "BZERO", "BLANK", "BUNIT", "ABMAGZP")
CARDS += ("CTYPE1", "CTYPE2", "CRVAL1", "CRPIX2", "CD1_1", "CDELT1", "PC1_1", "PC1_2", "WCSAXES", "CUNIT1", "LONPOLE")
CARDS += ("NAXIS3", "PCOUNT", "GCOUNT", "GROUPS", "XTENSION", "TFIELDS", "ZBITPIX", "ZNAXIS1", "ZTILE1", "ZCMPTYPE")
CARDS += ("PHOTFLAM", "DATASUM", "CHECKSUM", "TFORM1", "ZSCALE", "ZQUANTIZ", "THEAP", "RADESYS", "EQUINOX", "DATE-OBS")
CARDS += ("PV1_1", "A_ORDER", "CPDIS1", "D2IMDIS1", "CRPIX3", "PIXSCALE", "EXPTIME", "MJD-OBS", "VELOSYS")
NUMBERS = ("0", "-1", "1", "2", "3", "999", "1000000", "2147483647", "-2147483648", "99999999999999", "1E38", "1E308")
NUMBERS += (
    "1E-308",
    "1E400",
    "NaN",
    "INF",
    "'text'",
    "'25,9'",
    "T",
    "",
    "'",
    "1.0.0",
    "(1.0, 2.0)",
    "-32",
    "'TAN'",
    "''",
)


def change_card(path, rng):
    """A card holds something absurd, in each header or one more."""
    data, card = path.read_bytes(), CARDS[rng.integers(len(CARDS))]
    new = f"{card:8}= {NUMBERS[rng.integers(len(NUMBERS))]:>20}".ljust(80).encode()
    start = 0
    while data[start : start + 8] not in (f"{card:8}".encode(), b"END     ") and start < len(data):
        start += 80
    if data[start : start + 8] == b"END     ":
        if start % 2880 == 2800:
            data = data[: start + 80] + b" " * 2880 + data[start + 80 :]
        new += b"END".ljust(80)
    path.write_bytes(data[:start] + new + data[start + len(new) :])


def odd_card(path, rng):
    """A card is no card: no value, control characters, escape sequences."""
    data = bytearray(path.read_bytes())
    lines = (b"\x1b[31mRED", b"=" * 80, b"CONTINUE  'x&'", b"HIERARCH A B C = 'x", b"CRVAL1  = 150,0", b"\xff" * 80)
    start = 80 * int(rng.integers(1, 12))
    data[start : start + 80] = lines[rng.integers(len(lines))].ljust(80)
    path.write_bytes(data)


def change_pixels(path, rng):
    """Some pixels, or all, are absurd."""
    with fits.open(path, do_not_scale_image_data=True) as hdus:
        hdu = next(hdu for hdu in hdus if hdu.data is not None)
        header, data = hdu.header.copy(), np.array(hdu.data, dtype=float)
    for card in ("BSCALE", "BZERO", "BLANK", "CHECKSUM", "DATASUM"):
        header.remove(card, ignore_missing=True)
    number = rng.choice([1, 1, 5, 60, data.size])
    data.ravel()[rng.integers(0, data.size, number)] = ABSURD[rng.integers(len(ABSURD))]
    with np.errstate(all="ignore"):
        fits.PrimaryHDU(data.astype(rng.choice([np.float32, np.float64])), header).writeto(path, overwrite=True)


def change_shape(path, rng):
    """Other axes, types or HDUs."""
    with fits.open(path) as hdus:
        data = np.array(next(hdu for hdu in hdus if hdu.data is not None).data)
    kinds = [np.float64, ">f4", np.int16, np.uint8, np.int64, np.int32]
    shapes = [data[None], data[None, None], data[:0], data[:, :1], data[:20, :50], data.ravel(), data[:1, :1], data]
    shapes += [np.stack([data, data]), np.pad(data, 300)]
    new = shapes[rng.integers(len(shapes))].astype(kinds[rng.integers(len(kinds))])
    hdus = [fits.PrimaryHDU(new)]
    if rng.random() < 0.3:
        hdus = [fits.PrimaryHDU(), *(fits.ImageHDU(new, name="SCI") for _ in range(rng.integers(0, 3)))]
    fits.HDUList(hdus).writeto(path, overwrite=True)


def write_table(path, rng):
    path.unlink()
    Table({"x": [1.0, 2.0]}).write(path, format="fits")
    return True


def pack(path, rng):
    """The same file, packed by gzip, whole or damaged."""
    packed = bytearray(gzip.compress(path.read_bytes()))
    if whole := rng.random() < 0.3:
        pass
    elif rng.random() < 0.5:
        packed[-8 : -4 if rng.random() < 0.5 else None] = rng.bytes(4)
    else:
        packed[int(rng.integers(10, len(packed)))] ^= 255
    path.write_bytes(packed)
    return not whole


def bomb(path, rng):
    """Gigabytes of zeros in a small packed file."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        header = fits.PrimaryHDU(np.zeros((1, 1), np.float32)).header
        header["NAXIS1"] = header["NAXIS2"] = 30_000
        file.write(header.tostring().encode())
        for _ in range(220):
            file.write(bytes(2**24))


def same_pixels(path, rng):
    """Another way to store the same image: the answer is the same."""
    with fits.open(path) as hdus:
        hdu = next(hdu for hdu in hdus if hdu.data is not None)
        data, header = np.array(hdu.data, dtype=np.float64), hdu.header.copy()
    for card in ("BSCALE", "BZERO", "BLANK", "CHECKSUM", "DATASUM", "XTENSION", "PCOUNT", "GCOUNT"):
        header.remove(card, ignore_missing=True)
    forms = [
        [fits.PrimaryHDU(data, header)],
        [fits.PrimaryHDU(data.astype(np.float32)[None], header)],
        [fits.PrimaryHDU(), fits.ImageHDU(data.astype(np.float32), header)],
        [
            fits.PrimaryHDU(),
            fits.CompImageHDU(data.astype(np.float32), header, quantize_level=0, compression_type="GZIP_1"),
        ],
    ]
    fits.HDUList(forms[rng.integers(len(forms))]).writeto(path, overwrite=True, checksum=bool(rng.random() < 0.5))
    return False


FITS = [change_card, change_card, change_card, odd_card, change_pixels, change_pixels, change_shape, write_table, pack]


# JSON


def damaged(value, rng):
    """Change one thing in a JSON value; return the new value, and whether its structure or a finite number is gone."""
    container = isinstance(value, (dict, list)) and len(value) > 0
    if not container or rng.random() < 0.15:
        new = VALUES[rng.integers(len(VALUES))]
        return new, signature(new) != signature(value)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, how = keys[rng.integers(len(keys))], rng.random()
    if how < 0.12:
        changed = (
            {k: v for k, v in value.items() if k != key} if isinstance(value, dict) else value[:key] + value[key + 1 :]
        )
        return changed, True
    if how < 0.2:
        if isinstance(value, dict):
            return {(f"{k}_" if k == key else k): v for k, v in value.items()}, True
        return [*value, value[key]], True
    inner, must = damaged(value[key], rng)
    return ({**value, key: inner} if isinstance(value, dict) else [*value[:key], inner, *value[key + 1 :]]), must


def signature(value):
    """What kind of value this is, as a schema sees it."""
    if isinstance(value, dict):
        return "object"
    if isinstance(value, list):
        return f"list of {len(value)}"
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return type(value).__name__
    return "number" if np.isfinite(value) else "no number"


def change_json(path, rng):
    new, must = damaged(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(new))
    return must or None


def odd_json(path, rng):
    text = path.read_text()
    bad = [
        "[" * 100_000,
        text[:-1],
        text + text,
        text.replace("0.", "O.", 1),
        "null",
        '"text"',
        "[1, 2]",
        "{}",
        "1e999",
    ]
    path.write_text(bad[rng.integers(len(bad))])
    return True


def odd_letters(path, rng):
    """Not UTF-8."""
    path.write_bytes(path.read_text().replace("e", "\xe9", 1).encode("latin-1"))
    return True


# Weights


def _split_weights(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _join_weights(path, header, data):
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def change_description(path, rng):
    header, data = _split_weights(path)
    text = header["__metadata__"]["description"]
    description = json.loads(text)
    part = description
    if rng.random() < 0.5:
        known = {"dropout": 0.1}
        name = list(known)[rng.integers(len(known))]
        description["settings"] = dict(description["settings"]) | {name: known[name]}
        part = description["settings"]
        new = VALUES[rng.integers(len(VALUES))]
        must = signature(new) != signature(known[name]) or (name == "dropout" and not 0 <= new < 1)
        part[name] = new
    else:
        key = ["fwhm", "brightest", "settings", "training"][rng.integers(4)]
        if rng.random() < 0.3:
            description.pop(key)
            must = True
        else:
            new, must = (
                damaged(description[key], rng) if key != "training" else (VALUES[rng.integers(len(VALUES))], False)
            )
            must = must if key != "training" else not isinstance(new, dict)
            if key == "settings":
                must = new != description[key] and new != {}
            description[key] = new
    header["__metadata__"]["description"] = json.dumps(description)
    _join_weights(path, header, data)
    return must or None


def change_inner_calibrator(path, rng):
    header, data = _split_weights(path)
    new, must = damaged(json.loads(header["__metadata__"]["calibrator"]), rng)
    header["__metadata__"]["calibrator"] = json.dumps(new)
    _join_weights(path, header, data)
    return must or None


def change_tensor(path, rng):
    """A tensor of another name, type, shape or size, or with absurd numbers."""
    header, data = _split_weights(path)
    names = [name for name in header if name != "__metadata__"]
    if rng.random() < 0.3:
        names = [name for name in names if name.startswith("token_")]
    name = names[rng.integers(len(names))]
    entry, kind = header[name], rng.integers(8)
    start, stop = entry["data_offsets"]
    must = True
    if kind == 0:
        header[f"{name}x"] = header.pop(name)
    elif kind == 1:
        entry["dtype"] = ["I32", "U32"][rng.integers(2)]
    elif kind == 2:
        entry["shape"] = [*entry["shape"], 1] if rng.random() < 0.5 else [(stop - start) // 4]
        must = None
    elif kind == 3:
        entry["shape"] = [2**20, 2**20]
    elif kind == 4:
        entry["data_offsets"] = [start, stop + 2**40]
    elif kind == 5:
        header["__metadata__"] = {"description": 3} if rng.random() < 0.5 else {}
    else:
        value = ABSURD[rng.integers(len(ABSURD))]
        with np.errstate(all="ignore"):
            values = np.full((stop - start) // 4, value, dtype="<f4")
        if kind == 6:
            values[1:] = np.frombuffer(data[start + 4 : stop], "<f4")
        data = data[:start] + values.tobytes() + data[stop:]
        must = not np.isfinite(values).all()
    _join_weights(path, header, data)
    return must or None


def long_header(path, rng):
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", int(rng.choice([2**30, 2**40, 2**62, 7]))) + data[8:])
    return True


# HDF5


def _objects(file, *, attributes=False):
    found = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return sorted(name for name in found if not attributes or len(file[name].attrs)) or [""]


def leave_out(file, name, values, rng):
    """As files without it are, or one whose name is misspelled."""
    if rng.random() < 0.5:
        file[f"{name}_other"] = values


def keep_elsewhere(file, name, values, rng):
    """In another file, or nowhere."""
    kind, shape = rng.integers(6), values.shape or (1,)
    if kind == 0:
        file[name] = h5py.ExternalLink("/etc/passwd", "/x")
    elif kind == 1:
        file[name] = h5py.SoftLink(f"/{name}")
    elif kind == 2:
        file.create_dataset(name, shape, np.uint8, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
    elif kind == 3:
        layout = h5py.VirtualLayout(shape, values.dtype)
        layout[...] = h5py.VirtualSource("elsewhere.h5", "x", shape)
        file.create_virtual_dataset(name, layout)
    elif kind == 4:
        whole = (2**36, *shape[1:])
        file.create_dataset(name, whole, values.dtype, chunks=(1024, *shape[1:]), compression="gzip")
    else:
        file[name] = h5py.Empty(values.dtype)
    return True


def change_type(file, name, values, rng):
    if values.dtype.kind not in "iuf" or rng.random() < 0.3:
        file[name] = np.full(values.shape, b"text" if values.dtype.kind in "iuf" else 1)
    elif rng.random() < 0.5:
        file[name] = values.astype(complex)
    else:
        with np.errstate(all="ignore"):
            file[name] = values.astype(np.int64 if values.dtype.kind == "f" else np.float32)
    return True


def change_length(file, name, values, rng):
    if not values.size:
        file[name] = np.zeros(3, values.dtype)
        return True
    values = np.atleast_1d(values)
    forms = [values[:-1], np.concatenate([values, values[:1]]), values[None], np.stack([values, values])]
    file[name] = forms[rng.integers(len(forms))]
    return True


def spoil_values(file, name, values, rng):
    new = np.array(values)
    if new.dtype.kind in "iuf" and new.size:
        where = slice(None) if rng.random() < 0.5 else rng.integers(0, new.size, 2)
        value = ABSURD[rng.integers(len(ABSURD))] if new.dtype.kind == "f" else rng.choice([-1, 2**31 - 1, -(2**31)])
        with np.errstate(all="ignore"):
            new.ravel()[where] = np.float64(value).astype(new.dtype)
    file[name] = new


CHANGES = [leave_out, keep_elsewhere, keep_elsewhere, change_type, change_length, change_length]
CHANGES += [spoil_values] * 3


def change_dataset(path, rng):
    """A dataset of another length or type, with absurd values, elsewhere, or not there."""
    with h5py.File(path, "r+") as file:
        names = _objects(file)
        name = names[rng.integers(len(names))]
        kept, values = dict(file[name].attrs), file[name][()]
        del file[name]
        must = CHANGES[rng.integers(len(CHANGES))](file, name, values, rng)
        if isinstance(file.get(name, getlink=True), h5py.HardLink):
            for key in set(kept) - {"REFERENCE_LIST", "DIMENSION_LIST"}:
                file[name].attrs[key] = kept[key]
        return None if name in ("axis", "pixel") else must  # dimensions of netCDF have no values


def change_attribute(path, rng):
    with h5py.File(path, "r+") as file:
        owners = ["", *[name for name in _objects(file, attributes=True) if name]]
        owner = file[owners[rng.integers(len(owners))] or "/"] if rng.random() < 0.4 else file
        names = list(owner.attrs)
        if not names:
            return None
        name, kind = names[rng.integers(len(names))], rng.integers(9)
        if kind == 0:
            del owner.attrs[name]
        else:
            values = ["text", np.nan, -1.0, 1e308, 2**40, np.zeros(0), np.arange(3.0), h5py.Empty("f")]
            del owner.attrs[name]
            owner.attrs[name] = values[kind - 1]


# Tables of positions


def change_cell(path, rng):
    text = path.read_text()
    numbers = ["20.0", "22.0", "30.0", "26.0", "46.0", "48.0"]
    old = numbers[rng.integers(6)]
    new = ["nan", "inf", "1e308", "-5", "", "text", "1,0", "--", "64.2", "1e400", "20", "\x1b[31m", "0x10"][
        rng.integers(13)
    ]
    path.write_text(text.replace(old, new, 1))


def change_column(path, rng):
    text = path.read_text()
    old = ["x", "y", "label"][rng.integers(3)]
    new = ["", "y", "label", "z", "x" * 5000][rng.integers(5)]
    path.write_text(text.replace(old, new))


def many_rows(path, rng):
    """The same rows again and again."""
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, *lines[-3:] * int(rng.integers(1, 40))]) + "\n")


def wide_table(path, rng):
    rows = {name: np.arange(3.0) for name in ("x", "y", *(f"c{n}" for n in range(300)))}
    Table(rows).write(path, format="ascii.csv", overwrite=True)


def change_keep(folder, rng):
    """The list of a library, as a user who edits it may leave it."""
    path = folder / "keep.csv"
    [change_cell, change_column, many_rows, flip_bits, cut_off, odd_letters, replace_file, wide_table][rng.integers(8)](
        path, rng
    )


# What a folder holds


def inside(mutations, pattern):
    """Mutations of one of the files in a folder."""

    def mutate(folder, rng):
        found = sorted(folder.glob(pattern))
        return mutations[rng.integers(len(mutations))](found[rng.integers(len(found))], rng)

    return mutate


def rename_shard(folder, rng):
    shard = next(folder.glob("scenes-*.h5"))
    names = ["scenes-00000005.h5", "scenes-abcdefgh.h5", "scenes-00000001.h5", "scenes--0000001.h5"]
    new = folder / names[rng.integers(len(names))]
    if rng.random() < 0.5:
        shutil.copy(shard, new)
        return True if new.stem[-8:].isdecimal() else None  # another file beside the shards is none of them
    shard.rename(new)
    return True


def no_shard(folder, rng):
    next(folder.glob("*.h5")).unlink()
    return True


HDF5 = [change_dataset] * 6 + [change_attribute] * 2
IMAGE = BYTES + FITS
TEXT = (
    [mutation for mutation in BYTES if mutation is not flip_early_bits] + [change_cell] * 3 + [change_column, many_rows]
)
MUTATIONS = {
    "plain.fits": [*IMAGE, bomb, same_pixels],
    "image.fits": [*IMAGE, same_pixels],
    "packed.fits.gz": BYTES,
    "scaled.fits": IMAGE,
    "tiles.fits": [*BYTES, change_card, change_card, odd_card],
    "rms.fits": IMAGE,
    "psf.fits": IMAGE,
    "mask.fits": IMAGE,
    "list.csv": [*TEXT, wide_table, odd_letters],
    "list.ecsv": [*TEXT, odd_letters],
    "list.fits": [*BYTES, change_card, odd_card, pack],
    "list.vot": TEXT,
    "weights.safetensors": BYTES
    + [change_description, change_tensor] * 6
    + [change_inner_calibrator] * 3
    + [long_header],
    "calibrator.json": BYTES + [change_json] * 12 + [odd_json] * 3 + [odd_letters],
    "draws.nc": BYTES + HDF5 * 2,
    "set": [inside(BYTES, "scenes-*.h5")] * 4 + [inside(HDF5, "scenes-*.h5")] * 12 + [rename_shard, no_shard],
    "library": [inside(BYTES, "library.h5")] * 3 + [inside(HDF5, "library.h5")] * 8 + [change_keep] * 3 + [no_shard],
}
"""Mutations of each whole file or folder that `write_inputs` writes."""


def mutated(folder, name, number, seed):
    """Mutate one of the inputs; return the name of the mutation, and what it says of the result."""
    rng = np.random.default_rng([seed, number])
    choice = MUTATIONS[name][number // len(MUTATIONS) % len(MUTATIONS[name])]
    must = choice(Path(folder) / name, rng)
    return getattr(choice, "__qualname__", "mutation"), must
