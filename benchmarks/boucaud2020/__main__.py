"""The command: simulate the pairs, train the networks of the paper, and compare with SEP and the scene network."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, kept_arrays, sized_option, weights_option
from benchmarks._scenes import column, flat_draws, formatted, match
from benchmarks.boucaud2020 import figures
from benchmarks.boucaud2020.pairs import CHUNK, Pairs, draw, make_pairs
from benchmarks.boucaud2020.statistics import CASES, published_results, summarize
from benchmarks.boucaud2020.train import estimate, networks, parameters, train
from benchmarks.pairs import paper_rows
from probdeblend._files import output_folder
from probdeblend.deblending.deblender import Deblends
from probdeblend.deblending.sep import SepDeblender
from probdeblend.deblending.weights import load
from probdeblend.metrics.masks import iou
from probdeblend.scene import GALAXY_TYPES, seed_of

__all__ = ["main"]

PICTURES = ("figure_5", "figure_6", "figure_7", "figure_8", "figure_9", "figure_12")
FILES = ("boucaud2020.ecsv", "boucaud2020.json", *(f"{name}.png" for name in PICTURES))
TEST_SHARE = 0.2  # of the number of training pairs
SMALL_WIDTH, SMALL_EPOCHS, FULL_EPOCHS = 0.0625, 2, 200


@benchmark("boucaud2020")
@sized_option("--pairs", 96, 25_000, least=16, help="Pairs to train on; a fifth as many to test.")
@click.option("--width", type=click.FloatRange(0, 1, min_open=True), help="Filters over the published number.")
@click.option("--epochs", type=click.IntRange(1), help="Epochs of each stage, at most.")
@weights_option
def main(run: Run, pairs: int, width: float | None, epochs: int | None, weights: Path | None) -> None:
    """Train the networks of Boucaud et al. (2020) on simulated pairs, and compare.

    By default a sixteenth of the published width and two epochs; with --full the published size: 25,000 pairs, full
    width and 200 epochs at most, days on a CPU. Beside them stand SEP by the rule of the paper, the scene network with
    detected positions, and the numbers published for real galaxies. All are judged on AUTO fluxes.
    """
    torch.set_num_threads(1)
    width = width or (1.0 if run.full else SMALL_WIDTH)
    epochs = epochs or (FULL_EPOCHS if run.full else SMALL_EPOCHS)
    size = {f"millions of parameters, {name}": parameters(network) for name, network in networks(1.0).items()}
    deblender = load(weights)
    with run.unfinished(deblender=deblender, pairs=pairs, width=width, epochs=epochs) as kept:
        sets = {
            name: make_pairs(kept, name, count, seed=seed_of(run.seed, number))
            for number, (name, count) in enumerate((("train", pairs), ("test", round(TEST_SHARE * pairs))))
        }
        test = sets["test"]
        fluxes, overlap = {}, {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(run.seed)
            trained = {}
            for name, network in networks(width).items():
                trained |= train(network, sets["train"], kept, name, epochs=epochs, seed=run.seed)
        for name, network in trained.items():
            flux, mask = estimate(network, test)
            if np.isfinite(flux).any():
                fluxes[name] = flux
            if mask is not None:
                overlap[name] = iou(mask, test.mask)
        scenes = _others(kept, deblender, test, seed=seed_of(run.seed, 1))
        fluxes |= {"scene network": scenes["network"], "SEP": scenes["sep"]}
        overlap |= {"scene network": scenes["network_iou"]}
        _write(run, test, fluxes, overlap, scenes["case"], size | {"width": width, "epochs": epochs, "pairs": pairs})


def _others(kept: Path, deblender: Deblends, test: Pairs, *, seed: int) -> dict[str, NDArray]:
    """Ask the scene network and SEP about the scenes that the test set was made of."""
    parts = []
    for first in tqdm(range(0, len(test), CHUNK), desc="scenes", unit="chunk", leave=False):
        make = partial(_answers, deblender, min(CHUNK, len(test) - first), seed_of(seed, first // CHUNK + 1))
        parts.append(kept_arrays(kept / f"scenes-{first:06d}.npz", make))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _answers(deblender: Deblends, count: int, seed: int) -> dict[str, NDArray]:
    """Return AUTO fluxes over the noise of one sky ``(pair, 2)``, IoU of masks, and what SEP found."""
    scene, mask = draw(count, seed)
    sky = (scene.sky_rms[:, 0] / 2**0.5).double().numpy()[:, None]
    posterior = deblender.scenes(scene)
    row = match(scene, posterior)
    median = np.append(np.median(flat_draws(posterior, "auto")[..., 0], 0), np.nan)
    flux = median[row].reshape(count, 2) / sky
    probability = np.zeros(mask.shape, dtype=np.float32)
    for number, source in enumerate(row):
        if source >= 0:
            part, (top, left) = posterior.cutouts.mask[source], posterior.cutouts.corner[source]
            probability[number // 2, number % 2, top : top + part.shape[0], left : left + part.shape[1]] = part
    sep = SepDeblender(pairs=True).scenes(scene)
    rows = paper_rows(scene, sep).reshape(count, 2)
    measured = np.median(flat_draws(sep, "auto")[..., 0], 0)
    found = np.bincount(column(sep, "scene"), minlength=count)
    alone = np.where(rows[:, 0] >= 0, CASES.index("central alone"), CASES.index("companion alone"))
    case = np.where(found == 2, CASES.index("both"), np.where(found > 2, CASES.index("more"), alone))
    by_sep = np.where(rows >= 0, np.append(measured, np.nan)[rows], np.nan) / sky
    return {"network": flux, "network_iou": iou(probability, mask), "sep": by_sep, "case": case}


def _write(
    run: Run,
    test: Pairs,
    fluxes: dict[str, NDArray],
    overlap: dict[str, NDArray],
    case: NDArray,
    facts: dict[str, float],
) -> None:
    """Write the table, every number, and the figures."""
    good = np.isfinite(test.flux).all(1) & (test.flux > 0).all(1)
    true, case = test.flux[good].astype(np.float64), case[good]
    kind = np.array([*GALAXY_TYPES, "star"])[test.kind[good]]
    simulated = {name: summarize(flux[good], true, kind, case) for name, flux in fluxes.items()}
    published = {f"{name} (published)": numbers for name, numbers in published_results().items()}
    everyone = simulated | published
    zero_point = test.zero_point[good, None]
    magnitudes = {
        name: tuple(zero_point - 2.5 * np.log10(np.where(v > 0, v, np.nan)) for v in (true, flux[good]))
        for name, flux in fluxes.items()
    }
    mean_iou = {name: float(values[good].mean()) for name, values in overlap.items()}
    rows = [
        {"method": name} | {key: np.nan if value is None else value for key, value in numbers["all"][0].items()}
        for name, numbers in everyone.items()
    ]
    table = formatted(row | {"iou": mean_iou.get(row["method"], np.nan)} for row in rows)
    table.meta = facts
    drawn = {
        "figure_5": figures.plot_magnitudes(magnitudes, case),
        "figure_6": figures.plot_cases(magnitudes, case),
        "figure_7": figures.plot_errors(magnitudes),
        "figure_8": figures.plot_bias(everyone),
        "figure_9": figures.plot_types(everyone),
        "figure_12": figures.plot_iou({name: values[good] for name, values in overlap.items()}, test.kind[good]),
    }
    with output_folder(run.output, overwrite=run.overwrite) as folder:
        table.write(folder / FILES[0], format="ascii.ecsv")
        numbers = json.dumps({"facts": facts, "simulated": simulated, "iou": mean_iou}, indent=1)
        (folder / FILES[1]).write_text(numbers + "\n", encoding="utf-8")
        for name, figure in drawn.items():
            figure.savefig(folder / f"{name}.png", dpi=100)
    click.echo("\n".join(table.pformat(max_width=-1, max_lines=-1)))
    for name, value in table.meta.items():
        click.echo(f"{name}: {value:.4g}")
    click.echo(f"written to {run.output}: {', '.join(FILES)}")


if __name__ == "__main__":
    main()
