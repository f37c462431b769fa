"""Sample posteriors of blends with the No-U-Turn sampler, for other answers to be compared with."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import click
import h5py
import numpy as np
import torch
from astropy.table import Table
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks.references import KIND, SIZE, References, reference_model
from probdeblend._files import header, kept_arrays, output_folder
from probdeblend.deblending.weights import load
from probdeblend.refinement.guide import JointGuide
from probdeblend.refinement.importance import refine
from probdeblend.refinement.latents import POSITION, to_components
from probdeblend.refinement.model import Observed
from probdeblend.refinement.nuts import sample_reference
from probdeblend.scene import STAMP_SIZE, seed_of

__all__ = ["main"]

KINDS = ("correlated", "white")
NEAREST = 2.0  # pixels between the galaxies: closer pairs cannot be told apart
# Pixels from the middle to the companion, for the cut stamp to hold it; index, for other codes to render it.
FARTHEST, LEAST_INDEX = {False: 22.0, True: 12.0}, {False: 0.0, True: 0.8}
MOST_UNUSABLE = 10  # blends without usable weights for each one that is wanted
REFINING = 1000  # draws of each proposal, so that whitening is good
LONGER = 3  # times the draws, where the first ones have not converged
KEPT = 150  # draws of each chain


@benchmark("sample_references")
@sized_option("--count", 1, 12, least=0, help="Blends with drizzled noise.")
@sized_option("--white", 0, 2, least=0, help="Blends with white noise and a known PSF.")
@click.option("--draws", type=click.IntRange(50), default=600, show_default=True, help="Draws of each of two chains.")
@click.option("--once", is_flag=True, help="Do not draw three times as many where the chains have not converged.")
@weights_option
def main(run: Run, count: int, white: int, draws: int, once: bool, weights: Path | None) -> None:
    """Sample the posteriors of blends with the No-U-Turn sampler: five minutes to half an hour per blend.

    OUTPUT holds references.h5, which benchmarks.references reads, and a table of how the chains converged. Blends that
    refinement cannot bring to usable weights are left out, and counted.
    """
    if count + white < 1:
        raise ValueError("count and white must not both be zero")
    deblender = load(weights)
    moments = JointGuide(deblender.network, pixel_scale=deblender.instrument.pixel_scale)
    settings = {"draws": draws, "seed": run.seed, "start": "moments"}
    attempts = (draws,) if once else (draws, LONGER * draws)
    with run.unfinished(deblender=deblender, draws=draws, once=once) as kept:
        found, unusable = [], {}
        for kind, wanted in zip(KINDS, (count, white), strict=True):
            taken, unusable[kind] = _taken(_sampled(kept, moments, kind, attempts, seed=run.seed), kind, wanted)
            found += taken
        references = References(**{name: np.concatenate([one[name] for one in found]) for name in found[0]})
        settings |= {"unusable": unusable, "torch": version("torch"), "pyro-ppl": version("pyro-ppl")}
        _write(run, references, settings)


def _taken(sampled: Iterator[dict[str, NDArray]], kind: str, wanted: int) -> tuple[list[dict[str, NDArray]], int]:
    """Take the first usable blends, and count the others."""
    found, unusable = [], 0
    with tqdm(total=wanted, desc=kind, leave=False) as bar:
        while len(found) < wanted:
            if blend := next(sampled):
                found.append(blend)
                bar.update()
            elif (unusable := unusable + 1) > MOST_UNUSABLE * wanted:
                raise ValueError(f"guesses must be good enough to refine, got {unusable} blends with unusable weights")
    return found, unusable


def _sampled(
    kept: Path, moments: JointGuide, kind: str, attempts: tuple[int, ...], *, seed: int
) -> Iterator[dict[str, NDArray]]:
    """Yield the fields of one blend after the other; nothing where refinement is unusable."""
    white = kind == KINDS[1]
    model = replace(reference_model(white=white), size=STAMP_SIZE)
    for number in itertools.count():
        observed, unknown = model.simulate(1, seed=seed_of(seed, KINDS.index(kind), number))
        if _suits(model.split(unknown)[0], white=white):
            with torch.no_grad():
                start = moments.encode(observed.image[:, None])[1]
            make = partial(_fields, observed, unknown, start, white=white, attempts=attempts, seed=seed)
            yield kept_arrays(kept / f"{kind}-{number:04d}.npz", make)


def _suits(latents: Tensor, *, white: bool) -> bool:
    central, companion = latents[0, :, POSITION]
    inside = companion.abs().max() < FARTHEST[white] and (companion - central).norm() > NEAREST
    return bool(inside and to_components(latents).sersic_index.min() > LEAST_INDEX[white])


def _fields(
    observed: Observed, unknown: Tensor, start: Tensor, *, white: bool, attempts: tuple[int, ...], seed: int
) -> dict[str, NDArray]:
    model, edge = reference_model(white=white), (STAMP_SIZE - SIZE) // 2
    cut = observed._replace(image=observed.image[:, edge:-edge, edge:-edge])
    refined = refine(model, cut, start, draws=REFINING, seed=seed)
    if not refined.usable[0]:
        return {}
    began = time.perf_counter()
    for draws in attempts:
        found = sample_reference(model, cut, refined, draws=draws, seed=seed, progress=False)
        if found.converged:
            break
    kept = np.linspace(0, found.unknown.shape[1] - 1, KEPT).astype(int)
    values = cut._asdict() | {"start": start, "unknown": unknown, "draws": found.unknown[None, :, kept]}
    values |= {"r_hat": found.r_hat[None], "effective": found.effective[None], "seconds": [time.perf_counter() - began]}
    return {name: np.asarray(value, np.float32) for name, value in values.items()} | {"white": np.array([white])}


def _write(run: Run, references: References, settings: dict[str, object]) -> None:
    columns = {"white": references.white, "r_hat": references.r_hat.max(-1), "effective": references.effective.min(-1)}
    table = Table(columns | {"converged": references.converged, "seconds": references.seconds}, meta=settings)
    for name, form in (("r_hat", ".4f"), ("effective", ".0f"), ("seconds", ".0f")):
        table[name].info.format = form
    names = ["references.h5", "references.ecsv"]
    with output_folder(run.output, overwrite=run.overwrite, files=names) as folder:
        table.write(folder / names[1])
        with h5py.File(folder / names[0], "w") as file:
            file.attrs.update(header(KIND), settings=json.dumps(settings, sort_keys=True))
            for name, value in vars(references).items():
                file[name] = value
    click.echo("\n".join(table.pformat(max_width=-1, max_lines=-1)))
    click.echo(f"written to {run.output}: {', '.join(names)}")


if __name__ == "__main__":
    main()
