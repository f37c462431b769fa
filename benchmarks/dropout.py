"""Take the variance of posteriors apart: within dropout passes and between them, on and off the training set.

The part between passes is what the network does not know of itself. It should grow where images are unlike those of the
training, and shrink with training. Off the training set are pairs as bright and as dense, but changed in a way that no
camera of the training does. Chains are dropout passes before and after calibration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._command import FILE, Run, benchmark, sized_option
from benchmarks._populations import published_pairs
from benchmarks._scenes import compare, formatted, positions, truth
from probdeblend.deblending.deblender import Deblender
from probdeblend.deblending.weights import load
from probdeblend.posterior.cutouts import Cutouts
from probdeblend.posterior.moments import variance_parts
from probdeblend.scene import Scene

__all__ = ["CHANGES", "main", "parts"]


def _saturated(image: torch.Tensor) -> torch.Tensor:
    return image.clamp(max=20.0)


def _ringed(image: torch.Tensor) -> torch.Tensor:
    """Add ghosts: the image again, half as bright, 14 pixels away."""
    return image + 0.5 * image.roll((14, 14), (-2, -1))


def _striped(image: torch.Tensor) -> torch.Tensor:
    return image + 10.0 * torch.sin(torch.arange(image.shape[-1]) * torch.pi / 4)


def _inverted(image: torch.Tensor) -> torch.Tensor:
    """Hollow every source: light above 10 sky rms is reflected."""
    return torch.where(image > 10, 20 - image, image)


CHANGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda image: image,
    "saturated at 20 rms": _saturated,
    "ghosts of half the light": _ringed,
    "stripes of 10 rms": _striped,
    "hollow cores": _inverted,
}
"""What is done to pixels over sky noise."""
NOT_CALIBRATED = "none, not calibrated"
FLOATS = (1e-30, 1e30)  # to which draws are limited, some of which are 0 or infinite where the network is lost
DRAWS = 3200  # a hundred per pass, so that the noise of the draws hides nothing of the part between passes


@benchmark("dropout")
@sized_option("--count", 16, 1000, help="Pairs of each kind.")
@click.option("--weights", "files", type=FILE, multiple=True, help="Weights, such as of several steps of one training.")
def main(run: Run, count: int, files: tuple[Path, ...]) -> None:
    """Take the variance of posteriors apart, within and between dropout passes, on and off the training set.

    One row per change of the images, medians over pairs: standard deviations `within` and `between` passes of ln flux,
    and of ln of the group's total; `share`, the part of the variance of ln flux that lies between passes; `mask`, the
    mean spread of masks over passes where they are undecided; and `ratio`, the standard deviation between passes over
    that of unchanged pairs. With several weights, compare their rows of unchanged pairs.
    """
    rows, deblenders = [], {path: load(path) for path in files or (None,)}
    with run.unfinished(count=count, weights=[run.asks(deblender) for deblender in deblenders.values()]) as kept:
        for number, (path, deblender) in enumerate(deblenders.items()):
            methods = {name: partial(parts, deblender, name, calibrate=True) for name in CHANGES}
            methods[NOT_CALIBRATED] = partial(parts, deblender, "none", calibrate=False)
            found = compare(kept, f"weights-{number}", count, published_pairs, methods, seed=run.seed)
            own, of = [_row(arrays) for arrays in found.values()], "shipped" if path is None else path.name
            rows += [
                {"weights": of, "images": name} | row | {"ratio": row["between"] / own[0]["between"]}
                for name, row in zip(found, own, strict=True)
            ]
        run.write(formatted(rows))


def parts(deblender: Deblender, change: str, scene: Scene, *, calibrate: bool) -> dict[str, NDArray]:
    """Return standard deviations within and between passes, per source, per group and of masks."""
    noise = scene.sky_rms[..., None, None]
    changed = replace(scene, image=CHANGES[change](scene.image / noise) * noise)
    posterior = deblender.scenes(changed, positions=positions(changed), draws=DRAWS, calibrate=calibrate)
    known = {name: truth(scene)[name] for name in ("scene", "snr")}
    within, between = _parts(np.log(posterior.flux.values[..., 0].clip(*FLOATS)))
    of_group = _parts(np.log(posterior.total_flux.values[..., 0].clip(*FLOATS)))
    return known | {
        "within": within,
        "between": between,
        "mask": _undecided(posterior.cutouts),
        "group_within": of_group[0],
        "group_between": of_group[1],
    }


def _undecided(cutouts: Cutouts) -> NDArray[np.float64]:
    """Return the mean spread over passes of each source's mask, where it is neither in nor out; NaN without one."""
    if cutouts.mask_std is None:
        return np.full(len(cutouts), np.nan)
    inside = [(mask > 0.1) & (mask < 0.9) for mask in cutouts.mask]
    return np.array([s[i].mean() if i.any() else np.nan for s, i in zip(cutouts.mask_std, inside, strict=True)])


def _parts(draws: NDArray) -> tuple[NDArray, NDArray]:
    """Return standard deviations within chains ``(chain, draw, ...)`` and between them, free of the noise of draws."""
    within, between = variance_parts(draws)
    return np.sqrt(within), np.sqrt(between)


def _mean(values: NDArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else np.nan


def _row(found: dict[str, NDArray]) -> dict[str, float]:
    row = {name: float(np.median(found[name])) for name in ("within", "between", "group_within", "group_between")}
    share = found["between"] ** 2 / (found["between"] ** 2 + found["within"] ** 2)
    return row | {"share": float(np.median(share)), "mask": _mean(found["mask"])}


if __name__ == "__main__":
    main()
