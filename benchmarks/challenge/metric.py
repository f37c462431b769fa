"""The metric of the challenge: what a submission is scored by, for each camera.

Sources that were found are matched with true ones by position, one to one, within five pixels
(`probdeblend.metrics.match_sources`). True sources with a signal-to-noise ratio below five do not count, whether they
were found or not, nor do fluxes in bands where it is.

- `detection_score`: completeness and purity.
- `flux_score`: accuracy of the medians. A missed source counts as one without flux: as an error of 100 %, and as an
  outlier. Only the scatter in magnitudes, which it does not have, is that of the sources found.
- `coverage_score`: how often the central 68 % and 95 % intervals of the sources found hold the truth, which ought to be
  as often as they say, and their interval score, where lower is better: a width in ln flux plus a penalty for misses.
- `mask_score`: mean intersection over union of the masks, 0 for a missed source. Masks are compared with one half
  first, so that booleans, integers and probabilities are all scored by their pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.challenge.sets import Truth
from benchmarks.challenge.submission import LEVELS, Answer
from probdeblend.metrics.accuracy import FLOOR, point_accuracy
from probdeblend.metrics.arrays import over_finite
from probdeblend.metrics.coverage import interval_score
from probdeblend.metrics.detections import match_sources
from probdeblend.metrics.masks import iou
from probdeblend.training.evaluation import REACH

__all__ = ["coverage_score", "detection_score", "flux_score", "mask_score", "score"]

LEAST_SNR = 5.0
MIDDLE = LEVELS.index(0.5)
INTERVALS = {68: (LEVELS.index(0.16), LEVELS.index(0.84)), 95: (LEVELS.index(0.025), LEVELS.index(0.975))}


def score(answer: Answer, truth: Truth, *, flux: str = "total") -> dict[str, float]:
    """Score what was found in the images of one camera.

    Parameters
    ----------
    answer
        What was found.
    truth
        What is true.
    flux
        The kind of flux, "total" or "auto".

    Returns
    -------
    dict
        The number of true ``sources`` that count, and what the four scores find.
    """
    found, true = ((one.scene, one.x, one.y) for one in (answer, truth))
    matched = match_sources(found, true, radius=REACH)
    bright = np.linalg.norm(truth.snr, axis=1) >= LEAST_SNR
    known = np.where(truth.snr >= LEAST_SNR, truth.flux[flux], np.nan)[bright]
    missed = np.full((1, *np.shape(answer.flux)[1:]), np.nan)  # is the row at index -1
    quantiles = np.concatenate([answer.flux, missed])[matched[bright]]
    scores = {"sources": int(bright.sum())} | detection_score(matched, bright, found=len(answer.scene))
    scores |= flux_score(quantiles[..., MIDDLE], known) | coverage_score(quantiles, known)
    return scores | mask_score(_overlap(answer, truth, matched)[bright & truth.mask.any((1, 2))])


def detection_score(matched: NDArray[np.integer], bright: NDArray[np.bool_], *, found: int) -> dict[str, float]:
    """Return completeness and purity.

    Parameters
    ----------
    matched
        The detection that belongs to each true source ``(source,)``, -1 for none.
    bright
        Which true sources count ``(source,)``; detections that belong to others do not.
    found
        Number of detections.

    Returns
    -------
    dict
        ``completeness``: fraction of the true sources that were found; ``purity``: fraction of the detections that are
        true sources. NaN of none.
    """
    real = (matched >= 0) & bright
    counted = found - int(((matched >= 0) & ~bright).sum())
    purity = real.sum() / counted if counted else np.nan
    return {"completeness": over_finite(np.mean, real[bright]), "purity": float(purity)}


def flux_score(estimate: NDArray[np.floating], true: NDArray[np.floating]) -> dict[str, float]:
    """Return the accuracy of fluxes.

    Parameters
    ----------
    estimate
        Estimates ``(source, band)``; NaN of missed sources.
    true
        True fluxes ``(source, band)``; NaN where they do not count.

    Returns
    -------
    dict
        ``mape``: mean of ``|estimate - true| / true`` in percent; ``bias_mag`` and ``nmad_mag``: median of the
        magnitude errors, positive where too faint, and their normalized median absolute deviation; ``outliers``:
        fraction off by more than 0.75 mag.
    """
    found = point_accuracy(np.nan_to_num(estimate), true)
    return {name: found[name] for name in ("mape", "bias_mag", "nmad_mag", "outliers")}


def coverage_score(quantiles: NDArray[np.floating], true: NDArray[np.floating]) -> dict[str, float]:
    """Return coverage and score of the intervals of fluxes.

    Parameters
    ----------
    quantiles
        Quantiles ``(source, band, 5)``; NaN of missed sources, which are left out.
    true
        True fluxes ``(source, band)``; NaN where they do not count.

    Returns
    -------
    dict
        For 68 and 95 %: ``coverage_68``, the fraction of intervals with the truth in them, and ``score_68``, the mean
        interval score in ln flux. Ends below 1 % of the true flux are raised to it before taking logarithms.
    """
    counted = np.isfinite(true) & np.isfinite(quantiles).all(-1)
    ends, truth, scores = quantiles[counted], true[counted], {}
    logs = np.log(np.maximum(ends, FLOOR * truth[:, None]))
    for percent, (low, high) in INTERVALS.items():
        inside = (ends[:, low] <= truth) & (truth <= ends[:, high])
        values = _interval_score(logs[:, low], logs[:, high], np.log(truth), percent / 100)
        scores |= {
            f"coverage_{percent}": over_finite(np.mean, inside),
            f"score_{percent}": over_finite(np.mean, values),
        }
    return scores


def _interval_score(low: NDArray, high: NDArray, true: NDArray, level: float) -> NDArray[np.float64]:
    """Return the interval score of ends: that of two draws of which they are the quantiles."""
    beyond = (1 - level) / 2 * (high - low) / level
    return interval_score(np.stack([low - beyond, high + beyond]), true, level=level)


def mask_score(overlap: NDArray[np.floating]) -> dict[str, float]:
    """Return the mean ``iou`` of an intersection over union of the mask of each source ``(source,)``."""
    return {"iou": over_finite(np.mean, overlap)}


def _overlap(answer: Answer, truth: Truth, matched: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the intersection over union of the mask of each true source ``(source,)``, 0 for a missed one."""
    overlap = np.zeros(len(matched))
    for number, masks in enumerate(answer.masks):
        rows = np.flatnonzero(np.asarray(answer.scene) == number)
        own = np.flatnonzero((truth.scene == number) & (matched >= 0))
        overlap[own] = iou(masks[np.searchsorted(rows, matched[own])], truth.mask[own])
    return overlap
