"""Stored blends with the posteriors that Hamiltonian Monte Carlo found for them, and how close refinement comes.

The blends are the generative model's own: drawn on whole stamps, where a guess of the unknowns is found, and cut to
their middle, which is quicker to sample. A few have white noise and a PSF that is as good as known: what other codes
assume. The datasets of the HDF5 file are the fields of `StoredReferences`; the attribute ``settings`` says in JSON how
it was made.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path

import h5py
import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from probdeblend._files import whole_file
from probdeblend.deblending.deblender import Deblender
from probdeblend.refinement.guide import JointGuide
from probdeblend.refinement.latents import LATENTS, to_components
from probdeblend.refinement.model import POSITION, BlendModel, Observed
from probdeblend.refinement.nuts import LARGEST_R_HAT, LEAST_EFFECTIVE, sample_reference
from probdeblend.refinement.refine import Refined, refine
from probdeblend.refinement.refiner import METHODS
from probdeblend.scene import STAMP_SIZE, Instrument, seed_of
from probdeblend.simulation.prior import Prior

__all__ = ["StoredReferences", "compare_references", "make_references", "read_references", "reference_model", "report"]

FILE = "reference.h5"
SHIPPED = "reference_64px.h5"
FORMAT = "probdeblend references"
VERSION = 1
SIZE = 64
KINDS = ("correlated", "white")
KNOWN_PSF = 1e-3  # standard deviation of ln of the width of a PSF that is as good as known
NEAREST = 2.0  # pixels between the galaxies: closer pairs cannot be told apart
# Pixels from the middle to the companion, for the cut stamp to hold it; index, for other codes to render it.
FARTHEST, LEAST_INDEX = {False: 22.0, True: 12.0}, {False: 0.0, True: 0.8}
MOST_USELESS = 10  # blends without usable weights for each one that is wanted
REFINING = 1000  # draws of each proposal, so that whitening is good
LONGER = 3  # times the draws, where the first ones have not converged
KEPT = 150
FLUXES = [0, len(LATENTS)]
LARGEST_DIFFERENCE = 0.3  # of means, in standard deviations
LEAST_RATIO, LARGEST_RATIO = 0.75, 1.33  # of standard deviations
LARGEST_CORRELATION = 0.15  # difference of the correlations of both ln fluxes


@dataclass(frozen=True, eq=False)
class StoredReferences:
    """Blends, their truth, and draws of their posteriors.

    Parameters
    ----------
    image
        Pixels over the sky noise ``(blend, y, x)``.
    sky_rms, exposure
        Sky noise in flux units, and counts per unit of flux ``(blend,)``.
    start
        The guess that refinement starts from ``(blend, number)``, in the order of ``BlendModel.split``.
    unknown
        The truth ``(blend, number)``.
    draws
        Draws of the No-U-Turn sampler, thinned ``(blend, chain, draw, number)``.
    r_hat, effective
        Those of all the draws, as in `~probdeblend.refinement.nuts.Reference` ``(blend, number)``.
    white
        Which blends have white noise and a known PSF ``(blend,)``.
    seconds
        Time that sampling took ``(blend,)``.
    """

    image: NDArray[np.float32]
    sky_rms: NDArray[np.float32]
    exposure: NDArray[np.float32]
    start: NDArray[np.float32]
    unknown: NDArray[np.float32]
    draws: NDArray[np.float32]
    r_hat: NDArray[np.float32]
    effective: NDArray[np.float32]
    white: NDArray[np.bool_]
    seconds: NDArray[np.float32]

    @property
    def converged(self) -> NDArray[np.bool_]:
        """Whether r-hat is below 1.01 and the effective sample size above 400 for every unknown ``(blend,)``."""
        return ((self.r_hat < LARGEST_R_HAT) & (self.effective > LEAST_EFFECTIVE)).all(-1)


def reference_model(*, white: bool = False) -> BlendModel:
    """Return the model that stored blends are drawn from.

    Parameters
    ----------
    white
        Whether the noise is white, and the PSF known.

    Returns
    -------
    BlendModel
        The model.
    """
    model = BlendModel(Prior.default(), Instrument.candels_f160w(), size=SIZE)
    instrument = model.instrument.replace(noise_kernel=None)
    return replace(model, instrument=instrument, psf_growth=KNOWN_PSF) if white else model


def make_references(
    deblender: Deblender,
    folder: Path,
    *,
    count: int = 12,
    white: int = 2,
    draws: int = 600,
    guide: JointGuide | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Path:
    """Draw blends, sample their posteriors, and store both.

    Every blend has a file in the folder as soon as it is done. Called again, it goes on with those that are missing.
    Blends that refinement cannot bring to usable weights are left out, and counted.

    Parameters
    ----------
    deblender
        Trained weights: the moments of the light that they give to each galaxy are the first guess.
    folder
        Where the files are.
    count
        Number of blends with correlated noise.
    white
        Number of blends with white noise and a known PSF.
    draws
        Number of draws of each of two chains; three times as many where these have not converged.
    guide
        A guide on the encoder of these weights, whose mean is a better guess.
    seed
        Same seed, same blends.
    progress
        Show a progress bar.

    Returns
    -------
    pathlib.Path
        The file that holds all of them.

    Raises
    ------
    FileExistsError
        If that file exists.
    ValueError
        If there are no blends, too few draws, or the folder holds blends that were made with other settings.
    """
    if min(count, white) < 0 or count + white < 1:
        raise ValueError(f"count and white must not be negative, nor both zero, got {count} and {white}")
    if draws < KEPT:
        raise ValueError(f"draws must be at least {KEPT} a chain, got {draws}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"draws": draws, "seed": seed, "start": "moments" if guide is None else "guide"}
    start = _start(deblender, guide)
    with whole_file(folder / FILE) as target:
        stored, useless = [], {}
        for kind, wanted in zip(KINDS, (count, white), strict=True):
            finished = _finished(folder, kind, start, settings=settings)
            found, useless[kind] = _collected(finished, wanted, tqdm(total=wanted, desc=kind, disable=not progress))
            stored += found
        joined = {name: np.concatenate([vars(one)[name] for one in stored]) for name in vars(stored[0])}
        versions = {name: version(name) for name in ("probdeblend", "torch", "pyro-ppl")}
        _write(target, StoredReferences(**joined), settings | {"useless": useless} | versions)
    return folder / FILE


def _start(deblender: Deblender, guide: JointGuide | None) -> Callable[[Tensor], Tensor]:
    moments = guide or JointGuide(deblender.network, pixel_scale=deblender.instrument.pixel_scale)
    return torch.no_grad()(lambda image: moments.encode(image)[1] if guide is None else guide(image).mean)


def _collected(finished: Iterator[Path | None], wanted: int, bar: tqdm) -> tuple[list[StoredReferences], int]:
    found, useless = [], 0
    with bar:
        while len(found) < wanted:
            if (path := next(finished)) is not None:
                found.append(read_references(path))
                bar.update()
            elif (useless := useless + 1) > MOST_USELESS * wanted:
                raise ValueError(f"guesses must be good enough to refine, got {useless} blends without usable weights")
    return found, useless


def _finished(
    folder: Path, kind: str, start: Callable[[Tensor], Tensor], *, settings: dict[str, object]
) -> Iterator[Path | None]:
    """Yield the file of one blend after the other, which is made where it is missing; None where that is no use."""
    white = kind == "white"
    model = replace(reference_model(white=white), size=STAMP_SIZE)
    for number in itertools.count():
        path = folder / f"{kind}-{number:04d}.h5"
        if path.exists():
            with _opened(path) as file:
                if (made := json.loads(file.attrs["settings"])) != settings:
                    raise ValueError(f"{path}: made with other settings, {made}")
            yield path
            continue
        observed, unknown = model.simulate(1, seed=seed_of(settings["seed"], KINDS.index(kind), number))
        if not _suits(model.split(unknown)[0], white=white):
            continue
        blend = _sampled(observed, unknown, start(observed.image[:, None]), white=white, settings=settings)
        if blend is not None:
            with whole_file(path) as partial:
                _write(partial, blend, settings)
        yield None if blend is None else path


def _suits(latents: Tensor, *, white: bool) -> bool:
    central, companion = latents[0, :, POSITION]
    inside = companion.abs().max() < FARTHEST[white] and (companion - central).norm() > NEAREST
    return bool(inside and to_components(latents).sersic_index.min() > LEAST_INDEX[white])


def _sampled(
    observed: Observed, unknown: Tensor, start: Tensor, *, white: bool, settings: dict[str, object]
) -> StoredReferences | None:
    model = reference_model(white=white)
    edge = (STAMP_SIZE - SIZE) // 2
    cut = observed._replace(image=observed.image[:, edge:-edge, edge:-edge])
    refined = refine(model, cut, start, draws=REFINING, seed=settings["seed"])
    if not refined.usable[0]:
        return None
    began = time.perf_counter()
    for draws in (settings["draws"], LONGER * settings["draws"]):
        found = sample_reference(model, cut, refined, draws=draws, seed=settings["seed"], progress=False)
        if found.converged:
            break
    kept = np.linspace(0, found.unknown.shape[1] - 1, KEPT).astype(int)
    values = cut._asdict() | {"start": start, "unknown": unknown, "draws": found.unknown[None, :, kept]}
    values |= {"r_hat": found.r_hat[None], "effective": found.effective[None], "seconds": [time.perf_counter() - began]}
    numbers = {name: np.asarray(value, np.float32) for name, value in values.items()}
    return StoredReferences(**numbers, white=np.array([white]))


def _write(path: Path, stored: StoredReferences, settings: dict[str, object]) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update(format=FORMAT, version=VERSION, settings=json.dumps(settings, sort_keys=True))
        for name, value in vars(stored).items():
            file[name] = value


def read_references(path: Path | None = None) -> StoredReferences:
    """Read stored blends.

    Parameters
    ----------
    path
        A file that `make_references` wrote; the one that ships with the package if None.

    Returns
    -------
    StoredReferences
        The blends.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds something else.
    """
    with _opened(path) as file:
        return StoredReferences(**{field.name: file[field.name][()] for field in fields(StoredReferences)})


@contextmanager
def _opened(path: Path | None) -> Iterator[h5py.File]:
    path = Path(__file__).parent / "data" / SHIPPED if path is None else Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such references")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ValueError(f"{path}: not references written by probdeblend, or damaged") from error
    with file:
        if file.attrs.get("format") != FORMAT or file.attrs.get("version") != VERSION:
            raise ValueError(f"{path}: not references written by probdeblend, or of another version than {VERSION}")
        yield file


def compare_references(path: Path | None = None, *, draws: int = 2000, seed: int = 0) -> Table:
    """Refine stored blends anew, and compare with their references.

    Parameters
    ----------
    path
        A file that `make_references` wrote; the one that ships with the package if None.
    draws
        Draws of each proposal: many, so that their own noise is well below the limits.
    seed
        Same seed, same table.

    Returns
    -------
    Table
        A row a blend whose reference has converged: its number in the file (``blend``), whether its noise is ``white``,
        the largest differences of means in standard deviations of the reference (``mean_flux`` of both ln fluxes,
        ``mean_all`` of all unknowns), ratios of the standard deviations of both ln fluxes (``ratio_least``,
        ``ratio_largest``), the difference of their ``correlation``, ``k_hat`` and ``effective`` of the refinement, and
        whether it is ``within`` 0.3, 0.75 to 1.33, and 0.15: not where refinement abstains, which makes NaN. In the
        metadata how many are ``stored``, ``converged`` and ``abstained``, and the fraction ``within``.

    Raises
    ------
    ValueError
        If no reference has converged.
    """
    stored = read_references(path)
    converged, rows = np.flatnonzero(stored.converged), []
    for white in np.unique(stored.white[converged]).tolist():
        chosen = converged[stored.white[converged] == white]
        *taken, start = (torch.from_numpy(getattr(stored, name)[chosen]) for name in (*Observed._fields, "start"))
        settings = {"draws": draws, "seed": seed, "fits": METHODS["auto"]}
        found = refine(reference_model(white=white), Observed(*taken), start, **settings)
        rows += [_row(stored, found, place, blend) for place, blend in enumerate(chosen.tolist())]
    if not rows:
        raise ValueError(f"references must have converged, got none of {len(stored.white)}")
    table = Table(rows)
    table.meta = {"stored": len(stored.white), "converged": len(table), "within": float(np.mean(table["within"]))}
    table.meta["abstained"] = int(np.isnan(table["mean_flux"]).sum())
    return table


def _row(stored: StoredReferences, found: Refined, place: int, blend: int) -> dict[str, object]:
    """Return what one blend has: in the file it is `blend`, among those refined `place`."""
    drawn = stored.draws[blend].reshape(-1, stored.draws.shape[-1]).astype(np.float64)
    silence = 1.0 if found.usable[place] else np.nan
    mean, covariance = (silence * moment[place] for moment in found.moments())
    wanted = np.cov(drawn, rowvar=False)
    difference = np.abs(mean - drawn.mean(0)) / np.sqrt(np.diag(wanted))
    ratio = np.sqrt(np.diag(covariance) / np.diag(wanted))[FLUXES]
    row = {
        "blend": blend,
        "white": bool(stored.white[blend]),
        "mean_flux": difference[FLUXES].max(),
        "mean_all": difference.max(),
        "ratio_least": ratio.min(),
        "ratio_largest": ratio.max(),
        "correlation": abs(_flux_correlation(covariance) - _flux_correlation(wanted)),
        "k_hat": found.k_hat[place],
        "effective": found.effective[place],
    }
    ratios = row["ratio_least"] >= LEAST_RATIO and row["ratio_largest"] <= LARGEST_RATIO
    others = row["mean_flux"] <= LARGEST_DIFFERENCE and row["correlation"] <= LARGEST_CORRELATION
    return row | {"within": bool(ratios and others)}


def _flux_correlation(covariance: NDArray[np.float64]) -> float:
    (first, both), (_, second) = covariance[np.ix_(FLUXES, FLUXES)]
    return both / np.sqrt(first * second)


def report(table: Table) -> str:
    """Say how close refinement comes to the references.

    Parameters
    ----------
    table
        What `compare_references` returns.

    Returns
    -------
    str
        A few lines.
    """
    meta, found = table.meta, table[np.isfinite(table["mean_flux"])]
    first = (
        f"{meta['converged']} of {meta['stored']} references have converged; refinement abstains on "
        f"{meta['abstained']} of them, and is within all limits for {meta['within']:.0%}"
    )
    if not len(found):
        return first
    return (
        f"{first}\nmeans of ln flux differ by at most {max(found['mean_flux']):.2f} standard deviations (limit "
        f"{LARGEST_DIFFERENCE}), those of all unknowns by {max(found['mean_all']):.2f}\n"
        f"standard deviations of ln flux are {min(found['ratio_least']):.2f} to {max(found['ratio_largest']):.2f} "
        f"times the reference's (limits {LEAST_RATIO} and {LARGEST_RATIO})\n"
        f"correlations of the pair differ by at most {max(found['correlation']):.2f} (limit {LARGEST_CORRELATION})"
    )
