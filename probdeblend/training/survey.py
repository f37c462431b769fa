"""A user's own survey: blends made of its galaxies, its sky, its PSF and its noise, to calibrate on.

Either the survey's lone galaxies are cut out and blended, each image keeping the sky of its central galaxy; or
simulated galaxies, convolved with the survey's PSF and with their photon noise, are put into patches of the survey's
sky, from which the sources are taken out. The magnitudes of their galaxies are distributed as those of the survey:
blends of its own galaxies are weighted, pairs of simulated ones drawn, by iterative proportional fitting (Deming &
Stephan 1940, doi:10.1214/aoms/1177731829).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from tqdm.auto import tqdm

from ..photometry.detection import HOT, detect, estimate_background
from ..photometry.mosaics import Mosaic, open_mosaic, read_columns
from ..photometry.noise import correlated_noise, noise_rms
from ..photometry.sky import dilate, replace_with_sky, sky_scatter
from ..posterior.draws import Posterior
from ..posterior.groups import LEAST_GALAXIES
from ..posterior.maps import Method
from ..scene import MASK_THRESHOLD, STAMP_SIZE, Blend, Instrument
from ..simulation.galsim import render_torch
from ..simulation.prior import Prior
from ..surveys.collect import check_mosaic, collect_mosaics, in_units_of
from ..surveys.library import Library
from ..surveys.selection import Selection, find_sources
from .fitting import FOLDS, Fit, fit_calibrator, pairs_in_folds
from .trial import Trial, run_trial

__all__ = [
    "Sky",
    "Survey",
    "calibrate_survey",
    "magnitude_weights",
    "simulated_in_sky",
    "sky_patches",
    "survey_magnitudes",
]

BORDER = 32
PATCHES = 200
MOST_SOURCES = 0.4  # largest share of a patch that sources may have covered
BATCH = 64
CHOICE = 40  # pairs of the prior from which one is drawn
BIN = 0.5  # magnitudes


@dataclass(frozen=True)
class Survey:
    """Where a survey's images are, and how to make blends of it.

    Parameters
    ----------
    images
        FITS images with pixels of the instrument's size.
    instrument
        PSF, noise correlation, exposure, and a zero point for images whose header has none.
    hdu
        Number or name of the images' HDU.
    catalog
        Table of the galaxies of the one image: positions for its lone galaxies, and magnitudes; SEP's if None.
    columns
        The catalog's name of a column by ours.
    galaxies
        "own", "simulated", or "auto": its own where there are enough lone ones.
    magnitude
        Faintest magnitude of lone galaxies.
    count
        Number of blends.
    """

    images: tuple[Path, ...]
    instrument: Instrument
    hdu: str | None = None
    catalog: Path | None = None
    columns: tuple[tuple[str, str], ...] = ()
    galaxies: Literal["auto", "own", "simulated"] = "auto"
    magnitude: float = 24.5
    count: int = 4000


@dataclass(frozen=True, eq=False)
class Sky:
    """Patches of a survey's sky.

    Parameters
    ----------
    pixels
        Sky-subtracted patches ``(patch, y, x)`` without sources, in units of the instrument.
    sky_rms
        Scatter of the pixels of each ``(patch,)``.
    instrument
        What the survey is taken with.
    """

    pixels: NDArray[np.float64]
    sky_rms: NDArray[np.float64]
    instrument: Instrument


def sky_patches(mosaics: Sequence[Mosaic], instrument: Instrument, *, count: int = PATCHES, seed: int = 0) -> Sky:
    """Cut patches of sky out of images; sources are replaced by sky from beside them.

    Parameters
    ----------
    mosaics
        The images.
    instrument
        What they are taken with; patches are brought to its zero point.
    count
        Number of patches, fewer where the images are small.
    seed
        Same seed, same patches.

    Returns
    -------
    Sky
        The patches.

    Raises
    ------
    ValueError
        If there is no place for a patch.
    """
    rng = np.random.default_rng(seed)
    share = np.array([mosaic.shape[0] * mosaic.shape[1] for mosaic in mosaics], dtype=float)
    found = []
    for _ in tqdm(range(10 * count), desc="sky", unit="place", leave=False):
        mosaic = mosaics[rng.choice(len(mosaics), p=share / share.sum())]
        patch = _patch(mosaic, instrument, rng)
        if patch is not None:
            unit = 10 ** (0.4 * (instrument.zero_point - in_units_of(mosaic, instrument).zero_point))
            found.append((unit * patch[0], unit * patch[1]))
        if len(found) == count:
            break
    if not found:
        room = f"{STAMP_SIZE} x {STAMP_SIZE} covered pixels, {1 - MOST_SOURCES:.0%} of them without sources"
        raise ValueError(f"images must have a place of {room}, none was found")
    return Sky(np.stack([pixels for pixels, _ in found]), np.array([rms for _, rms in found]), instrument)


def _patch(mosaic: Mosaic, instrument: Instrument, rng: np.random.Generator) -> tuple[NDArray, float] | None:
    height, width = mosaic.shape
    if min(height, width) < STAMP_SIZE:
        return None
    x0, y0 = rng.integers(0, (width - STAMP_SIZE + 1, height - STAMP_SIZE + 1)) - BORDER
    side = STAMP_SIZE + 2 * BORDER
    window = mosaic.window(int(x0), int(y0), side, side)
    inner = (slice(BORDER, -BORDER),) * 2
    if not np.isfinite(window[inner]).all():
        return None
    rows, columns = (np.flatnonzero(np.isfinite(window).any(axis)) for axis in (1, 0))
    covered = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    sky, scatter = estimate_background(window[covered])
    pixels = np.full(window.shape, np.nan)
    pixels[covered] = window[covered] - sky
    noise = float(np.median(scatter))
    if not noise > 0:
        return None
    sources = dilate(detect(pixels, noise, **HOT).segmentation) > 0
    if sources[inner].mean() > MOST_SOURCES:
        return None
    inside = np.zeros_like(sources)
    inside[inner] = sources[inner]
    blank = ~sources & np.isfinite(pixels)
    kernel = instrument.noise_kernel
    clean = replace_with_sky(pixels, inside, rng, blank=blank, kernel=None if kernel is None else kernel.cpu())
    return clean[inner], sky_scatter(clean[inner], np.zeros((STAMP_SIZE, STAMP_SIZE), dtype=np.int32))


def simulated_in_sky(
    sky: Sky, count: int, *, prior: Prior, magnitudes: ArrayLike | None = None, seed: int = 0
) -> Iterator[Blend]:
    """Put simulated pairs into patches of sky.

    Parameters
    ----------
    sky
        The patches; each is turned and flipped.
    count
        Number of blends.
    prior
        The galaxies.
    magnitudes
        Of a survey, as which those of the galaxies are to be distributed; those of the prior if None.
    seed
        Same seed, same blends.

    Yields
    ------
    Blend
        Batches with their truth; every galaxy has a number of its own as identity.
    """
    kernel = sky.instrument.noise_kernel
    for start in range(0, count, BATCH):
        size = min(BATCH, count - start)
        rng = np.random.default_rng((seed, start))
        pair_seed, shape_seed, noise_seed = (int(value) for value in rng.integers(2**62, size=3))
        pairs = _drawn_pairs(prior, size, magnitudes, seed=pair_seed)
        components = prior.components(pairs, sky.instrument, seed=shape_seed)
        isolated = render_torch(components, sky.instrument).cpu()
        chosen = rng.integers(len(sky.pixels), size=size)
        turned = [np.rot90(sky.pixels[i][:, :: rng.choice((-1, 1))], rng.integers(4)) for i in chosen]
        light = isolated.sum(1)
        photons = noise_rms(light, torch.tensor(0.0), torch.tensor(sky.instrument.exposure), kernel=kernel)
        generator = torch.Generator().manual_seed(noise_seed)
        noise = photons * correlated_noise(tuple(light.shape), kernel, generator=generator)
        sky_rms = torch.from_numpy(sky.sky_rms[chosen]).float()
        yield Blend(
            image=(torch.from_numpy(np.stack(turned)).float() + light + noise)[:, None],
            sky_rms=sky_rms,
            flux=components.total_flux[..., None],
            mask=isolated > MASK_THRESHOLD * sky_rms[:, None, None, None],
            isolated=isolated[:, :, None],
            identity=2 * torch.arange(start, start + size)[:, None] + torch.arange(2),
            **{name: pairs[name] for name in ("x", "y", "half_light_radius", "galaxy_type")},
        )


def _drawn_pairs(prior: Prior, count: int, magnitudes: ArrayLike | None, *, seed: int) -> dict[str, torch.Tensor]:
    if magnitudes is None:
        return prior.sample(count, seed=seed)
    pairs = prior.sample(CHOICE * count, seed=seed)
    weight = magnitude_weights(pairs["magnitude"].numpy(), magnitudes)
    chosen = np.random.default_rng(seed).choice(len(weight), size=count, p=weight / weight.sum())
    return {name: values[torch.from_numpy(chosen)] for name, values in pairs.items()}


def magnitude_weights(magnitude: ArrayLike, target: ArrayLike, *, rounds: int = 50) -> NDArray[np.float64]:
    """Return weights of blends with which the magnitudes of their galaxies are distributed as in a survey.

    Parameters
    ----------
    magnitude
        Of the galaxies of each blend ``(blend, galaxy)``.
    target
        Of the survey's galaxies; those beyond the range of `magnitude` are left out.
    rounds
        Number of rounds.

    Returns
    -------
    NDArray
        ``(blend,)``, with a mean of 1; as even as the target allows.

    Raises
    ------
    ValueError
        If no galaxy of the survey is as bright as any of the blends.
    """
    magnitude, target = np.asarray(magnitude, dtype=np.float64), np.asarray(target, dtype=np.float64)
    edges = np.arange(np.floor(magnitude.min() / BIN), np.ceil(magnitude.max() / BIN) + 1) * BIN
    wanted = np.histogram(target, edges)[0].astype(np.float64)
    if not wanted.sum():
        raise ValueError(
            f"the survey must have galaxies of magnitude {edges[0]:g} to {edges[-1]:g}, as the blends, got none"
        )
    place = np.clip(np.searchsorted(edges, magnitude, side="right") - 1, 0, len(edges) - 2)
    wanted /= wanted.sum()
    weight = np.ones(len(magnitude))
    for _ in range(rounds):
        there = np.bincount(place.ravel(), np.repeat(weight, magnitude.shape[1]), minlength=len(wanted))
        ratio = np.where(there > 0, wanted / np.maximum(there / there.sum(), 1e-12), 1.0)
        weight = weight * np.prod(ratio[place], axis=1) ** (1 / magnitude.shape[1])
        weight /= weight.mean()
    return weight


def calibrate_survey(
    survey: Survey,
    deblender: Callable[..., Posterior],
    *,
    least: int = LEAST_GALAXIES,
    repair: Method = "conformal",
    seed: int = 0,
    **sampling: int,
) -> Fit:
    """Fit a calibrator to blends made of a survey's own sky.

    Parameters
    ----------
    survey
        The survey.
    deblender
        The network, whose answers are to be repaired.
    least
        Effective number of galaxies that a group holds at least.
    repair
        How, as for `~probdeblend.posterior.calibrator.Calibrator.fit`.
    seed
        Same seed, same calibrator.
    **sampling
        ``draws`` and ``passes`` for the deblender.

    Returns
    -------
    Fit
        Calibrator and test.

    Raises
    ------
    ValueError
        If an image cannot be used, or there are too few galaxies or too little sky.
    """
    library = _own_galaxies(survey, seed=seed) if survey.galaxies != "simulated" else None
    distinct = 0 if library is None else len(set(library.identity))
    own = survey.galaxies == "own" or (survey.galaxies == "auto" and distinct >= least)
    if own and distinct < max(least, 2 * FOLDS):
        raise ValueError(
            f"at least {max(least, 2 * FOLDS)} lone galaxies are needed, got {distinct}: lower least, add images, "
            "or simulate the galaxies"
        )
    target = survey_magnitudes(survey)
    made = _blends_of_own(survey, library, seed=seed) if own else _blends_of_simulated(survey, target, seed=seed)
    blends, folds, words = made
    trial = run_trial(tqdm(blends, desc="blends", unit="batch"), deblender, sep=(), seed=seed, **sampling)
    images = ", ".join(path.name for path in survey.images)
    words = f"{len(trial.network)} blends of {words}, with magnitudes as in {images}"
    drawn = _weighted(trial, survey, target, seed=seed) if own else trial
    folds = None if folds is None else folds(drawn.truth["identity"])
    settings = {"least": least, "repair": repair, "fitted_on": words}
    return fit_calibrator(drawn.network, drawn, masks=trial.sums, folds=folds, **settings)


def _weighted(trial: Trial, survey: Survey, target: NDArray[np.float64], *, seed: int) -> Trial:
    """Draw blends again, so that their magnitudes are distributed as the survey's."""
    magnitude = survey.instrument.zero_point - 2.5 * np.log10(trial.truth["flux"][..., 0])
    weight = magnitude_weights(magnitude, target)
    rows = np.random.default_rng(seed).choice(len(weight), size=len(weight), p=weight / weight.sum())
    truth = {name: values[rows] for name, values in trial.truth.items()}
    return replace(trial, network=trial.network.select(rows), calibrated=trial.calibrated.select(rows), truth=truth)


def survey_magnitudes(survey: Survey) -> NDArray[np.float64]:
    """Return the magnitudes that the blends are to have.

    Parameters
    ----------
    survey
        The survey.

    Returns
    -------
    NDArray
        Of its catalog, or of what SEP finds in its images.
    """
    if survey.catalog is not None:
        table = read_columns(survey.catalog, dict(survey.columns), required=("magnitude",))
        return np.ma.filled(np.ma.asarray(table["magnitude"], dtype=float), np.nan)
    parts = []
    for path in survey.images:
        with open_mosaic(path, hdu=survey.hdu) as mosaic:
            parts.append(find_sources(mosaic, in_units_of(mosaic, survey.instrument))["magnitude"])
    return np.concatenate(parts)


def _own_galaxies(survey: Survey, *, seed: int) -> Library | None:
    try:
        collection = collect_mosaics(
            survey.images,
            catalog=survey.catalog,
            columns=dict(survey.columns),
            hdu=survey.hdu,
            instrument=survey.instrument,
            selection=Selection(survey.magnitude),
            seed=seed,
        )
    except ValueError as error:
        if survey.galaxies == "own" or "no galaxy is left" not in str(error):
            raise
        return None
    return collection.library.select(collection.library.keep)


def _blends_of_own(
    survey: Survey, library: Library, *, seed: int
) -> tuple[Iterator[Blend], Callable[[NDArray], NDArray], str]:
    blends, folds = pairs_in_folds(library, survey.count, instrument=survey.instrument, seed=seed)
    return blends, folds, f"{len(set(library.identity))} lone galaxies"


def _blends_of_simulated(
    survey: Survey, target: NDArray[np.float64], *, seed: int
) -> tuple[Iterator[Blend], None, str]:
    with ExitStack() as stack:
        mosaics = [stack.enter_context(open_mosaic(path, hdu=survey.hdu)) for path in survey.images]
        for mosaic in mosaics:
            check_mosaic(mosaic, None, survey.instrument)
        sky = sky_patches(mosaics, survey.instrument, seed=seed)
    blends = simulated_in_sky(sky, survey.count, prior=Prior.default(), magnitudes=target, seed=seed)
    return blends, None, f"simulated galaxies in {len(sky.pixels)} patches of sky"
