"""Is an uncertainty right? Diagnostics of anybody's posterior draws, or means and covariances.

A diagnostic that passes does not prove a posterior right; each sees what it looks at:

- `pit` and `expected_coverage` look at one quantity at a time: its location and width;
- `joint_pit` looks at distances from the mean in units of the covariance, so that a missing correlation shows;
- `whitened` errors of an exact posterior are uncorrelated, with unit scatter;
- `tarp` looks at the whole distribution, from random reference points;
- `diagnose` and `binned_table` put the numbers of one quantity in a row, for all galaxies or bin by bin;
- `Reliability` says whether pixels with a mask probability of 0.3 are in the mask three times in ten;
- `count_scores` and `count_reliability` say the same of probabilities of the number of galaxies.

Ranks of an exact posterior are uniform (Talts et al. 2018, arXiv:1804.06788). `ecdf_band` says how far their empirical
distribution may stray, everywhere at once (Säilynoja et al. 2022, doi:10.1007/s11222-022-10090-6). TARP is from Lemos
et al. (2023, arXiv:2302.03026).
"""

from .bands import LEVELS, ecdf_band, expected_coverage, rank_p_value
from .bins import binned_table, diagnose, quantile_edges
from .counts import count_reliability, count_scores
from .ranks import covariance_pit, joint_pit, normal_pit, pit, tarp, whitened
from .reliability import Reliability
from .scores import energy_score, interval_score, log_score

__all__ = [
    "LEVELS",
    "Reliability",
    "binned_table",
    "count_reliability",
    "count_scores",
    "covariance_pit",
    "diagnose",
    "ecdf_band",
    "energy_score",
    "expected_coverage",
    "interval_score",
    "joint_pit",
    "log_score",
    "normal_pit",
    "pit",
    "quantile_edges",
    "rank_p_value",
    "tarp",
    "whitened",
]
