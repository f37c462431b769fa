"""Train small scene networks without one part each, at equal budget: what the parts bring.

Left out are the attention among the sources of a group, the exchange of flux between neighbors, the small network of
each source for its share and mask, and what the trunk is told of PSF and noise: some of their layers stay zero. All see
the same batches in the same order, and answer for the same held-out ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._command import Run, benchmark, kept_arrays, sized_option
from benchmarks._scenes import formatted
from probdeblend._files import whole_file
from probdeblend.metrics.ranks import joint_pit
from probdeblend.networks.scene_loss import SceneLoss
from probdeblend.networks.scenes import SceneNetwork
from probdeblend.scene import overlap_groups
from probdeblend.simulation.stream import SceneBatch, SceneStream
from probdeblend.training.fit import Schedule, fit

__all__ = ["NETWORKS", "judge", "main", "train", "without"]

NETWORKS: dict[str, tuple[str, ...]] = {  # layers that stay zero
    "whole": (),
    "no attention": ("attention",),
    "no exchange": ("pair.2",),
    "neither": ("attention", "pair.2"),
    "no network per source": ("reader.share_network", "reader.mask_network"),
    "not told of PSF and noise": ("trunk.describe.0",),
}
SETS = {"pairs": 1.0, "crowded": 0.0}  # fraction of the batches that are published pairs
HELD_OUT = 10_000_019  # seed, apart from that of the training batches
DRAWS = 400
LEVEL = 0.68


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
        stream = SceneStream(batch_size=batch_size, seed=run.seed)
        held_out = _held_out(kept, batch_size, test, seed=HELD_OUT + run.seed)
        for name in names or NETWORKS:
            network = train(kept, name, stream, held_out["validation"], steps=steps, seed=run.seed)
            for kind in SETS:
                found = kept_arrays(kept / f"{name}-{kind}.npz", partial(judge, network, held_out[kind]))
                rows.append({"network": name, "scenes": kind} | {key: float(value) for key, value in found.items()})
        run.write(formatted(rows))


def _held_out(kept: Path, batch_size: int, count: int, *, seed: int) -> dict[str, list[SceneBatch]]:
    """Draw batches of scenes with sources, to validate on and to judge on, or read those that were kept."""
    path = kept / "held_out.pt"
    if not path.exists():
        stream, found = SceneStream(batch_size=batch_size, seed=seed), {}
        for kind, pairs in ({"validation": 0.5} | SETS).items():
            stream.pairs = pairs
            batches = (stream.batch(number) for number in range(10 * count))
            found[kind] = [tuple(b) for b in islice((b for b in batches if b.light.shape[1]), count)]
        with whole_file(path) as temporary:
            torch.save(found, temporary)
    stored = torch.load(path, weights_only=True)
    return {kind: [SceneBatch(*batch) for batch in batches] for kind, batches in stored.items()}


def without(*layers: str) -> SceneNetwork:
    """Return a new network, some layers of which are zero and stay so."""
    network = SceneNetwork()
    for layer in layers:
        for value in network.get_submodule(layer).requires_grad_(False).parameters():
            torch.nn.init.zeros_(value)
    return network


def train(
    kept: Path, name: str, stream: SceneStream, validation: list[SceneBatch], *, steps: int, seed: int
) -> SceneNetwork:
    """Train one network, with a checkpoint in the folder `kept`."""

    def batches(first: int) -> SceneStream:
        stream.first = first
        return stream

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = without(*NETWORKS[name])
        schedule = Schedule(steps, validate_every=max(1, steps // 10))
        fit(SceneLoss(network), batches, validation, schedule=schedule, checkpoint=kept / f"{name}.pt")
    return network.eval()


def judge(network: SceneNetwork, batches: list[SceneBatch]) -> dict[str, NDArray]:
    """Return mean losses, scatter and coverage over batches."""
    loss, losses, errors, inside, joint = SceneLoss(network), [], [], [], []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for batch in batches:
            loss(*batch)
            losses.append([loss.parts[name] for name in ("flux", "mask", "share")])
            for drawn, true in _groups(network, batch):
                low, middle, high = np.quantile(drawn, (0.16, 0.5, 0.84), axis=0)
                errors.append((middle - true).ravel())
                inside.append(((low <= true) & (true <= high)).ravel())
                flat = drawn.reshape(*drawn.shape[:2], -1), true.reshape(len(true), -1)
                joint.append(joint_pit(*flat) <= LEVEL)
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


if __name__ == "__main__":
    main()
