"""Files: FITS images, rms maps and PSFs in; catalogs, masks and folders out; sets in HDF5; tensors.

What is written appears whole or not at all: under another name first, renamed once it is complete. What
cannot be read raises one sentence that begins with the file's name.
"""

from .images import FieldImage, read_image, read_map, read_psf, read_stamps
from .mosaics import Mosaic, open_mosaic, read_columns, uncovered
from .outputs import (
    OUTPUT_FILES,
    kept_arrays,
    output_folder,
    unfinished_folder,
    whole_file,
    write_catalog,
    write_pixels,
    write_table,
)
from .sets import count_blends, finished_batches, read_blends, read_instrument, write_blends
from .tensors import read_tensors, write_tensors

__all__ = [
    "OUTPUT_FILES",
    "FieldImage",
    "Mosaic",
    "count_blends",
    "finished_batches",
    "kept_arrays",
    "open_mosaic",
    "output_folder",
    "read_blends",
    "read_columns",
    "read_image",
    "read_instrument",
    "read_map",
    "read_psf",
    "read_stamps",
    "read_tensors",
    "uncovered",
    "unfinished_folder",
    "whole_file",
    "write_blends",
    "write_catalog",
    "write_pixels",
    "write_table",
    "write_tensors",
]
