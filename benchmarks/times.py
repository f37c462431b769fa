"""Time one blend by the network, by refinement and by the No-U-Turn sampler, side by side in one run on one core.

    pip install probdeblend
    python benchmarks/times.py

Blends are the generative model's own, whole stamps for the network and for refinement; the sampler gets the middle of
one of them, a quarter of the pixels, as for ``probdeblend reference``. Where AstroPhot (Stone et al. 2023,
doi:10.1093/mnras/stad2477) or pysersic is installed it is timed as well, on the middle of a blend with white noise,
started from the truth: AstroPhot's Levenberg-Marquardt fit, covariance included and compilation not, and pysersic's
sampler, compilation included (see ``pysersic_nuts.py``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib.util import find_spec

import click
import torch
from numpy.typing import NDArray
from scipy.special import gamma, gammaincinv
from torch import Tensor

import probdeblend
from benchmarks.references import SIZE, reference_model
from probdeblend.refinement.guides import default_guide
from probdeblend.refinement.latents import to_components
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.refinement.nuts import Reference, sample_reference
from probdeblend.refinement.refine import Refined, refine
from probdeblend.refinement.variational import fit_elbo
from probdeblend.scene import STAMP_SIZE

LEAST_INDEX = 0.8


@click.command()
@click.option("--count", type=click.IntRange(1), default=64, show_default=True, help="Blends for the network.")
@click.option("--refined", type=click.IntRange(1), default=8, show_default=True, help="Blends to refine.")
@click.option("--draws", type=click.IntRange(50), default=600, show_default=True, help="Draws of each of two chains.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same blends.")
def main(count: int, refined: int, draws: int, seed: int) -> None:
    """Print seconds a blend, and how many times as long as the network that is."""
    torch.set_num_threads(1)
    deblender = probdeblend.load()
    guide = default_guide(deblender)
    model = BlendModel(probdeblend.Prior.default(), deblender.instrument)
    observed, _ = model.simulate(max(count, refined), seed=seed)
    stamps, noise = (observed.image * observed.sky_rms[:, None, None]).numpy(), observed.sky_rms.numpy()
    deblender(stamps[:1], sky_rms=noise[:1])  # the first call loads libraries
    some = Observed(*(value[:refined] for value in observed))
    with torch.no_grad():
        start = guide(some.image[:, None]).mean
    seconds = {
        "network, 1000 draws of 32 passes": timed(lambda: deblender(stamps[:count], sky_rms=noise[:count])) / count,
        "refinement, 400 draws": timed(lambda: refine(model, some, start)) / refined,
        "refinement, ELBO": timed(lambda: refine(model, some, start, fits=[fit_elbo])) / refined,
    }
    small, cut = reference_model(), middle_of(some)
    answer = refine(small, cut, start)
    name = f"No-U-Turn sampler, 2 x {draws} draws, {SIZE} pixels"
    seconds[name] = timed(lambda: sampled(small, cut, answer, draws=draws, seed=seed))
    if find_spec("astrophot") is not None:
        seconds[f"AstroPhot, best fit and covariance, {SIZE} pixels"] = astrophot_seconds(seed=seed)
    if find_spec("pysersic") is not None:
        seconds[f"pysersic, compiling too, 2 x {draws} draws, {SIZE} pixels"] = pysersic_seconds(draws=draws, seed=seed)
    for name, value in seconds.items():
        click.echo(f"{name:56s} {value:9.3f} s, {value / next(iter(seconds.values())):9.0f} x")


def timed(work: Callable[[], object]) -> float:
    """Return the seconds that some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def middle_of(observed: Observed) -> Observed:
    """Return the middles of stamps."""
    edge = (STAMP_SIZE - SIZE) // 2
    return observed._replace(image=observed.image[:, edge:-edge, edge:-edge])


def sampled(model: BlendModel, observed: Observed, refined: Refined, *, draws: int, seed: int) -> Reference:
    """Sample the first blend whose refinement can be started from."""
    blend = int(refined.usable.argmax())
    return sample_reference(model, observed, refined, blend=blend, draws=draws, seed=seed, progress=False)


def white_blend(*, seed: int) -> tuple[BlendModel, NDArray, NDArray, Tensor]:
    """Return a model with white noise, the middle of a blend and its noise, and what is true of it ``(1, number)``."""
    model = reference_model(white=True)
    whole = BlendModel(model.prior, model.instrument, psf_growth=model.psf_growth)
    observed, unknown = whole.simulate(64, seed=seed)
    index = to_components(model.split(unknown)[0]).sersic_index
    blend = int((index.amin((-2, -1)) > LEAST_INDEX).nonzero()[0])
    one = middle_of(Observed(*(value[[blend]] for value in observed)))
    light = model.light(model.split(unknown[[blend]])[0], torch.zeros(1)).sum(1)
    noise = model.noisy(light, torch.zeros(1), one).standard_deviation
    return model, one.image[0].double().numpy(), noise[0].double().numpy(), unknown[[blend]]


def astrophot_seconds(*, seed: int) -> float:
    """Return the seconds that AstroPhot takes to fit two Sérsic profiles and a flat sky, compilation left out."""
    import astrophot

    astrophot.config.set_logging_output(stdout=False)
    model, image, noise, unknown = white_blend(seed=seed)
    target = astrophot.TargetImage(data=image, variance=noise**2)
    settings = {"target": target, "psf": astrophot.PSFImage(data=model.instrument.psf.double().numpy())}
    kind = {"model_type": "sersic galaxy model", "psf_convolve": True}

    def fitted() -> None:
        galaxies = [
            astrophot.Model(name=f"galaxy_{number}", **kind, **settings, **values)
            for number, values in enumerate(astrophot_values(model, unknown))
        ]
        sky = astrophot.Model(name="sky", model_type="flat sky model", target=target, I0=0.0)
        blend = astrophot.Model(name="blend", model_type="group model", models=[*galaxies, sky], target=target)
        blend.initialize()
        found = astrophot.fit.LM(blend, verbose=0).fit()
        if "success" not in found.message:
            raise RuntimeError(f"AstroPhot's fit must converge, got {found.message!r}")

    fitted()
    return timed(fitted)


def astrophot_values(model: BlendModel, unknown: Tensor) -> list[dict[str, object]]:
    """Return what AstroPhot calls the numbers of each galaxy."""
    galaxies = to_components(model.split(unknown)[0])
    edge = (STAMP_SIZE - SIZE) / 2
    found = []
    for galaxy in range(model.galaxies):
        one = {name: float(getattr(galaxies, name)[0, galaxy, 0]) for name in vars(galaxies)}
        index, ratio = one["sersic_index"], one["axis_ratio"]
        radius = one["half_light_radius"] / model.instrument.pixel_scale / math.sqrt(ratio)
        # The brightness at the half-light radius: Graham & Driver 2005, doi:10.1071/AS05001, equation 4.
        scale = gammaincinv(2 * index, 0.5)
        light = 2 * math.pi * index * math.exp(scale) * scale ** (-2 * index) * gamma(2 * index)
        brightness = one["flux"] / (radius**2 * ratio * light)
        shape = {"q": ratio, "PA": (one["angle"] - math.pi / 2) % math.pi, "n": index, "Re": radius, "Ie": brightness}
        found.append(shape | {"center": [one["x"] - edge, one["y"] - edge]})
    return found


def pysersic_seconds(*, draws: int, seed: int) -> float:
    """Return the seconds that pysersic's sampler takes, compilation included."""
    import warnings

    import jax
    import pysersic_nuts
    from numpyro.infer import init_to_value

    model, image, noise, unknown = white_blend(seed=seed)
    values = pysersic_nuts.parameters(model, unknown)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitter = pysersic_nuts.prepared(model, image, noise, values)
        settings = {"num_samples": draws, "num_warmup": draws // 2, "return_model": False}
        settings |= {"init_strategy": init_to_value(values=values), "mcmc_kwargs": {"progress_bar": False}}
        return timed(lambda: fitter.sample(jax.random.PRNGKey(seed), **settings))


if __name__ == "__main__":
    main()
