"""The command line: flags to calls.

Every command imports what it needs when it runs, so that ``--help`` is quick. What a user can do wrong ends
in one sentence on standard error and exit status 1, and nothing is written.
"""

from __future__ import annotations

import click

from .. import __version__
from .answers import deblend, evaluate
from .calibration import calibrate
from .counting import count, train_counts, train_guide
from .fits import fit_psf
from .galaxies import pair, reobserve, stamps
from .options import Group
from .repeat import repeat
from .training import retrain, simulate, train

__all__ = ["main"]


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="probdeblend")
def main() -> None:
    """Posteriors over the fluxes and the masks of overlapping galaxies."""


_USE = (deblend, count, evaluate, calibrate, repeat)
_MAKE = (simulate, stamps, reobserve, pair, fit_psf, train, retrain, train_guide, train_counts)
for _command in (*_USE, *_MAKE):
    main.add_command(_command)
