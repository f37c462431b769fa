"""The command line: flags to calls.

Every command imports what it needs when it runs, so that ``--help`` is quick. What a user can do wrong ends
in one sentence on standard error and exit status 1, and nothing is written.
"""

from __future__ import annotations

import click

from .. import __version__
from .answers import deblend, evaluate
from .bayes import march, profile_check, refine_check, train_guide
from .calibration import calibrate, validate
from .counting import count, train_counts
from .fits import fit_prior, fit_psf, summarize_published
from .galaxies import inspect, pair, reobserve, stamps, transfer
from .options import Group
from .population import population
from .reference import reference
from .repeat import repeat
from .training import render_check, retrain, simulate, train, train_labels

__all__ = ["main"]


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="probdeblend")
def main() -> None:
    """Posteriors over the fluxes and the masks of overlapping galaxies."""


_USE = (deblend, count, evaluate, calibrate)
_MAKE = (simulate, train, retrain, train_labels, train_guide, train_counts, stamps, reobserve, pair)
_CHECK = (validate, repeat, population, march, refine_check, profile_check, reference, inspect, transfer, render_check)
_FIT = (fit_psf, fit_prior, summarize_published)
for _command in (*_USE, *_MAKE, *_CHECK, *_FIT):
    main.add_command(_command)
