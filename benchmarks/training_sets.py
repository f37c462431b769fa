"""What a set of blends holds: counts, distributions beside the published ones, pictures."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from tqdm.auto import tqdm

from benchmarks.published import read_blends_table
from probdeblend._files import output_folder
from probdeblend.metrics.pixels import blendedness
from probdeblend.photometry.detection import detect_cold_hot
from probdeblend.plots.images import plot_stamps
from probdeblend.plots.sets import plot_distributions
from probdeblend.scene import GALAXY_TYPES, Blend
from probdeblend.simulation.prior import Prior
from probdeblend.simulation.sets import count_blends, read_blends, read_instrument

__all__ = ["Inspection", "inspect_set", "report", "write_inspection"]

FILES = ("distributions.png", "blends.png")
CHUNK = 256
REFERENCE_PAIRS = 20_000
MOST_DETECTED = 2000
PICTURES = 24
LABELS = {
    "magnitude": "AB magnitude",
    "half_light_radius": "half-light radius [arcsec]",
    "separation": "separation [pixel]",
    "type": "type",
}


@dataclass(frozen=True, eq=False)
class Inspection:
    """What was found in a set.

    Parameters
    ----------
    blends
        Number of blends.
    galaxies
        Number of blends by the number of galaxies in the stamp.
    identities
        Number of distinct real galaxies; 0 for simulated ones.
    detected
        Number of blends by the number of sources that SEP finds, cold then hot, among the first 2,000.
    values
        ``magnitude``, ``half_light_radius`` (arcsec), ``type`` a galaxy; ``separation`` (pixels), ``blendedness``.
    reference
        The same of the published pairs, but for the blendedness.
    reference_name
        What the reference is.
    stamps
        The first blends, for pictures.
    """

    blends: int
    galaxies: Counter[int]
    identities: int
    detected: Counter[int]
    values: dict[str, NDArray]
    reference: dict[str, NDArray]
    reference_name: str
    stamps: Blend

    @property
    def distance(self) -> dict[str, float]:
        """Two-sample distances to the reference: Kolmogorov and Smirnov's, for types half the summed difference."""
        found = {}
        for name in ("magnitude", "half_light_radius", "separation"):
            found[name] = float(ks_2samp(self.values[name], self.reference[name]).statistic)
        shares = [[np.mean(kinds["type"] == name) for name in GALAXY_TYPES] for kinds in (self.values, self.reference)]
        return found | {"type": float(np.abs(np.subtract(*shares)).sum() / 2)}


def inspect_set(path: Path, *, table: Path | None = None, progress: bool = True) -> Inspection:
    """Look through a set, some blends at a time.

    Parameters
    ----------
    path
        A set of blends with truth.
    table
        The published table of pairs to compare with; the prior that was fitted to it if None.
    progress
        Show a progress bar.

    Returns
    -------
    Inspection
        What is in the set.

    Raises
    ------
    ValueError
        If the set has no truth.
    """
    total, zero_point = count_blends(path), read_instrument(path).zero_point
    reference = _published() if table is None else read_blends_table(table)
    name = "prior fitted to the published table" if table is None else "published table"
    galaxies: Counter[int] = Counter()
    detected: Counter[int] = Counter()
    identities: set[int] = set()
    parts: list[dict[str, NDArray]] = []
    for start in tqdm(range(0, total, CHUNK), disable=not progress, desc="inspect", unit="chunk"):
        blend = read_blends(path, start, min(start + CHUNK, total))
        if blend.flux is None or blend.isolated is None or blend.x is None:
            raise ValueError(f"{path}: the set must have truth, got one without")
        galaxies.update(np.isfinite(blend.flux[..., 0].numpy()).sum(1).tolist())
        if blend.identity is not None:
            identities.update(blend.identity.flatten().tolist())
        parts.append(_values(blend, zero_point))
        part = blend.select(slice(max(0, MOST_DETECTED - start)))
        for stamp, rms in zip(part.image.numpy(), part.sky_rms.tolist(), strict=True):
            detected[min(3, len(detect_cold_hot(stamp[0], rms)))] += 1
    values = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    stamps = read_blends(path, 0, min(PICTURES, total))
    return Inspection(total, galaxies, len(identities - {-1}), detected, values, reference, name, stamps)


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


def write_inspection(path: Path, inspection: Inspection, *, overwrite: bool = False) -> list[str]:
    """Write the pictures of an inspection.

    Parameters
    ----------
    path
        The folder.
    inspection
        What was found.
    overwrite
        Whether earlier pictures may be replaced.

    Returns
    -------
    list of str
        Names of the files.

    Raises
    ------
    FileExistsError
        If the folder exists and is not to be, or must not be, replaced.
    """
    values = {label: inspection.values[name] for name, label in LABELS.items()}
    reference = {label: inspection.reference[name] for name, label in LABELS.items()}
    with output_folder(path, overwrite=overwrite, files=FILES) as folder:
        figure = plot_distributions(values, reference, labels=("this set", inspection.reference_name))
        figure.savefig(folder / FILES[0], dpi=100)
        blend = inspection.stamps
        titles = [_title(blend, number) for number in range(len(blend))]
        plot_stamps(blend.image[:, 0].numpy(), titles, outlines=blend.mask.numpy()).savefig(folder / FILES[1], dpi=100)
    return list(FILES)


def _shares(detected: Counter[int]) -> str:
    total = sum(detected.values())
    return ", ".join(f"{detected[n] / total:.1%} {text}" for n, text in enumerate(("none", "one", "two", "more")))


def _title(blend: Blend, number: int) -> str:
    kinds = [GALAXY_TYPES[kind] if kind >= 0 else "?" for kind in blend.galaxy_type[number].tolist()]
    there = np.isfinite(blend.flux[number, :, 0].numpy())
    return f"{number}: " + " + ".join(kind for kind, known in zip(kinds, there, strict=True) if known)


def report(inspection: Inspection) -> str:
    """Say what is in the set.

    Parameters
    ----------
    inspection
        What was found.

    Returns
    -------
    str
        A few lines.
    """
    counts = ", ".join(f"{number} with {galaxies}" for galaxies, number in sorted(inspection.galaxies.items()))
    lines = [f"{inspection.blends} blends by number of galaxies: {counts}"]
    if inspection.identities:
        lines.append(f"{inspection.identities} distinct real galaxies")
    checked = sum(inspection.detected.values())
    lines.append(f"SEP, cold then hot, finds in {checked} of them: {_shares(inspection.detected)}")
    if "detected" in inspection.reference:
        published = Counter(np.minimum(inspection.reference["detected"], 3).tolist())
        lines.append(f"SExtractor in the published pairs: {_shares(published)}")
    lines.append(f"distance to the {inspection.reference_name}:")
    lines += [f"  {LABELS[name]}: {distance:.3f}" for name, distance in inspection.distance.items()]
    low, middle, high = np.nanquantile(inspection.values["blendedness"], (0.05, 0.5, 0.95))
    lines.append(f"blendedness at 5, 50, 95 %: {low:.3f}, {middle:.3f}, {high:.3f}")
    return "\n".join(lines)
