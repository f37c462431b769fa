"""From an image to a posterior: trained weights, whole images, stamps, and SEP in the same form."""

from .counts import CountingDeblender, count_stamps, default_counts
from .deblender import Deblender, Deblends
from .field import deblend_field
from .products import DeblendedImage
from .sep import sep_posterior
from .stamps import EXAMPLE_PATH, deblend_stamps
from .weights import deblend, load

__all__ = [
    "EXAMPLE_PATH",
    "CountingDeblender",
    "DeblendedImage",
    "Deblender",
    "Deblends",
    "count_stamps",
    "deblend",
    "deblend_field",
    "deblend_stamps",
    "default_counts",
    "load",
    "sep_posterior",
]
