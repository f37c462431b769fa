"""Time one blend by the network, by refinement and by the No-U-Turn sampler, side by side in one run on one core.

    pip install probdeblend
    python benchmarks/times.py

Blends are the generative model's own, whole stamps for the network and for refinement; the sampler gets the middle of
one of them, a quarter of the pixels, as for ``probdeblend reference``. Where pysersic is installed its sampler is timed
as well, on a blend with white noise (see ``pysersic_nuts.py``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import find_spec

import click
import torch

import probdeblend
from probdeblend.guides import default_guide
from probdeblend.model import BlendModel, Observed
from probdeblend.reference import Reference, sample_reference
from probdeblend.referencecheck import SIZE, reference_model
from probdeblend.refine import Refined, refine
from probdeblend.scene import STAMP_SIZE
from probdeblend.variational import fit_elbo

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
    if find_spec("pysersic") is not None:
        seconds[f"pysersic's, 2 x {draws} draws, {SIZE} pixels"] = pysersic_seconds(draws=draws, seed=seed)
    for name, value in seconds.items():
        click.echo(f"{name:50s} {value:9.3f} s, {value / next(iter(seconds.values())):9.0f} x")


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


def pysersic_seconds(*, draws: int, seed: int) -> float:
    """Return the seconds that pysersic's sampler takes for a blend with white noise, compilation included."""
    import warnings

    import jax
    import pysersic_nuts
    from numpyro.infer import init_to_value

    from probdeblend.latents import to_components

    model = reference_model(white=True)
    whole = BlendModel(model.prior, model.instrument, psf_growth=model.psf_growth)
    observed, unknown = whole.simulate(64, seed=seed)
    index = to_components(model.split(unknown)[0]).sersic_index
    blend = int((index.min(-1).values.flatten() > LEAST_INDEX).nonzero()[0])
    one = middle_of(Observed(*(value[[blend]] for value in observed)))
    light = model.light(model.split(unknown[[blend]])[0], torch.zeros(1)).sum(1)
    noise = model.noisy(light, torch.zeros(1), one).standard_deviation[0].numpy()
    values = pysersic_nuts.parameters(model, unknown[[blend]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitter = pysersic_nuts.prepared(model, one.image[0].numpy(), noise, values)
        settings = {"num_samples": draws, "num_warmup": draws // 2, "return_model": False}
        settings |= {"init_strategy": init_to_value(values=values), "mcmc_kwargs": {"progress_bar": False}}
        return timed(lambda: fitter.sample(jax.random.PRNGKey(seed), **settings))


if __name__ == "__main__":
    main()
