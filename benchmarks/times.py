"""Time the network, refinement and the No-U-Turn sampler per blend, side by side in one run on one core.

Blends are the generative model's own, whole stamps for the network and for refinement; the sampler gets the middle of
one of them, a quarter of the pixels, as in `benchmarks.sample_references`. Where AstroPhot (Stone et al. 2023,
doi:10.1093/mnras/stad2477) or pysersic is installed it is timed as well, on the middle of a blend with white noise,
started from the truth: AstroPhot's Levenberg-Marquardt fit, covariance included and compilation not, and pysersic's
sampler, compilation included (see `benchmarks.pysersic_nuts`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from astropy.table import Table
from numpy.typing import NDArray
from scipy.special import gamma, gammaincinv
from torch import Tensor

from benchmarks import pysersic_nuts
from benchmarks._command import Run, benchmark, load_with_guide, sized_option
from benchmarks.references import SIZE, reference_model
from probdeblend.refinement.importance import refine
from probdeblend.refinement.latents import to_components
from probdeblend.refinement.model import BlendModel, Observed
from probdeblend.refinement.nuts import sample_reference
from probdeblend.scene import STAMP_SIZE
from probdeblend.simulation.prior import Prior

__all__ = ["main"]

LEAST_INDEX = 0.8


@benchmark("times", resume=False)
@sized_option("--count", 8, 64, help="Blends for the network.")
@sized_option("--refined", 2, 8, help="Blends to refine.")
@sized_option("--draws", 50, 600, least=50, help="Draws of each of two chains.")
def main(run: Run, count: int, refined: int, draws: int) -> None:
    """Time each method per blend on one core, and state how many times as long as the network it takes."""
    torch.set_num_threads(1)
    deblender, guide = load_with_guide(None, None)
    model = BlendModel(Prior.default(), deblender.instrument)
    observed, _ = model.simulate(max(count, refined), seed=run.seed)
    stamps, noise = (observed.image * observed.sky_rms[:, None, None]).numpy(), observed.sky_rms.numpy()
    deblender(stamps[:1], sky_rms=noise[:1])  # the first call loads libraries
    some = Observed(*(value[:refined] for value in observed))
    with torch.no_grad():
        start = guide(some.image[:, None]).mean
    seconds = {
        "network, 1000 draws of 32 passes": _timed(lambda: deblender(stamps[:count], sky_rms=noise[:count])) / count,
        "refinement, 400 draws": _timed(lambda: refine(model, some, start)) / refined,
    }
    small, cut = reference_model(), _middle_of(some)
    answer = refine(small, cut, start)
    sampling = {"blend": int(answer.usable.argmax()), "draws": draws, "seed": run.seed, "progress": False}
    name = f"No-U-Turn sampler, 2 x {draws} draws, {SIZE} pixels"
    seconds[name] = _timed(lambda: sample_reference(small, cut, answer, **sampling))
    if find_spec("astrophot") is not None:
        seconds[f"AstroPhot, best fit and covariance, {SIZE} pixels"] = _astrophot_seconds(seed=run.seed)
    if find_spec("pysersic") is not None:
        name = f"pysersic, compiling too, 2 x {draws} draws, {SIZE} pixels"
        seconds[name] = _pysersic_seconds(draws=draws, seed=run.seed)
    table = Table({"method": list(seconds), "seconds": list(seconds.values())})
    table["over_network"] = table["seconds"] / table["seconds"][0]
    table["seconds"].info.format, table["over_network"].info.format = ".3f", ".0f"
    run.write(table)


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _middle_of(observed: Observed) -> Observed:
    edge = (STAMP_SIZE - SIZE) // 2
    return observed._replace(image=observed.image[:, edge:-edge, edge:-edge])


def _white_blend(*, seed: int) -> tuple[BlendModel, NDArray, NDArray, Tensor]:
    """Return a model with white noise, the middle of a blend and its noise, and what is true of it ``(1, number)``."""
    model = reference_model(white=True)
    whole = BlendModel(model.prior, model.instrument, psf_growth=model.psf_growth)
    observed, unknown = whole.simulate(64, seed=seed)
    index = to_components(model.split(unknown)[0]).sersic_index
    blend = int((index.amin((-2, -1)) > LEAST_INDEX).nonzero()[0])
    one = _middle_of(Observed(*(value[[blend]] for value in observed)))
    light = model.light(model.split(unknown[[blend]])[0], torch.zeros(1)).sum(1)
    noise = model.noisy(light, torch.zeros(1), one).standard_deviation
    return model, one.image[0].double().numpy(), noise[0].double().numpy(), unknown[[blend]]


def _astrophot_seconds(*, seed: int) -> float:
    """Return the seconds that AstroPhot takes to fit two Sérsic profiles and a flat sky, compilation left out."""
    import astrophot

    astrophot.config.set_logging_output(stdout=False)
    model, image, noise, unknown = _white_blend(seed=seed)
    target = astrophot.TargetImage(data=image, variance=noise**2)
    settings = {"target": target, "psf": astrophot.PSFImage(data=model.instrument.psf.double().numpy())}
    kind = {"model_type": "sersic galaxy model", "psf_convolve": True}

    def fit() -> None:
        galaxies = [
            astrophot.Model(name=f"galaxy_{number}", **kind, **settings, **values)
            for number, values in enumerate(_astrophot_values(model, unknown))
        ]
        sky = astrophot.Model(name="sky", model_type="flat sky model", target=target, I0=0.0)
        blend = astrophot.Model(name="blend", model_type="group model", models=[*galaxies, sky], target=target)
        blend.initialize()
        found = astrophot.fit.LM(blend, verbose=0).fit()
        if "success" not in found.message:
            raise RuntimeError(f"AstroPhot's fit must converge, got {found.message!r}")

    fit()
    return _timed(fit)


def _astrophot_values(model: BlendModel, unknown: Tensor) -> list[dict[str, object]]:
    """Return AstroPhot's parameters of each galaxy, by its names."""
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


def _pysersic_seconds(*, draws: int, seed: int) -> float:
    model, image, noise, unknown = _white_blend(seed=seed)
    values = pysersic_nuts.parameters(model, unknown)
    fitter = pysersic_nuts.fitter(model, image, noise, values)
    return _timed(lambda: pysersic_nuts.sample(fitter, values, draws=draws, seed=seed))


if __name__ == "__main__":
    main()
