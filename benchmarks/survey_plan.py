"""Plan a survey: what an image costs, measured, and how many workers share a billion sources, simulated.

Fields of `benchmarks.field` are deblended one after the other, as one worker of `probdeblend deblend --each` does it,
with their catalogs in Parquet. Images of a survey then take as long as these, drawn at random and scaled by a
log-normal factor, as some are more crowded than others. A worker gets the next image when it is done with one. Workers
die at random: the image begins anew where another is free, and the worker is back after a while. What a scheduler
itself can do is not in it.
"""

from __future__ import annotations

import heapq
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._command import Run, benchmark, sized_option, weights_option
from benchmarks._scenes import formatted
from benchmarks.field import _peak_memory, write_field
from probdeblend.deblending import deblend_files
from probdeblend.deblending.weights import load
from probdeblend.simulation.cameras import Camera

__all__ = ["main", "simulated"]

WORKERS = (100, 1000, 10_000)
SCATTER = 0.3  # of ln time from image to image, beyond that of the measured ones
LIFE = 24 * 3600.0  # seconds of a worker until it dies, in the mean
RESTART = 60.0  # seconds until another takes its place, and has loaded the weights
FILES = ("catalog.parquet", "segmentation.fits", "model.fits", "draws.nc")


@benchmark("survey_plan")
@sized_option("--count", 2, 12, help="Fields that are measured.")
@sized_option("--side", 384, 1000, least=192, help="Their pixels on a side.")
@sized_option("--sources", 10**7, 10**9, help="Sources of the survey.")
@weights_option
def main(run: Run, count: int, side: int, sources: int, weights: Path | None) -> None:
    """Measure what an image takes, and simulate how many workers share a survey of a billion sources.

    One row per number of workers: images of the survey, days until it is done, the fraction of the workers' time in
    which they deblend what is kept, the fraction of images that begin again because a worker died, and the hours in
    which fewer and fewer workers have anything left to do.

    Below is what was measured: sources found per image; seconds of CPU per image and per source, with all files that
    are written; peak memory; and bytes per source of each file, with what that is for a survey.
    """
    torch.set_num_threads(1)
    with run.unfinished(deblender=load(weights), full=run.full, count=count, side=side) as kept:
        images, camera = [kept / f"field-{number}.fits" for number in range(count)], Camera.candels_f160w()
        for number, image in enumerate(images):
            if not image.exists():
                write_field(image, side, seed=run.seed + number)
        known = {"psf": camera.psf[0].numpy(), "sky_rms": float(camera.sky_rms[0])}
        folders = {kept / image.stem: f"{image}[0]" for image in images}
        seconds, found, began = [], [], time.process_time()
        how = {"table": "parquet", "save_draws": True, "overwrite": True}
        for _, catalog in deblend_files(folders, weights=weights, **how, **known):
            if isinstance(catalog, Exception):
                raise catalog
            found.append(len(catalog))
            seconds.append(time.process_time() - began)
            began = time.process_time()
        sizes = {name: np.sum([(folder / name).stat().st_size for folder in folders]) for name in FILES}
        measured = np.array(seconds[1:] or seconds)  # the first one loads the weights
        number = round(sources / np.mean(found))
        table = formatted([simulated(measured, workers, number, seed=run.seed) for workers in WORKERS])
        per_source = {name: float(size / np.sum(found)) for name, size in sizes.items()}
        table.meta = {
            "sources per image": float(np.mean(found)),
            "CPU seconds per image": float(measured.mean()),
            "CPU milliseconds per source": float(1e3 * measured.mean() / np.mean(found)),
            "CPU years of the survey": float(measured.mean() * number / 3.156e7),
            "memory, GB": _peak_memory(),
        }
        for name, size in per_source.items():
            table.meta |= {f"bytes per source, {name}": size, f"terabytes of the survey, {name}": size * sources / 1e12}
        run.write(table)


def simulated(measured: NDArray, workers: int, images: int, *, seed: int) -> dict[str, float]:
    """Simulate a survey of so many images, and return a row of the table."""
    rng = np.random.default_rng((seed, workers))
    times = rng.choice(measured, images) * np.exp(rng.normal(-(SCATTER**2) / 2, SCATTER, images))
    free = [(0.0, worker) for worker in range(workers)]  # when each worker has nothing to do
    death = rng.exponential(LIFE, workers).tolist()  # when it dies
    worked = again = begun = last = 0
    for duration in times.tolist():
        now, worker = heapq.heappop(free)
        while now + duration > death[worker]:  # the image begins anew where a worker is free
            again += 1
            heapq.heappush(free, (death[worker] + RESTART, worker))
            death[worker] += RESTART + rng.exponential(LIFE)
            now, worker = heapq.heappop(free)
        worked, begun, last = worked + duration, max(begun, now), max(last, now + duration)
        heapq.heappush(free, (now + duration, worker))
    return {
        "workers": workers,
        "images": images,
        "days": last / 86400,
        "busy": worked / (last * workers),
        "again": again / images,
        "tail_hours": (last - begun) / 3600,
    }


if __name__ == "__main__":
    main()
