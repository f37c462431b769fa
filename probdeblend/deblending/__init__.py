"""From an image to a posterior: trained scene networks and their weights, tiles of large images, and SEP's baseline."""

from .deblender import Deblender, Deblends, Description
from .products import deblend_files, short_table, write_products
from .sep import SepDeblender
from .toolkit import ToolkitDeblender
from .weights import deblend, load, save

__all__ = [
    "Deblender", "Deblends", "Description", "SepDeblender", "ToolkitDeblender", "deblend", "deblend_files", "load",
    "save", "short_table", "write_products",
]  # fmt: skip
