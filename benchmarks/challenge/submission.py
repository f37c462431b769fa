"""The form of a submission: a folder with a catalog and masks per camera, checked when it is read.

``submission.json`` states the ``test`` that is answered with the ``challenge`` (its version) and the ``images`` (their
digest) as the header of the challenge has them, the kind of ``flux``, "total" or "auto", and the name of the
``method``. For each camera, ``CAMERA.ecsv`` has one row per source that was found: ``scene``, ``x`` and ``y`` (pixels,
from 0 on), and five quantiles of its flux, ``flux_025``, ``flux_16``, ``flux`` (the median), ``flux_84`` and
``flux_975``, with the name of the band appended where there are several, as in ``flux_16_g``. ``CAMERA.npz`` holds an
array for each scene, named by its number, with the masks ``(source, y, x)`` of its sources in the order of their rows:
booleans, integers (0 is outside), or probabilities (inside from one half on). A scene in which nothing was found has an
array of no masks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.table import Table
from numpy.typing import NDArray

from benchmarks.challenge.sets import CAMERAS, SIDE, TESTS, VERSION, Challenge
from probdeblend._files import check_file, check_header, header, output_folder, read_table, readable

__all__ = ["FLUXES", "LEVELS", "Answer", "Submission", "read_submission", "write_submission"]

KIND = "submission"
FLUXES = ("total", "auto")
LEVELS = (0.025, 0.16, 0.5, 0.84, 0.975)
"""Levels of the quantiles of a flux: ends and middle of the central 68 % and 95 % intervals."""
QUANTILES = ("flux_025", "flux_16", "flux", "flux_84", "flux_975")


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method found in the images of one camera.

    Parameters
    ----------
    scene
        The image that each source ``(source,)`` was found in.
    x, y
        Positions ``(source,)`` in pixels; 0 is the center of the first one.
    flux
        Quantiles ``(source, band, 5)`` of the flux, in image units, at `LEVELS`.
    masks
        For each scene the masks ``(source, y, x)`` of its sources, in the order in which they stand here.
    """

    scene: NDArray[np.integer]
    x: NDArray[np.floating]
    y: NDArray[np.floating]
    flux: NDArray[np.floating]
    masks: Sequence[NDArray]


@dataclass(frozen=True, eq=False)
class Submission:
    """A submission that has the right form.

    Parameters
    ----------
    method
        Its name.
    test
        "public" or "hidden".
    flux
        "total" or "auto".
    answers
        What was found, by the name of the camera.
    """

    method: str
    test: str
    flux: str
    answers: dict[str, Answer]


def write_submission(
    path: Path,
    answers: Mapping[str, Answer],
    *,
    challenge: Challenge,
    test: str,
    method: str,
    flux: str = "total",
    overwrite: bool = False,
) -> None:
    """Write a submission, whose form is checked as it is read.

    Parameters
    ----------
    path
        The folder.
    answers
        What was found in the test, by the name of the camera.
    challenge
        The challenge, as `read_challenge` opens it.
    test
        "public" or "hidden".
    method
        A name for the table of scores.
    flux
        "total" for the integral of a source's light, "auto" for its Kron flux.
    overwrite
        Whether an earlier submission may be replaced.

    Raises
    ------
    ValueError
        If the form is wrong, in one sentence.
    FileExistsError
        If the folder exists, and is not to be replaced.
    """
    about = {"challenge": VERSION, "test": test, "images": challenge.tests.get(test, {}).get("images")}
    with output_folder(path, overwrite=overwrite) as folder:
        text = json.dumps(header(KIND) | about | {"flux": flux, "method": method}, indent=2)
        (folder / "submission.json").write_text(text + "\n", encoding="utf-8")
        for camera, answer in answers.items():
            _catalog(camera, answer).write(folder / f"{camera}.ecsv", format="ascii.ecsv")
            np.savez_compressed(folder / f"{camera}.npz", **{str(n): own for n, own in enumerate(answer.masks)})
        read_submission(folder, challenge)


def read_submission(path: Path, challenge: Challenge) -> Submission:
    """Read a submission, and check its form.

    Parameters
    ----------
    path
        The folder.
    challenge
        The challenge or its truth, as `read_challenge` opens it.

    Returns
    -------
    Submission
        What was submitted.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If something is not as it must be: what, and in which file.
    """
    file = Path(path) / "submission.json"
    check_file(file, KIND)
    with readable(file, f"must be the header of a {KIND}, got another or a damaged file"):
        stated = json.loads(file.read_text(encoding="utf-8"))
        check_header(stated, KIND, file)
        test, flux, method = (str(stated.get(name)) for name in ("test", "flux", "method"))
        if stated.get("challenge") != VERSION:
            raise ValueError(f"{file}: must answer version {VERSION} of the challenge, got {stated.get('challenge')}")
        for name, value, known in (("test", test, TESTS), ("flux", flux, FLUXES)):
            if value not in known:
                raise ValueError(f"{file}: {name} must be {' or '.join(known)}, got {value}")
        own = challenge.tests[test]
        if stated.get("images") != own["images"]:
            raise ValueError(f"{file}: must answer the images {own['images']} of the {test} test, got others")
    answers = {camera: _read_answer(Path(path), camera, int(own["scenes"])) for camera in CAMERAS}
    return Submission(method, test, flux, answers)


def _columns(camera: str) -> list[str]:
    """Return the names of the quantiles, band by band."""
    return [f"{name}_{band}" if band else name for band in CAMERAS[camera][0] or [""] for name in QUANTILES]


def _catalog(camera: str, answer: Answer) -> Table:
    """Return the catalog of a camera, as it is stored."""
    names, flux, sources = _columns(camera), np.asarray(answer.flux), len(answer.scene)
    if flux.shape != (shape := (sources, len(names) // len(LEVELS), len(LEVELS))):
        raise ValueError(f"flux of {camera} must have shape {shape}, got {flux.shape}")
    columns = {"scene": answer.scene, "x": answer.x, "y": answer.y}
    return Table(columns | dict(zip(names, flux.reshape(sources, len(names)).T, strict=True)))


def _read_answer(folder: Path, camera: str, scenes: int) -> Answer:
    """Read and check what was found in the images of a camera."""
    file, names = folder / f"{camera}.ecsv", _columns(camera)
    table = read_table(file)
    if missing := [name for name in ("scene", "x", "y", *names) if name not in table.colnames]:
        raise ValueError(f"{file}: must have the column {missing[0]}, got only {', '.join(table.colnames)}")
    values = {name: _numbers(file, table, name) for name in ("scene", "x", "y", *names)}
    number = values["scene"]
    if (wrong := (number != number.round()) | (number < 0) | (number >= scenes)).any():
        raise ValueError(f"{file}: scene must be a whole number from 0 to {scenes - 1}, got {number[wrong][0]:g}")
    flux = np.stack([values[name] for name in names], -1).reshape(len(table), len(names) // len(LEVELS), len(LEVELS))
    if (wrong := (np.diff(flux, axis=-1) < 0).any((1, 2))).any():
        raise ValueError(f"{file}: quantiles of a flux must not decrease, got row {wrong.argmax()}")
    number = number.astype(np.int64)
    masks = _read_masks(folder / f"{camera}.npz", np.bincount(number, minlength=scenes))
    return Answer(number, values["x"], values["y"], flux, masks)


def _numbers(file: Path, table: Table, name: str) -> NDArray[np.float64]:
    """Return a column, which must hold finite numbers."""
    column = np.ma.filled(np.ma.asarray(table[name]).astype(object), np.nan)
    with readable(file, f"{name} must be numbers"):
        values = column.astype(np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        row = np.isfinite(values.reshape(len(values), -1)).all(1).argmin()
        raise ValueError(f"{file}: {name} must be one finite number per row, got {column[row]} in row {row}")
    return values


def _read_masks(file: Path, sources: NDArray[np.int64]) -> list[NDArray]:
    """Read the masks of every scene, of which the numbers of sources are known."""
    check_file(file, "file of masks")
    with readable(file, "must be a file of numpy.savez without objects"), np.load(file, allow_pickle=False) as stored:
        masks = {name: stored[name] for name in stored.files}
    if missing := [number for number in range(len(sources)) if str(number) not in masks]:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise ValueError(
            f"{file}: must hold masks of all {len(sources)} scenes, got none of scene {missing[0]}{others}"
        )
    for number, count in enumerate(sources.tolist()):
        own, shape = masks[str(number)], (count, SIDE, SIDE)
        if own.shape != shape:
            raise ValueError(f"{file}: masks of scene {number} must have shape {shape}, got {own.shape}")
        if own.dtype.kind not in "biuf" or not np.isfinite(own).all():
            raise ValueError(f"{file}: masks of scene {number} must be booleans or finite numbers")
    return [masks[str(number)] for number in range(len(sources))]
