"""Train small scene networks without one part each, at equal budget: what the parts bring.

Left out are the attention among the sources of a group, the exchange of flux between neighbors, the small network of
each source for its share and mask, and what the trunk is told of PSF and noise. All see the same batches in the same
order, and answer for the same held-out ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from benchmarks._command import Run, benchmark, sized_option
from benchmarks._scenes import formatted
from probdeblend._files import kept_arrays
from probdeblend.networks.scene_loss import SceneLoss
from probdeblend.networks.scenes import SceneNetwork
from probdeblend.scene import overlap_groups
from probdeblend.simulation.stream import SceneBatch, SceneStream
from probdeblend.training.fit import Schedule, fit

__all__ = ["NETWORKS", "judge", "main", "train"]

NETWORKS: dict[str, dict[str, bool]] = {
    "whole": {},
    "no attention": {"attention": False},
    "no exchange": {"exchange": False},
    "neither": {"attention": False, "exchange": False},
    "no network per source": {"dynamic": False},
    "not told of PSF and noise": {"conditioned": False},
}
SETS = {"pairs": 1.0, "crowded": 0.0}  # fraction of the batches that are published pairs
HELD_OUT = 10_000_019  # seed, apart from that of the training batches
DRAWS = 400


@benchmark("ablation")
@sized_option("--steps", 6, 20_000, help="Batches that each network is trained on.")
@sized_option("--batch-size", 4, 32, help="Scenes per batch.")
@sized_option("--test", 2, 60, help="Batches of each kind to judge on.")
@click.option("--network", "names", type=click.Choice(list(NETWORKS)), multiple=True, help="Network.  [default: all]")
def main(run: Run, steps: int, batch_size: int, test: int, names: tuple[str, ...]) -> None:
    """Train small scene networks without one part each, at equal budget, and compare: hours with --full.

    Columns: the loss of the fluxes in nats per source and band, of masks and of shares; scatter of ln flux, coverage of
    the 68 % interval of each flux, and of all fluxes of a group jointly.
    """
    rows = []
    with run.unfinished(steps=steps, batch_size=batch_size, test=test) as kept:
        for name in names or NETWORKS:
            network = train(kept, name, steps=steps, batch_size=batch_size, seed=run.seed)
            for kind, pairs in SETS.items():
                stream = SceneStream(batch_size=batch_size, seed=HELD_OUT + run.seed, pairs=pairs)
                make = partial(judge, network, stream, test)
                found = kept_arrays(kept / f"{name.replace(' ', '-')}-{kind}.npz", make)
                rows.append({"network": name, "scenes": kind} | {key: float(value) for key, value in found.items()})
        run.write(formatted(rows))


def train(kept: Path, name: str, *, steps: int, batch_size: int, seed: int) -> SceneNetwork:
    """Train one network, with a checkpoint in the folder `kept`."""

    def batches(first: int) -> DataLoader:
        return DataLoader(SceneStream(batch_size=batch_size, seed=seed, first=first), batch_size=None, num_workers=1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SceneNetwork(**NETWORKS[name])
        held_out = [SceneStream(batch_size=batch_size, seed=HELD_OUT - 1).batch(number) for number in range(4)]
        schedule = Schedule(steps, learning_rate=1.5e-3, validate_every=max(1, steps // 10))
        fit(SceneLoss(network), batches, held_out, schedule=schedule, checkpoint=kept / f"{name.replace(' ', '-')}.pt")
    return network.eval()


def judge(network: SceneNetwork, stream: SceneStream, count: int) -> dict[str, NDArray]:
    """Return mean losses, scatter and coverage over batches of a stream; scenes of no source are left out."""
    loss, losses, errors, inside, joint = SceneLoss(network), [], [], [], []
    number = taken = 0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        while taken < count:
            batch = stream.batch(number)
            number += 1
            if not batch.light.shape[1]:
                continue
            taken += 1
            loss(*batch)
            losses.append([loss.parts[name] for name in ("flux", "mask", "share")])
            for drawn, true in _groups(network, batch):
                low, middle, high = np.quantile(drawn, (0.16, 0.5, 0.84), axis=0)
                errors.append((middle - true).ravel())
                inside.append(((low <= true) & (true <= high)).ravel())
                joint.append(_covered(drawn.reshape(len(drawn), len(true), -1), true.reshape(len(true), -1)))
    error = np.concatenate(errors)
    flux, mask, share = np.mean(losses, 0)
    scatter = 1.4826 * np.median(np.abs(error - np.median(error)))
    coverage = {"coverage_68": np.concatenate(inside).mean(), "joint_68": np.concatenate(joint).mean()}
    return {"flux": flux, "mask": mask, "share": share, "scatter": scatter} | coverage


def _groups(network: SceneNetwork, batch: SceneBatch) -> Iterator[tuple[NDArray, NDArray]]:
    """Yield draws ``(draw, group, source, band)`` of ln auto flux and the truth, for groups of real sources."""
    features = network.read(network.encode(batch.image, batch.good, batch.psf, batch.noise), batch.x, batch.y)[1]
    by_size: dict[int, list[tuple[int, list[int]]]] = {}
    for scene, overlap in enumerate(features.overlap):
        for members in overlap_groups(overlap):
            if max(members) < batch.light.shape[1]:
                by_size.setdefault(len(members), []).append((scene, members))
    for index in by_size.values():
        drawn = network.answer(features, index).flux.sample((DRAWS,))[..., 0]
        true = torch.stack([batch.log_flux[scene, members, :, 0] for scene, members in index])
        yield drawn.double().numpy(), true.double().numpy()


def _covered(drawn: NDArray, true: NDArray) -> NDArray[np.bool_]:
    """Return whether the truth ``(group, part)`` is in the 68 % region, by Mahalanobis distance."""
    found = []
    for group in range(len(true)):
        middle, spread = drawn[:, group].mean(0), np.atleast_2d(np.cov(drawn[:, group], rowvar=False))
        factor = np.linalg.cholesky(spread + 1e-12 * np.eye(len(spread)))
        far = [np.square(np.linalg.solve(factor, (e - middle).T)).sum(0) for e in (drawn[:, group], true[group, None])]
        found.append((far[0] < far[1]).mean() <= 0.68)
    return np.array(found)


if __name__ == "__main__":
    main()
