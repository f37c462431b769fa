"""Deblend groups of real galaxies that nobody trained or calibrated on: accuracy, coverage and flags, beside SEP.

The galaxies of a library (``python -m benchmarks.real_library``) are split into five folds by their names. Each is
tested by weights whose heads were trained further on three other folds, and by a calibrator fitted on a fourth, among
simulated sources. What is true of a galaxy in a group is its own Kron flux without noise and neighbors.

Rows are states of the weights: as given, without their calibrator, which may have seen the galaxies; with heads that
have seen others; and with a calibrator that has; and SEP with a calibrator of the same kind. All are asked about the
same images of one band, by random cameras and by CANDELS F160W. The network is given positions that err by 0.3 pixels,
SEP detects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path

import click
import matplotlib.pyplot as plt
import numpy as np
import torch
from astropy.stats import mad_std
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks._command import FILE, Run, benchmark, sized_option, weights_option
from benchmarks._real import blending_excess
from benchmarks._scenes import LEAST_SNR, ONE_CAMERA, Arrays, column, compare, formatted, joined, match, measure
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.metrics.coverage import bootstrap
from probdeblend.posterior.calibrator import LEAST, Calibrator
from probdeblend.posterior.draws import Posterior
from probdeblend.posterior.flags import Flag
from probdeblend.scene import LN_FLUX_UNIT, Scene, seed_of
from probdeblend.simulation.bank import Templates
from probdeblend.simulation.cameras import Cameras
from probdeblend.simulation.population import Population
from probdeblend.simulation.scenes import Simulator
from probdeblend.simulation.stream import SceneStream
from probdeblend.surveys.library import Galaxy, fold_of, identity_number, read_library
from probdeblend.surveys.templates import RealGalaxies
from probdeblend.training.calibrate import answers_of, fit_answers
from probdeblend.training.fields import simulated_fields
from probdeblend.training.recipes import train

__all__ = ["main", "numbers", "real_scenes", "worst"]

FOLDS = 5
SHIPPED = Path(str(files("probdeblend") / "data" / "weights.safetensors"))
NUMBERS = (1, 2, 3, 5)
SIDE = 96  # pixels
SNR = (20.0, 300.0)
NATIVE = 0.4  # fraction of the cameras
REAL = 0.5  # fraction of real galaxies where a network is trained or calibrated
JITTER = 0.3  # pixels, standard deviation of listed positions
WRONG, CONTESTED = 0.75, 0.5  # mag, and fraction of a source's light that others share
TELLING = Flag.DOUBTFUL | Flag.UNLISTED | Flag.BRIGHT | Flag.ANOMALY
WORST, COLUMNS = 20, 5
LEVELS = (0.68, 0.95)
SIGMAS = 3.0
THIRD = 1 / 3


@benchmark("real_galaxies")
@click.option("--library", type=FILE, required=True, help="Folder of a library of real galaxies.")
@sized_option("--count", 12, 400, help="Sources of each number per scene and fold, about.")
@sized_option("--steps", 2, 1500, help="Batches that heads are trained on.")
@sized_option("--fields", 5, 150, help="Fields that calibrators are fitted on.", least=5)
@click.option(
    "--fold", "folds", type=click.IntRange(0, FOLDS - 1), multiple=True, help="Folds to test.  [default: all]"
)
@weights_option
def main(
    run: Run, library: Path, count: int, steps: int, fields: int, folds: tuple[int, ...], weights: Path | None
) -> None:
    """Deblend groups of real galaxies that nobody trained or calibrated on: accuracy, coverage and flags, beside SEP.

    Per state of the weights and number of galaxies: coverage of sources, groups and totals with the ends of its 68 %
    band by bootstrap over galaxies, scatter on all sources and on those that SEP finds, the fraction beyond 0.75 mag,
    the interval score, the blending excess, and what flags say of errors beyond three sigma and of all others.
    """
    galaxies = [galaxy for galaxy in read_library(library) if galaxy.keep]
    found: dict[int, list[dict[str, Arrays]]] = {number: [] for number in NUMBERS}
    names = identity_number(",".join(sorted(galaxy.identity for galaxy in galaxies)))
    settings = {"galaxies": names, "count": count, "steps": steps, "fields": fields}
    with run.unfinished(deblender=load(weights), **settings) as kept:
        for fold in folds or range(FOLDS):
            methods = _methods(kept, galaxies, fold, weights, steps=steps, fields=fields, seed=run.seed)
            test = RealGalaxies([galaxy for galaxy in galaxies if fold_of(galaxy.identity) == fold])
            for number in NUMBERS:
                draw, scenes = partial(real_scenes, test, number), -(-count // number)
                seed = seed_of(run.seed, fold + 1, number)
                answers = compare(kept, f"{fold}-{number}", scenes, draw, methods, seed=seed, chunk=ONE_CAMERA)
                found[number].append(answers)
        together = {n: {name: joined(part[name] for part in parts) for name in parts[0]} for n, parts in found.items()}
        rows = (
            {"weights": name, "number": n} | numbers(arrays[name], arrays["SEP"])
            for name in next(iter(together.values()))
            for n, arrays in together.items()
        )
        run.write(formatted(rows), figure=worst(together))


def real_scenes(galaxies: RealGalaxies, number: int, count: int, seed: int) -> Scene:
    """Draw clustered scenes of real galaxies, taken by one camera of one band."""
    camera = Cameras(native_fraction=NATIVE, bands=(1.0, 0.0, 0.0)).sample(np.random.default_rng(seed))
    population = Population.default().replace(star_fraction=0.0, snr=SNR)
    simulator = Simulator(population, camera, (SIDE, SIDE), number, galaxies)
    return Scene.join(simulator.batches(count, seed=seed))


def _methods(
    kept: Path, galaxies: Sequence[Galaxy], fold: int, weights: Path | None, *, steps: int, fields: int, seed: int
) -> dict[str, Callable[[Scene], Arrays]]:
    """Return what is asked about the galaxies of a fold and has never seen them; what is trained is kept."""
    folds = [fold_of(galaxy.identity) for galaxy in galaxies]
    calibrating = (fold + 1) % FOLDS
    own = [galaxy for galaxy, part in zip(galaxies, folds, strict=True) if part not in (fold, calibrating)]
    other = RealGalaxies([galaxy for galaxy, part in zip(galaxies, folds, strict=True) if part == calibrating], REAL)
    path, calibration = kept / f"{fold}.safetensors", kept / f"{fold}.json"
    if not path.exists():
        templates = Templates(sources=RealGalaxies(own, REAL), seed=seed)
        stream = SceneStream(templates, seed=seed, bank=min(160, 10 + steps // 4))
        resume = path.with_name(f"{path.name}.partial").exists()
        train(path, stream=stream, steps=steps, start=weights or SHIPPED, trunk=False, resume=resume)
    if not calibration.exists():
        least = min(LEAST, 5 * fields)
        (kept / f"{fold}-fields").mkdir(exist_ok=True)
        ask = partial(simulated_fields, load(path), sources=other, seed=seed_of(seed, fold))
        answers = answers_of(ask, fields, kept / f"{fold}-fields", seed=seed)
        fit_answers(answers, least=least).calibrator.save(calibration)
    given, heads = load(weights), load(path, calibrator=calibration)
    asked = {"given": partial(given.scenes, calibrate=False), "heads": partial(heads.scenes, calibrate=False)}
    asked |= {"calibrated": heads.scenes}
    methods = {name: partial(_listed, scenes) for name, scenes in asked.items()}
    sep, beside = SepDeblender(), kept / f"{fold}-sep.json"
    if not beside.exists():
        _sep_calibrator(sep, other, seed_of(seed, fold), fields).save(beside)
    calibrator = Calibrator.open(beside)
    return methods | {"SEP": partial(_detected, lambda scene: calibrator(sep.scenes(scene)))}


def _sep_calibrator(sep: SepDeblender, galaxies: RealGalaxies, seed: int, fields: int) -> Calibrator:
    """Fit a calibrator to SEP's detections of other real galaxies."""
    batches = []
    for number in NUMBERS:
        for batch in range(fields):
            scene = real_scenes(galaxies, number, ONE_CAMERA, seed_of(seed, 1000 * number + batch))
            posterior = sep.scenes(scene)
            matched, row = np.full(len(posterior), -1), match(scene, posterior)
            matched[row[row >= 0]] = np.flatnonzero(row >= 0)
            batches.append((posterior, scene, matched))
    return Calibrator.fit(batches, least=min(LEAST, 5 * fields))


def _listed(answer: Callable[..., Posterior], scene: Scene) -> Arrays:
    """Measure Kron fluxes at positions that err, and of the same galaxies alone."""
    generator = torch.Generator().manual_seed(len(scene.x) + int(scene.x.sum()))
    error = JITTER * torch.randn(2, len(scene.x), generator=generator)
    x, y = (v.clamp(0, SIDE - 1) for v in (scene.x + error[0], scene.y + error[1]))
    posterior = answer(scene, positions=(scene.scene, x, y))
    found = measure(scene, posterior, kind="auto", row=np.arange(len(scene.x)))
    found |= {"identity": scene.identity.numpy()} | {name: column(posterior, name) for name in ("flags", "anomaly")}
    found["excess"] = blending_excess(_Asked(answer), scene)["z"]
    return found | {"image": _pictures(scene)}


class _Asked(Deblends):
    """What answers as a deblender does."""

    def __init__(self, answer: Callable[..., Posterior]) -> None:
        self.scenes = answer


def _detected(answer: Callable[[Scene], Posterior], scene: Scene) -> Arrays:
    """Measure the Kron fluxes of detections."""
    posterior = answer(scene)
    row = match(scene, posterior)
    flags = np.where(row >= 0, np.append(column(posterior, "flags"), 0)[row], 0)
    found = measure(scene, posterior, kind="auto", row=row)
    known = {"flags": flags, "identity": scene.identity.numpy()}
    known |= dict.fromkeys(("anomaly", "excess"), np.full(len(row), np.nan))
    return found | known | {"image": _pictures(scene)}


def _pictures(scene: Scene) -> NDArray[np.float16]:
    """Return the image around each source, over sky noise, and its own light ``(source, 2, y, x)``."""
    rms = scene.sky_rms[..., None, None]
    images = torch.stack([(scene.image / rms)[scene.scene, 0], (scene.light / rms[scene.scene])[:, 0]], 1)
    return images.half().numpy()


def numbers(found: Arrays, beside: Arrays) -> dict[str, float]:
    """Return accuracy, coverage and flags of sources that are bright enough, and the scatter of those that SEP finds.

    `wrong` is the fraction of errors beyond 0.75 mag, `wrong_contested` that of these whose light is mostly contested.
    Coverage comes with the ends of its 68 % interval by bootstrap over galaxies; `excess` is the scatter of the
    blending excess, `caught` the fraction of errors beyond three sigma that a flag tells of, `false_flags` that of all
    others that have one. `ratio_familiar` and `ratio_strange` are the 68th percentiles of errors in ln flux over the
    half-width of their interval, where the anomaly score is in its lowest and in its highest third.
    """
    bright = found["snr"] >= LEAST_SNR
    chosen = {name: values[bright] for name, values in found.items() if not name.startswith(("group_", "scene_"))}
    error = -LN_FLUX_UNIT * np.log(chosen["estimate"] / chosen["flux"])
    known = np.isfinite(error)
    row = {"sources": int(bright.sum()), "galaxies": len(set(chosen["identity"])), "detected": known.mean()}
    row |= {"bias_mag": np.median(error[known]), "nmad_mag": mad_std(error[known])}
    seen = known & np.isfinite(beside["estimate"][bright])
    row |= {"of_sep": mad_std(error[seen])}
    wrong, contested = np.abs(error[known]) > WRONG, chosen["contested"][known] > CONTESTED
    row |= {"wrong": wrong.mean(), "wrong_contested": contested[wrong].mean() if wrong.any() else np.nan}
    row["score"] = chosen["score"][known].mean()
    row["score_of_sep"] = chosen["score"][seen].mean()
    for level in LEVELS:
        inside = np.abs(2 * chosen["rank"][known] - 1) <= level
        low, high = bootstrap(lambda rows, inside=inside: inside[rows].mean(), chosen["identity"][known])
        row |= {f"coverage_{100 * level:g}": inside.mean(), f"low_{100 * level:g}": low, f"high_{100 * level:g}": high}
    several = found["group_size"] >= min(2, found["group_size"].max(initial=1))
    joint, total = found["group_joint"][several], found["group_total"][several]
    row |= {"joint_68": np.mean(joint[np.isfinite(joint)] <= LEVELS[0])}
    row |= {"total_68": np.mean(np.abs(2 * total[np.isfinite(total)] - 1) <= LEVELS[0])}
    excess = chosen["excess"][np.isfinite(chosen["excess"])]
    far = np.abs(error[known]) > SIGMAS * LN_FLUX_UNIT * chosen["width"][known]
    flagged = (chosen["flags"][known].astype(int) & int(TELLING)) > 0
    row |= {"excess": mad_std(excess) if len(excess) else np.nan, "beyond": far.mean()}
    row |= {"caught": flagged[far].mean() if far.any() else np.nan, "false_flags": flagged[~far].mean()}
    ratio, strange = np.abs(error[known]) / (LN_FLUX_UNIT * chosen["width"][known]), chosen["anomaly"][known]
    for name, edges in (("familiar", (0, THIRD)), ("strange", (1 - THIRD, 1))):
        low, high = np.quantile(strange, edges)
        own = ratio[(strange >= low) & (strange <= high)]
        row[f"ratio_{name}"] = np.quantile(own, LEVELS[0]) if len(own) else np.nan
    return row


def worst(together: Mapping[int, Mapping[str, Arrays]]) -> Figure:
    """Draw the answers that are farthest off in sigma, the image, and the light of the source.

    Titles tell the error, which part of the source's light in the image its Kron flux holds, and the flags.
    """
    parts = [arrays["calibrated"] for arrays in together.values()]
    names = ("image", "flux", "estimate", "width", "flags", "snr", "brightness")
    image, flux, estimate, width, flags, snr, auto = (np.concatenate([part[name] for part in parts]) for name in names)
    number = np.concatenate([np.full(len(part["flux"]), n) for n, part in zip(together, parts, strict=True)])
    sigma = np.where(snr >= LEAST_SNR, np.log(estimate / flux) / width, 0)
    figure, axes = plt.subplots(2 * WORST // COLUMNS, COLUMNS, figsize=(2.4 * COLUMNS, 5 * WORST // COLUMNS))
    for place, i in enumerate(np.argsort(-np.abs(sigma))[:WORST]):
        for part in range(2):
            axis = axes[2 * (place // COLUMNS) + part, place % COLUMNS]
            axis.imshow(np.arcsinh(image[i, part].astype(float)), origin="lower", cmap="gray_r", vmin=-1, vmax=5)
            y, x = np.unravel_index(image[i, 1].argmax(), image[i, 1].shape)
            axis.plot(x, y, "o", markersize=14, fillstyle="none", color="C3")
            axis.set_axis_off()
        off = f"{LN_FLUX_UNIT * np.log(estimate[i] / flux[i]):+.2f} mag, {sigma[i]:+.1f} sigma of {number[i]}"
        kron = f"Kron flux {auto[i] / image[i, 1].sum(dtype=float):.2f} of its light here"
        axes[2 * (place // COLUMNS), place % COLUMNS].set_title(f"{off}\n{kron}\n{Flag(int(flags[i]))}", fontsize=7)
    figure.tight_layout(pad=0.3)
    return figure


if __name__ == "__main__":
    main()
