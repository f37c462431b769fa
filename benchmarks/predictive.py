"""Posteriors against GalSim: posterior fluxes, rendered by GalSim, beside the image that they were inferred from.

A network answers with fluxes; the shapes, which GalSim needs too, are the true ones of the simulation. Models of each
image are compared with it inside the galaxies' footprints, as residuals over the noise of sky and photons:

- the truth, whose mean square is 1 if GalSim and the noise are what they are taken to be;
- the fluxes that fit best under GalSim's shapes, by least squares;
- the posterior: its median, and single draws.

The best fit knows the shapes, which the network does not. If posteriors are right, their intervals cover it about as
often as they cover the truth.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from astropy.table import Table
from matplotlib.figure import Figure
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, sized_option
from probdeblend._files import kept_arrays
from probdeblend.cli.options import weights as weights_option
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.weights import load
from probdeblend.metrics.arrays import ONE_SIGMA
from probdeblend.photometry.noise import add_noise, noise_rms
from probdeblend.plots.images import plot_stamps
from probdeblend.posterior.draws import Posterior
from probdeblend.scene import MASK_THRESHOLD, Instrument
from probdeblend.simulation.galsim import render_galsim, render_torch
from probdeblend.simulation.prior import Prior

__all__ = ["main", "plot_predictive", "predictive_check", "predictive_table", "zero_point_error"]

BATCH = 16
MODELS = ("truth", "best fit", "median", "draw")
STAMPS = 6


def predictive_check(
    deblender: Deblends, *, count: int, kept: Path | None = None, **sampling: int
) -> dict[str, NDArray]:
    """Render posterior fluxes with GalSim and compare them with images of blends that GalSim drew.

    By the name of each model, the mean squared residual over noise of each blend ``(blend,)``; ``covers_truth`` and
    ``covers_fit``, whether the 68 % interval of each flux holds the true one and the best fit ``(blend, galaxy)``; and
    each ``image``, with its ``residual`` over noise from the median model ``(blend, y, x)``.
    """
    parts = []
    for start in tqdm(range(0, count, BATCH), desc="GalSim", unit="batch", leave=False):
        path = kept and kept / f"blends-{start:05d}.npz"
        size = min(BATCH, count - start)
        parts.append(kept_arrays(path, lambda start=start, size=size: _batch(deblender, start, size, **sampling)))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _batch(deblender: Deblends, start: int, size: int, *, draws: int, passes: int, seed: int) -> dict[str, NDArray]:
    instrument, prior = Instrument.candels_f160w(), Prior.published()
    first = 1000 * (seed + 1) + start
    components = prior.components(prior.sample(size, seed=first), instrument, seed=first + 1)
    isolated = render_galsim(components, instrument).double()
    noise = {name: torch.full((size,), getattr(instrument, name)) for name in ("sky_rms", "exposure")}
    generator = torch.Generator().manual_seed(first + 2)
    image = add_noise(isolated.sum(1, keepdim=True).float(), instrument, **noise, generator=generator)
    answer = deblender(image, sky_rms=noise["sky_rms"], draws=draws, passes=passes, seed=seed + start)
    flux = answer.draws("blend", "galaxy", "band")[:, :, 0]
    return _compared(image[:, 0].double(), isolated, components.total_flux.double(), flux, instrument)


def _compared(
    image: torch.Tensor, isolated: torch.Tensor, truth: torch.Tensor, flux: NDArray, instrument: Instrument
) -> dict[str, NDArray]:
    shape = isolated / truth[..., None, None]  # light of unit flux
    light = isolated.sum(1)
    ones = torch.ones(len(image), 1, 1)
    sky, exposure = instrument.sky_rms * ones, instrument.exposure * ones
    rms = noise_rms(light, sky, exposure, kernel=instrument.noise_kernel).double()
    inside = (isolated > MASK_THRESHOLD * instrument.sky_rms).any(1)
    weighted = shape / rms[:, None] * inside[:, None]
    scaled = image / rms * inside
    normal = torch.einsum("bgyx,bhyx->bgh", weighted, weighted)
    fit = torch.linalg.solve(normal, torch.einsum("bgyx,byx->bg", weighted, scaled)).numpy()
    low, middle, high = np.quantile(flux, ONE_SIGMA, axis=-1)
    found = {"image": image.numpy()}
    for name, value in zip(MODELS, (truth.numpy(), fit, middle, flux[..., 0]), strict=True):
        residual = (image - (torch.from_numpy(value)[..., None, None] * shape).sum(1)) / rms
        found[name] = ((residual.square() * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)).numpy()
        if name == "median":
            found["residual"] = residual.numpy()
    covers = {name: (low <= value) & (value <= high) for name, value in (("fit", fit), ("truth", truth.numpy()))}
    return found | {f"covers_{name}": value for name, value in covers.items()}


def predictive_table(found: dict[str, NDArray]) -> Table:
    """Return one row per model: its chi-square per pixel, and how often 68 % intervals hold its fluxes."""
    covered = {"truth": found["covers_truth"].mean(), "best fit": found["covers_fit"].mean()}
    table = Table(
        {
            "model": MODELS,
            "mean": [found[name].mean() for name in MODELS],
            "median": [np.median(found[name]) for name in MODELS],
            "quantile_95": [np.quantile(found[name], 0.95) for name in MODELS],
            "coverage_68": [covered.get(name, np.nan) for name in MODELS],
        }
    )
    for name in table.colnames[1:]:
        table[name].info.format = ".3f"
    return table


def plot_predictive(found: dict[str, NDArray]) -> Figure:
    """Show some images, and their residuals from the median model."""
    images = [found["image"][:STAMPS], Instrument.candels_f160w().sky_rms * found["residual"][:STAMPS]]
    titles = [f"{kind} {i}" for kind in ("blend", "residual") for i in range(len(images[0]))]
    return plot_stamps(np.concatenate(images), titles)[0].figure


def zero_point_error(deblender: Deblends, *, zero_point: float = 31.4, seed: int = 0) -> float:
    """Return by how much catalogs of the same sources differ in magnitude between two zero points, at most.

    The other zero point is by default that of images in nJy.
    """
    instrument, prior = Instrument.candels_f160w(), Prior.published()
    pairs = prior.sample(8, seed=seed)
    isolated = render_torch(prior.components(pairs, instrument, seed=seed + 1), instrument)
    sky = torch.full((8,), instrument.sky_rms)
    exposure = torch.full((8,), instrument.exposure)
    generator = torch.Generator().manual_seed(seed + 2)
    image = add_noise(isolated.sum(1, keepdim=True), instrument, sky_rms=sky, exposure=exposure, generator=generator)
    magnitudes = []
    for point in (instrument.zero_point, zero_point):
        unit = 10 ** (0.4 * (point - instrument.zero_point))
        answer = deblender(unit * image, sky_rms=unit * sky, draws=200, passes=4, seed=seed)
        table = Posterior(answer.dataset.assign_attrs(zero_point=point)).summary()
        magnitudes.append(np.ma.filled(np.ma.asarray(table["mag"].value, dtype=float), np.nan))
    return float(np.nanmax(np.abs(magnitudes[0] - magnitudes[1])))


@benchmark("predictive")
@sized_option("--count", 12, 100, help="Blends drawn by GalSim.")
@sized_option("--draws", 400, 1000, help="Posterior draws.")
@sized_option("--passes", 16, 32, least=0, help="Monte Carlo dropout passes; 0: none.")
@weights_option
def main(run: Run, weights: Path | None, count: int, **sampling: int) -> None:
    """Compare posterior fluxes, rendered by GalSim, with the images that they were inferred from."""
    deblender = load(weights)
    with run.unfinished(deblender=deblender, count=count, **sampling) as kept:
        found = predictive_check(deblender, count=count, kept=kept, seed=run.seed, **sampling)
        table = predictive_table(found)
        table.meta["zero_point_error_mag"] = zero_point_error(deblender, seed=run.seed)
        run.write(table, figure=plot_predictive(found))


if __name__ == "__main__":
    main()
