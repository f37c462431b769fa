"""Fit stored blends with pysersic's No-U-Turn sampler, and compare with the references of probdeblend.

Needs ``pip install "pysersic==0.1.5"``. Both codes see the same pixels, noise map and PSF, and fit two Sérsic profiles
on a flat sky. pysersic (Pasha & Miller 2023, doi:10.21105/joss.05703) takes pixels as independent and the PSF as known,
so it fits the blends with white noise, which were drawn that way. On drizzled noise it would be overconfident: the
noise of a sum over many pixels is 2.25 times what independent pixels have.

Three differences between the codes are removed. pysersic renders in Fourier space, where light wraps round at the
edges: it is given whole stamps, of which all but the middle is masked. Its 15 Gaussians per galaxy lack 0.4 % of the
light of an exponential disk: it gets 30 over a wider range. And its priors are flat here (in ln flux, ln half-light
radius, index, ellipticity, angle and position), so that its draws are weighted by the prior of probdeblend; both are
shown. The chi-square between the two renderers' images, for the same numbers, is in the table as well.
"""

from __future__ import annotations

import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray

from benchmarks._command import Run, benchmark, sized_option
from benchmarks.references import STORED, References, read_references, reference_model
from probdeblend.refinement.latents import LATENTS, to_components, to_latents
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.scene import STAMP_SIZE, Components

if TYPE_CHECKING:
    from pysersic import FitMulti

__all__ = ["fitter", "main", "parameters", "sample"]

FLUXES = [0, len(LATENTS)]
LEAST_INDEX, LARGEST_INDEX = 0.66, 6.0  # pysersic's sums of Gaussians begin at 0.65
LARGEST_ELLIPTICITY = 0.95
GAUSSIANS = {"n_sigma": 30, "frac_start": 0.003, "frac_end": 30.0}


@benchmark("pysersic_nuts", resume=False)
@click.argument("path", type=click.Path(path_type=Path), default=STORED)
@sized_option("--count", 1, 2, help="Blends with white noise.")
@sized_option("--draws", 100, 1000, least=50, help="Draws of each of two chains.")
def main(run: Run, path: Path, count: int, draws: int) -> None:
    """Fit blends with white noise of PATH by pysersic, and compare with the draws stored there.

    One row per blend and sampler: mean and standard deviation of ln flux of both galaxies and their correlation, and
    shift and ratio of these with respect to the stored ones, in standard deviations.
    """
    if find_spec("pysersic") is None:
        raise click.ClickException('pysersic is not installed: pip install "pysersic==0.1.5"')
    stored = read_references(path)
    blends = np.flatnonzero(stored.white & stored.converged)[:count].tolist()
    table = Table([row for blend in blends for row in _rows(stored, blend, draws=draws, seed=run.seed)])
    for name in table.colnames[2:]:
        table[name].info.format = ".3f"
    run.write(table)


def _rows(stored: References, blend: int, *, draws: int, seed: int) -> list[dict[str, object]]:
    """Fit one blend, and return what both codes find."""
    model = reference_model(white=True)
    observed = Observed(*(torch.from_numpy(getattr(stored, name)[[blend]]) for name in Observed._fields))
    reference = stored.draws[blend].reshape(-1, model.numbers).astype(float)
    middle = torch.from_numpy(reference.mean(0, keepdims=True)).float()
    light = model.light(model.split(middle)[0], torch.zeros(1)).sum(1)
    noise = model.noisy(light, torch.zeros(1), observed).standard_deviation[0].numpy()
    values = parameters(model, middle)
    began = time.perf_counter()
    fit = fitter(model, observed.image[0].numpy(), noise, values)
    found = sample(fit, values, draws=draws, seed=seed)
    seconds = time.perf_counter() - began
    edge = (STAMP_SIZE - model.size) // 2
    rendered = np.asarray(fit.renderer.render_for_model(values, ["sersic"] * 2, suffix=""))[edge:-edge, edge:-edge]
    apart = {"renderers_chi_square": np.square((rendered - light[0].numpy()) / noise).sum()}
    drawn, weight = _weighted(model, observed, found)
    same = {"probdeblend": (reference, None, stored.seconds[blend]), "pysersic, flat priors": (drawn, None, seconds)}
    same["pysersic, same prior"] = (drawn, weight, seconds)
    return [
        {"blend": blend, "sampler": name} | _moments(draws, weight, reference) | {"seconds": spent} | apart
        for name, (draws, weight, spent) in same.items()
    ]


def parameters(model: BlendModel, unknown: torch.Tensor) -> dict[str, float]:
    """Return pysersic's numbers of both galaxies and the sky, by its names."""
    latents, sky_level, _ = model.split(unknown)
    galaxies = to_components(latents)
    named = {
        "xc": galaxies.x,
        "yc": galaxies.y,
        "flux": galaxies.flux,
        "r_eff": galaxies.half_light_radius / model.instrument.pixel_scale / galaxies.axis_ratio.sqrt(),
        "n": galaxies.sersic_index,
        "ellip": 1 - galaxies.axis_ratio,
        "theta": galaxies.angle - np.pi / 2,
    }
    numbers = {f"{name}_{galaxy}": float(value[0, galaxy, 0]) for name, value in named.items() for galaxy in range(2)}
    return numbers | {"sky_back": float(sky_level[0])}


def fitter(model: BlendModel, image: NDArray, noise: NDArray, values: dict[str, float]) -> FitMulti:
    """Return pysersic's fitter, with flat priors around `values`."""
    from numpyro.distributions import LogUniform, Uniform
    from pysersic import FitMulti
    from pysersic.priors import PySersicMultiPrior
    from pysersic.rendering import FourierRenderer

    names = {"x": "xc", "y": "yc", "flux": "flux", "r": "r_eff"}
    catalog = {name: [values[f"{other}_{galaxy}"] for galaxy in range(2)] for name, other in names.items()}
    sky = {"sky_type": "flat", "sky_guess": 0.0, "sky_guess_err": model.sky_level}
    flat = {
        "xc": lambda value: Uniform(value - 2, value + 2),
        "yc": lambda value: Uniform(value - 2, value + 2),
        "flux": lambda value: LogUniform(value / 5, value * 5),
        "r_eff": lambda value: LogUniform(value / 5, value * 5),
        "n": lambda value: Uniform(LEAST_INDEX, LARGEST_INDEX),
        "ellip": lambda value: Uniform(0.0, LARGEST_ELLIPTICITY),
        "theta": lambda value: Uniform(value - np.pi / 2, value + np.pi / 2),
    }
    edge = (STAMP_SIZE - model.size) // 2
    whole, noise = np.pad(image, edge), np.pad(noise, edge, constant_values=1.0)
    masked = np.pad(np.zeros(image.shape, bool), edge, constant_values=True)
    settings = {"mask": masked, "renderer": FourierRenderer, "renderer_kwargs": GAUSSIANS}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # JAX arrays as static fields
        prior = PySersicMultiPrior(catalog | {"type": ["sersic"] * 2}, **sky)
        prior.reparam_dict.clear()
        for name, value in values.items():
            if (kind := name.rpartition("_")[0]) in flat:
                prior.set_custom_prior(name, flat[kind](value))
        return FitMulti(whole, noise, model.instrument.psf.numpy(), prior, **settings)


def sample(fit: FitMulti, values: dict[str, float], *, draws: int, seed: int) -> dict[str, NDArray]:
    """Return draws of two chains that start at `values`, by pysersic's names."""
    import jax
    from numpyro.infer import init_to_value

    settings = {"num_samples": draws, "num_warmup": draws // 2, "return_model": False}
    settings |= {"init_strategy": init_to_value(values=values), "mcmc_kwargs": {"progress_bar": False}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # chains run one after the other
        found = fit.sample(jax.random.PRNGKey(seed), **settings)
        return {name: np.array(part) for name, part in found.input.get_samples().items()}


def _weighted(model: BlendModel, observed: Observed, drawn: dict[str, NDArray]) -> tuple[NDArray, NDArray]:
    """Return draws in the order of ``BlendModel.split``, and their weights: the prior of the model over flat ones."""
    column = {
        name: torch.from_numpy(np.stack([drawn[f"{name}_{galaxy}"] for galaxy in range(2)], -1))[..., None].double()
        for name in ("xc", "yc", "flux", "r_eff", "n", "ellip", "theta")
    }
    ratio = 1 - column["ellip"]
    galaxies = Components(
        flux=column["flux"],
        half_light_radius=column["r_eff"] * model.instrument.pixel_scale * ratio.sqrt(),
        sersic_index=column["n"],
        axis_ratio=ratio,
        angle=column["theta"] + np.pi / 2,
        x=column["xc"],
        y=column["yc"],
        present=torch.ones_like(ratio, dtype=torch.bool),
    )
    sky = torch.from_numpy(drawn["sky_back"]).double()[:, None]
    unknown = torch.cat([to_latents(galaxies).flatten(1), torch.zeros_like(sky), torch.zeros_like(sky)], -1)
    # From the latents' density to that in pysersic's numbers: the index is a logit, and the stretch polar.
    fraction = (column["n"] - 0.5) / 5.5
    jacobian = (-2 * ratio.log() / ratio / (fraction * (1 - fraction))).log().sum((-2, -1))
    log_weight = (model.log_prior(unknown[:, None].float(), observed)[:, 0] + jacobian).numpy()
    unknown[:, -2:-1] = sky
    return unknown.numpy(), np.exp(log_weight - log_weight.max())


def _moments(drawn: NDArray, weight: NDArray | None, reference: NDArray) -> dict[str, float]:
    """Return moments of both ln fluxes, and how far they are from those of the reference."""
    mean = np.average(drawn[:, FLUXES], axis=0, weights=weight)
    covariance = np.cov(drawn[:, FLUXES], rowvar=False, aweights=weight)
    sd, scale = np.sqrt(np.diag(covariance)), reference[:, FLUXES].std(0, ddof=1)
    shift, ratio = (mean - reference[:, FLUXES].mean(0)) / scale, sd / scale
    pairs = {"mean": mean, "sd": sd, "shift": shift, "ratio": ratio}
    row = {f"{name}_{galaxy}": float(value[galaxy]) for name, value in pairs.items() for galaxy in range(2)}
    effective = len(drawn) if weight is None else float(weight.sum() ** 2 / np.square(weight).sum())
    return row | {"correlation": float(covariance[0, 1] / sd.prod()), "effective": effective}


if __name__ == "__main__":
    main()
