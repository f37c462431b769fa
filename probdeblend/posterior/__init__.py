"""`Posterior`: named draws of fluxes and mask probabilities, with their summaries, tables and files.

Every method of the package answers with this one object.
"""

from .draws import Posterior
from .ensemble import combine
from .flags import Flag, describe_flags
from .variance import variance_parts
from .weighted import systematic

__all__ = ["Flag", "Posterior", "combine", "describe_flags", "systematic", "variance_parts"]
