"""What is in a set of blends: counts, distributions beside the published ones, and pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from astropy.table import Table
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ks_2samp
from tqdm.auto import tqdm

from benchmarks._command import Run, benchmark, sized_option
from benchmarks.published import read_blends_table
from probdeblend._files import output_folder
from probdeblend.cli.options import FILE, show
from probdeblend.metrics.masks import blendedness
from probdeblend.photometry.detection import detect_cold_hot
from probdeblend.plots.images import GALAXY_COLORS, plot_stamps
from probdeblend.scene import GALAXY_TYPES, Blend
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import count_blends, read_blends, read_instrument

__all__ = ["Inspection", "inspect_set", "main"]

FILES = ("training_sets.ecsv", "distributions.png", "blends.png")
CHUNK = 256
REFERENCE_PAIRS = 20_000
PICTURES = 24
LABELS = {
    "magnitude": "AB magnitude",
    "half_light_radius": "half-light radius [arcsec]",
    "separation": "separation [pixel]",
    "type": "type",
}
DETECTED = ("none", "one", "two", "more")


@dataclass(frozen=True, eq=False)
class Inspection:
    """What is in a set, beside a reference.

    Blends are counted by the number of `galaxies` in the stamp, and some of them by the number of sources `detected`
    by SEP, cold then hot; `identities` is the number of distinct real galaxies. Values and those of the reference are
    ``magnitude``, ``half_light_radius`` (arcsec) and ``type`` of each galaxy, ``separation`` (pixels) of each pair, and
    ``blendedness``, which the reference lacks.
    """

    galaxies: Counter[int]
    detected: Counter[int]
    identities: int
    values: dict[str, NDArray]
    reference: dict[str, NDArray]

    @property
    def distance(self) -> dict[str, float]:
        """Two-sample distances to the reference: Kolmogorov and Smirnov's, for types half the summed difference."""
        found = {}
        for name in ("magnitude", "half_light_radius", "separation"):
            found[name] = float(ks_2samp(self.values[name], self.reference[name]).statistic)
        shares = [[np.mean(kinds["type"] == name) for name in GALAXY_TYPES] for kinds in (self.values, self.reference)]
        return found | {"type": float(np.abs(np.subtract(*shares)).sum() / 2)}

    def table(self) -> Table:
        """Return one row per measure, with that of the reference where it has one."""
        total, checked = sum(self.galaxies.values()), sum(self.detected.values())
        published = Counter(np.minimum(self.reference.get("detected", []), 3).tolist())
        rows = [("blends", total, np.nan), ("distinct real galaxies", self.identities, np.nan)]
        rows += [(f"with {number} galaxies", count, np.nan) for number, count in sorted(self.galaxies.items())]
        for number, name in enumerate(DETECTED):
            share = published[number] / published.total() if published else np.nan
            rows.append((f"fraction with {name} detected", self.detected[number] / checked, share))
        rows += [(f"distance in {LABELS[name]}", value, 0.0) for name, value in self.distance.items()]
        levels = (0.05, 0.5, 0.95)
        ends = zip(levels, np.nanquantile(self.values["blendedness"], levels), strict=True)
        rows += [(f"blendedness at {100 * level:g} %", value, np.nan) for level, value in ends]
        table = Table(rows=rows, names=("measure", "set", "reference"), dtype=(str, float, float))
        for name in ("set", "reference"):
            table[name].info.format = ".4g"
        return table


def inspect_set(path: Path, *, table: Path | None = None, detect: int = 2000) -> Inspection:
    """Inspect a set beside the published table of pairs, or the prior fitted to it; SEP sees its first blends alone."""
    total, zero_point = count_blends(path), read_instrument(path).zero_point
    reference = _published() if table is None else read_blends_table(table)
    galaxies: Counter[int] = Counter()
    detected: Counter[int] = Counter()
    identities: set[int] = set()
    parts: list[dict[str, NDArray]] = []
    for start in tqdm(range(0, total, CHUNK), desc="inspect", unit="chunk", leave=False):
        blend = read_blends(path, start, min(start + CHUNK, total))
        if blend.flux is None or blend.isolated is None or blend.x is None:
            raise ValueError(f"{path}: the set must have truth, got one without")
        galaxies.update(np.isfinite(blend.flux[..., 0].numpy()).sum(1).tolist())
        if blend.identity is not None:
            identities.update(blend.identity.flatten().tolist())
        parts.append(_values(blend, zero_point))
        part = blend.select(slice(max(0, detect - start)))
        for stamp, rms in zip(part.image.numpy(), part.sky_rms.tolist(), strict=True):
            detected[min(3, len(detect_cold_hot(stamp[0], rms)))] += 1
    values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    return Inspection(galaxies, detected, len(identities - {-1}), values, reference)


def _published() -> dict[str, NDArray]:
    pairs = {name: value.numpy() for name, value in Prior.published().sample(REFERENCE_PAIRS, seed=0).items()}
    return {
        "magnitude": pairs["magnitude"].ravel(),
        "half_light_radius": pairs["half_light_radius"].ravel(),
        "type": np.array(GALAXY_TYPES)[pairs["galaxy_type"].ravel()],
        "separation": np.hypot(*(pairs[name][:, 1] - pairs[name][:, 0] for name in "xy")),
    }


def _values(blend: Blend, zero_point: float) -> dict[str, NDArray]:
    flux = blend.flux[..., 0].double().numpy()
    there = np.isfinite(flux)
    kinds = np.array([*GALAXY_TYPES, "unknown"])[blend.galaxy_type.numpy()]
    separation = np.hypot(*(position[:, 1:] - position[:, :1] for position in (blend.x.numpy(), blend.y.numpy())))
    return {
        "magnitude": zero_point - 2.5 * np.log10(flux[there]),
        "half_light_radius": blend.half_light_radius.numpy()[there],
        "type": kinds[there],
        "separation": separation[there[:, 1:]],
        "blendedness": blendedness(blend.isolated[:, :, 0].numpy())[there],
    }


def plot_distributions(
    values: Mapping[str, ArrayLike], reference: Mapping[str, ArrayLike], *, labels: tuple[str, str], columns: int = 2
) -> Figure:
    """Show distributions of numbers or categories beside those of a reference, one panel per quantity."""
    rows = -(-len(values) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, found) in zip(panels, values.items(), strict=False):
        both = [np.asarray(found), np.asarray(reference[name])]
        if both[0].dtype.kind in "US":
            _bars(axes, both, labels)
        else:
            low, high = np.quantile(np.concatenate(both), (0.002, 0.998))
            for numbers, color, label in zip(both, GALAXY_COLORS, labels, strict=True):
                bins = np.linspace(low, high, 41)
                axes.hist(numbers, bins, density=True, histtype="step", color=color, lw=1.6, label=label)
            axes.set(ylabel="density")
        axes.set(xlabel=name)
    panels[0].legend(frameon=False)
    return figure


def _bars(axes: Axes, both: list[np.ndarray], labels: tuple[str, str]) -> None:
    names = sorted(set(both[0].tolist()) | set(both[1].tolist()))
    for shift, found, color, label in zip((-0.2, 0.2), both, GALAXY_COLORS, labels, strict=True):
        share = [np.mean(found == name) for name in names]
        axes.bar(np.arange(len(names)) + shift, share, 0.4, color=color, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="share")


def _plot_blends(path: Path) -> Figure:
    blend = read_blends(path, 0, min(PICTURES, count_blends(path)))
    titles = []
    for number in range(len(blend)):
        kinds = [GALAXY_TYPES[kind] if kind >= 0 else "?" for kind in blend.galaxy_type[number].tolist()]
        there = np.isfinite(blend.flux[number, :, 0].numpy())
        titles.append(f"{number}: " + " + ".join(kind for kind, known in zip(kinds, there, strict=True) if known))
    return plot_stamps(blend.image[:, 0].numpy(), titles, outlines=blend.mask.numpy())[0].figure


@benchmark("training_sets", resume=False)
@click.argument("blends", type=FILE)
@click.option("--table", type=FILE, help="The published table of pairs.  [default: the prior fitted to it]")
@sized_option("--detect", 200, 2000, help="Blends in which SEP counts sources.")
def main(run: Run, blends: Path, table: Path | None, detect: int) -> None:
    """Summarize BLENDS, a set: counts, distributions beside the published ones, and pictures."""
    found = inspect_set(blends, table=table, detect=detect)
    name = "prior fitted to the published table" if table is None else "published table"
    values, reference = (
        {label: kind[key] for key, label in LABELS.items()} for kind in (found.values, found.reference)
    )
    with output_folder(run.output, overwrite=run.overwrite, files=FILES) as folder:
        found.table().write(folder / FILES[0], format="ascii.ecsv")
        plot_distributions(values, reference, labels=("this set", name)).savefig(folder / FILES[1], dpi=100)
        _plot_blends(blends).savefig(folder / FILES[2], dpi=100)
    show(found.table())
    click.echo(f"reference: {name}\nwritten to {run.output}: {', '.join(FILES)}")


if __name__ == "__main__":
    main()
