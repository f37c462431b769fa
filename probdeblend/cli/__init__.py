"""The command line: flags to calls.

Every command imports what it needs when it runs, so that ``--help`` is quick. Invalid input gives
a message of one sentence on standard error and exit status 1; nothing is written.
"""

import click

from .. import __version__
from .deblend import deblend
from .evaluate import calibrate, evaluate
from .options import Group
from .scenes import inject, isolate, simulate, train

__all__ = ["main"]


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="probdeblend")
@click.option("-q", "--quiet", is_flag=True, help="Print errors and progress only.")
@click.option("-v", "--verbose", is_flag=True, help="Also print warnings, and the traceback of an error.")
def main(**_: bool) -> None:
    """Posteriors over the fluxes and masks of overlapping sources."""


for _command in (deblend, evaluate, calibrate, simulate, isolate, inject, train):
    main.add_command(_command)
