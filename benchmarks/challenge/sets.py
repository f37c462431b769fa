"""The sets of the challenge: scenes to train on, and two tests whose truth lies in a folder of its own.

The folder that is handed out holds ``challenge.json`` and, for each camera, a set of scenes as
`probdeblend.simulation.write_scenes` stores it: ``train/CAMERA`` with its truth, ``public/CAMERA`` and
``hidden/CAMERA`` with the images alone. The organizer's folder holds ``truth.json``, and the same two tests with their
truth. The header of either folder states the version of the challenge, the number of scenes and a digest of the images
of each test, and the SHA-256 checksum of every file beside it. Training set and public test follow from a seed that is
no secret, the hidden test from one that only ``truth.json`` states.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import galsim
import numpy as np
import torch
from numpy.typing import NDArray

from probdeblend import __version__
from probdeblend._files import check_file, check_header, header, output_folder, readable
from probdeblend.scene import PSF_SIZE, SOURCE_FIELDS, Scene, seed_of
from probdeblend.simulation.cameras import Camera
from probdeblend.simulation.population import Population
from probdeblend.simulation.scenes import Simulator
from probdeblend.simulation.sets import write_scenes
from probdeblend.training.evaluation import stored_scenes

__all__ = ["CAMERAS", "SIDE", "TESTS", "VERSION", "Challenge", "Truth", "ground_camera", "make_challenge"]
__all__ += ["read_challenge", "read_truth"]

VERSION = 1  # of the challenge: raise it when scenes, cameras, the form of a submission or the metric change
SIDE = 96  # pixels of an image
BATCH = 16  # scenes that are simulated together
MOST = 8  # sources in a scene, each number from one on as frequent
TESTS = ("public", "hidden")
NAMES = {"challenge": "challenge.json", "truth of a challenge": "truth.json"}
BANDS = {"g": (0.48, 0.77, 26.5), "r": (0.62, 0.70, 26.1), "i": (0.77, 0.60, 25.9)}  # micron, seeing, limit
PIXEL, ZERO_POINT, EXPOSURE, BETA = 0.168, 27.0, 3000.0, 3.5  # arcsec, mag, counts per unit of flux, Moffat's


def ground_camera() -> Camera:
    """Return a camera with three bands on the ground, whose seeing and depth are close to those of HSC's Wide layer.

    The limit of a band is the magnitude of point sources at a signal-to-noise ratio of five, by their PSF. Pixels and
    zero point are those of HSC's coadded images (Aihara et al. 2018, doi:10.1093/pasj/psx066).
    """
    psfs = []
    for _, seeing, _ in BANDS.values():
        effective = galsim.Convolve(galsim.Moffat(beta=BETA, fwhm=seeing), galsim.Pixel(PIXEL))
        drawn = effective.drawImage(nx=PSF_SIZE, ny=PSF_SIZE, scale=PIXEL, method="no_pixel", dtype=np.float64).array
        psfs.append(torch.from_numpy((drawn / drawn.sum()).astype(np.float32)))
    psf, limit = torch.stack(psfs), torch.tensor([limit for _, _, limit in BANDS.values()])
    faintest = 10 ** (0.4 * (ZERO_POINT - limit))
    return Camera(
        pixel_scale=PIXEL,
        psf=psf,
        sky_rms=faintest / 5 * psf.square().sum((1, 2)).sqrt(),
        exposure=torch.full((len(BANDS),), EXPOSURE),
        wavelength=torch.tensor([wavelength for wavelength, _, _ in BANDS.values()]),
        zero_point=(ZERO_POINT,) * len(BANDS),
    )


CAMERAS = {"f160w": ((), Camera.candels_f160w), "ground": (tuple(BANDS), ground_camera)}
"""Names of the bands, none for a single one, and maker of each camera."""


@dataclass(frozen=True)
class Challenge:
    """A folder of the challenge, as its header describes it.

    Parameters
    ----------
    path
        The folder.
    tests
        For each test its number of ``scenes`` per camera, and the digest of its ``images``.
    """

    path: Path
    tests: dict[str, dict[str, int | str]]

    def scenes(self, part: str, camera: str) -> Iterator[Scene]:
        """Read the scenes of a camera in "train", "public" or "hidden", batch by batch."""
        return stored_scenes(self.path / part / camera, progress=False)


@dataclass(frozen=True, eq=False)
class Truth:
    """What is true of the sources of a test, in the images of one camera.

    Parameters
    ----------
    scene, x, y
        Number of the image of each source ``(source,)``, and its position in pixels.
    flux
        True fluxes ``(source, band)``, "total" and "auto".
    snr
        Signal-to-noise ratio of each source alone, in each band ``(source, band)``, by its own profile in white noise.
    mask
        Pixels ``(source, y, x)`` where its own light exceeds three times the sky noise.
    """

    scene: NDArray[np.int64]
    x: NDArray[np.floating]
    y: NDArray[np.floating]
    flux: dict[str, NDArray[np.float64]]
    snr: NDArray[np.float64]
    mask: NDArray[np.bool_]


def make_challenge(
    path: Path,
    truth: Path,
    *,
    train: int,
    test: int,
    seed: int = 0,
    hidden_seed: int | None = None,
    workers: int = 0,
    overwrite: bool = False,
) -> None:
    """Make the sets of the challenge.

    Parameters
    ----------
    path
        The folder to hand out.
    truth
        The folder to keep.
    train, test
        Scenes per camera, of the training set and of each test.
    seed
        Seed of the training set and of the public test: the same gives the same files.
    hidden_seed
        Seed of the hidden test; by default 128 random bits, which nobody guesses.
    workers
        Processes that simulate; the scenes do not depend on it.
    overwrite
        Whether earlier sets may be replaced.

    Raises
    ------
    ValueError
        If one folder is inside the other.
    FileExistsError
        If a folder exists, and is not to be replaced.
    """
    ends = [Path(one).resolve() for one in (path, truth)]
    if ends[0].is_relative_to(ends[1]) or ends[1].is_relative_to(ends[0]):
        raise ValueError(f"truth must be apart from the images, got {truth} for images in {path}")
    hidden_seed = secrets.randbits(128) if hidden_seed is None else hidden_seed
    plan = {"train": (train, seed), "public": (test, seed), "hidden": (test, hidden_seed)}
    with output_folder(path, overwrite=overwrite) as images, output_folder(truth, overwrite=overwrite) as answers:
        for number, (part, (count, own)) in enumerate(plan.items(), start=1):
            for place, (name, (_, camera)) in enumerate(CAMERAS.items(), start=1):
                whole = (images if part == "train" else answers) / part / name
                batches = _simulator(camera()).batches(
                    count, seed=seed_of(own, number, place), batch_size=BATCH, workers=workers
                )
                write_scenes(whole, batches)
                if part in TESTS:
                    write_scenes(images / part / name, map(_images_alone, stored_scenes(whole, progress=False)))
        known = {"seed": seed, "tests": {part: {"scenes": test, "images": _digest(images / part)} for part in TESTS}}
        _write_header(images, "challenge", known)
        _write_header(answers, "truth of a challenge", known | {"hidden_seed": hidden_seed})


def _simulator(camera: Camera) -> Simulator:
    """Return what makes scenes of one to eight sources, of all types, clustered, with S/N ratios from five on."""
    population = Population.default().replace(number=(0.0, *[1 / MOST] * MOST))
    return Simulator(population, camera, (SIDE, SIDE))


def _images_alone(scene: Scene) -> Scene:
    return replace(scene, **dict.fromkeys(SOURCE_FIELDS))


def _checksums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 checksum of every shard in a folder, by its path there."""
    shards = sorted(folder.glob("**/*.h5"))
    return {shard.relative_to(folder).as_posix(): hashlib.sha256(shard.read_bytes()).hexdigest() for shard in shards}


def _digest(folder: Path) -> str:
    return hashlib.sha256(json.dumps(_checksums(folder)).encode()).hexdigest()[:16]


def _write_header(folder: Path, kind: str, known: dict[str, object]) -> None:
    text = header(kind) | {"challenge": VERSION, "probdeblend": __version__} | known
    text["cameras"] = {name: list(bands) for name, (bands, _) in CAMERAS.items()}
    text["checksums"] = _checksums(folder)
    (folder / NAMES[kind]).write_text(json.dumps(text, indent=2) + "\n", encoding="utf-8")


def read_challenge(path: Path, *, truth: bool = False) -> Challenge:
    """Open a folder that `make_challenge` made, and check its files.

    Parameters
    ----------
    path
        The folder of the images, or with `truth` that of the truth.
    truth
        Which of the two it is.

    Returns
    -------
    Challenge
        What its header describes.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it is of another version, or a file is missing or damaged.
    """
    kind = "truth of a challenge" if truth else "challenge"
    file = Path(path) / NAMES[kind]
    check_file(file, kind)
    with readable(file, f"must be the header of a {kind}, got another or a damaged file"):
        stated = json.loads(file.read_text(encoding="utf-8"))
        check_header(stated, kind, file)
        if stated["challenge"] != VERSION:
            raise ValueError(f"{file}: must be of version {VERSION} of the challenge, got {stated['challenge']}")
        found = _checksums(Path(path))
        wrong = sorted(
            name for name in {*stated["checksums"], *found} if stated["checksums"].get(name) != found.get(name)
        )
        if wrong:
            raise ValueError(f"{file}: must list the checksums of the files beside it, got another for {wrong[0]}")
        return Challenge(Path(path), stated["tests"])


def read_truth(truth: Challenge, test: str, camera: str) -> Truth:
    """Read what is true of the sources of a test in the images of a camera.

    Parameters
    ----------
    truth
        The organizer's folder.
    test
        "public" or "hidden".
    camera
        The camera.

    Returns
    -------
    Truth
        Arrays, one row per source.
    """
    parts, start = [], 0
    for scene in truth.scenes(test, camera):
        snr = torch.linalg.vector_norm(scene.light, dim=(-2, -1), dtype=torch.float64) / scene.sky_rms[scene.scene]
        own = (scene.scene + start, scene.x, scene.y, scene.flux.double(), scene.auto_flux.double(), snr, scene.mask)
        parts.append(own)
        start += len(scene)
    number, x, y, total, auto, snr, mask = (torch.cat(values).numpy() for values in zip(*parts, strict=True))
    return Truth(number, x, y, {"total": total, "auto": auto}, snr, mask)
