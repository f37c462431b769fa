"""Fit stored blends with pysersic's No-U-Turn sampler, and compare with the references of probdeblend.

    pip install probdeblend "pysersic==0.1.5"
    python benchmarks/pysersic_nuts.py [FILE]

FILE is what ``probdeblend reference`` wrote; that of the package by default. Both codes see the same pixels, noise map
and PSF, and fit two Sérsic profiles on a flat sky. pysersic (Pasha & Miller 2023, doi:10.21105/joss.05703) takes pixels
as independent and the PSF as known, so it fits the blends with white noise, which were drawn that way. On drizzled
noise it would be overconfident: that of a sum over many pixels is 2.25 times what independent pixels have.

Three things are evened out. pysersic renders in Fourier space, where light wraps round at the edges: it is given whole
stamps, of which all but the middle is masked. Its 15 Gaussians a galaxy lack 0.4 % of the light of an exponential disk:
it gets 30 over a wider range. And its priors are flat here (in ln flux, ln half-light radius, index, ellipticity, angle
and position), so that its draws are weighted by the prior of probdeblend; both are shown. By how much the two renderers
still differ, for the same numbers, is printed too.
"""

from __future__ import annotations

import time
import warnings

import click
import jax
import numpy as np
import torch
from numpy.typing import NDArray
from numpyro.distributions import LogUniform, Uniform
from numpyro.infer import init_to_value
from pysersic import FitMulti
from pysersic.priors import PySersicMultiPrior
from pysersic.rendering import FourierRenderer

from benchmarks.references import StoredReferences, read_references, reference_model
from probdeblend.refinement.latents import LATENTS, to_components, to_latents
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.scene import STAMP_SIZE, Components

FLUXES = [0, len(LATENTS)]
BLENDS = 2
LEAST_INDEX, LARGEST_INDEX = 0.66, 6.0  # pysersic's sums of Gaussians begin at 0.65
LARGEST_ELLIPTICITY = 0.95
GAUSSIANS = {"n_sigma": 30, "frac_start": 0.003, "frac_end": 30.0}


@click.command()
@click.argument("path", required=False)
@click.option("--draws", type=click.IntRange(50), default=1000, show_default=True, help="Draws of each of two chains.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same answer.")
def main(path: str | None, draws: int, seed: int) -> None:
    """Fit two blends with white noise."""
    stored = read_references(path)
    for blend in np.flatnonzero(stored.white & stored.converged)[:BLENDS].tolist():
        compare(stored, blend, draws=draws, seed=seed)


def compare(stored: StoredReferences, blend: int, *, draws: int, seed: int) -> None:
    """Fit one blend, and print what both codes say."""
    model = reference_model(white=True)
    taken = Observed(*(torch.from_numpy(getattr(stored, name)[[blend]]) for name in Observed._fields))
    reference = stored.draws[blend].reshape(-1, model.numbers).astype(float)
    middle = torch.from_numpy(reference.mean(0, keepdims=True)).float()
    light = model.light(model.split(middle)[0], torch.zeros(1)).sum(1)
    noise = model.noisy(light, torch.zeros(1), taken).standard_deviation[0].numpy()
    values = parameters(model, middle)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # chains run one after the other; JAX arrays as static fields
        fitter = prepared(model, taken.image[0].numpy(), noise, values)
        rendered = fitter.renderer.render_for_model(values, ["sersic"] * 2, suffix="")
        found = fitter.sample(
            jax.random.PRNGKey(seed),
            num_samples=draws,
            num_warmup=draws // 2,
            init_strategy=init_to_value(values=values),
            mcmc_kwargs={"progress_bar": False},
            return_model=False,
        )
    seconds = time.perf_counter() - began
    apart = (middle_of(np.asarray(rendered), model.size) - light[0].numpy()) / noise
    drawn, weight = weighted(model, taken, {name: np.array(part) for name, part in found.input.get_samples().items()})
    even = np.ones(len(reference))
    click.echo(f"blend {blend}: renderers differ by a chi-square of {np.square(apart).sum():.2f}")
    tell("probdeblend", reference, even, reference, f"{stored.seconds[blend]:.0f} s")
    tell("pysersic, flat priors", drawn, np.ones(len(drawn)), reference, f"{seconds:.0f} s")
    effective = f"{weight.sum() ** 2 / np.square(weight).sum():.0f} of {len(weight)} draws effective"
    tell("pysersic, same prior", drawn, weight, reference, effective)


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


def prepared(model: BlendModel, image: NDArray, noise: NDArray, values: dict[str, float]) -> FitMulti:
    """Return pysersic's fitter, with flat priors about a guess."""
    names = {"x": "xc", "y": "yc", "flux": "flux", "r": "r_eff"}
    catalog = {name: [values[f"{other}_{galaxy}"] for galaxy in range(2)] for name, other in names.items()}
    prior = PySersicMultiPrior(
        catalog | {"type": ["sersic"] * 2}, sky_type="flat", sky_guess=0.0, sky_guess_err=model.sky_level
    )
    prior.reparam_dict.clear()
    for name, value in values.items():
        if name.startswith(("xc", "yc")):
            flat = Uniform(value - 2, value + 2)
        elif name.startswith(("flux", "r_eff")):
            flat = LogUniform(value / 5, value * 5)
        elif name.startswith("n_"):
            flat = Uniform(LEAST_INDEX, LARGEST_INDEX)
        elif name.startswith("ellip"):
            flat = Uniform(0.0, LARGEST_ELLIPTICITY)
        elif name.startswith("theta"):
            flat = Uniform(value - np.pi / 2, value + np.pi / 2)
        else:
            continue
        prior.set_custom_prior(name, flat)
    edge = (STAMP_SIZE - model.size) // 2
    whole, noise = np.pad(image, edge), np.pad(noise, edge, constant_values=1.0)
    masked = np.pad(np.zeros(image.shape, bool), edge, constant_values=True)
    settings = {"mask": masked, "renderer": FourierRenderer, "renderer_kwargs": GAUSSIANS}
    return FitMulti(whole, noise, model.instrument.psf.numpy(), prior, **settings)


def middle_of(image: NDArray, size: int) -> NDArray:
    """Return the middle of a whole stamp."""
    edge = (STAMP_SIZE - size) // 2
    return image[edge:-edge, edge:-edge]


def weighted(model: BlendModel, taken: Observed, drawn: dict[str, NDArray]) -> tuple[NDArray, NDArray]:
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
    log_weight = (model.log_prior(unknown[:, None].float(), taken)[:, 0] + jacobian).numpy()
    unknown[:, -2:-1] = sky
    return unknown.numpy(), np.exp(log_weight - log_weight.max())


def tell(name: str, drawn: NDArray, weight: NDArray, reference: NDArray, rest: str) -> None:
    """Print means, standard deviations and correlation of both ln fluxes, and how far they are from the reference."""
    mean = np.average(drawn[:, FLUXES], axis=0, weights=weight)
    covariance = np.cov(drawn[:, FLUXES], rowvar=False, aweights=weight)
    wanted = np.cov(reference[:, FLUXES], rowvar=False)
    sd, scale = np.sqrt(np.diag(covariance)), np.sqrt(np.diag(wanted))
    shift = (mean - reference[:, FLUXES].mean(0)) / scale
    ratio = sd / scale
    click.echo(
        f"  {name:22s} ln flux {mean[0]:.4f} {mean[1]:.4f}, sd {sd[0]:.4f} {sd[1]:.4f}, "
        f"correlation {covariance[0, 1] / sd.prod():+.2f}; "
        f"shift {shift[0]:+.2f} {shift[1]:+.2f} sd, ratio {ratio[0]:.2f} {ratio[1]:.2f}; {rest}"
    )


if __name__ == "__main__":
    main()
