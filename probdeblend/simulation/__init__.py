"""Blends of known truth: their population, shapes, images, and the sets that hold them."""

from .conditions import Conditions
from .galsim import render_galsim, render_torch, simulate, simulate_blends, simulate_mosaic
from .prior import Prior
from .profiles import render
from .psf import OpticsFit, PsfModel, fit_psf, write_psf
from .sets import count_blends, read_blends, read_instrument, write_blends

__all__ = [
    "Conditions",
    "OpticsFit",
    "Prior",
    "PsfModel",
    "count_blends",
    "fit_psf",
    "read_blends",
    "read_instrument",
    "render",
    "render_galsim",
    "render_torch",
    "simulate",
    "simulate_blends",
    "simulate_mosaic",
    "write_blends",
    "write_psf",
]
