"""The validation report: what the networks, SEP and the published ones do, in one page and one file of numbers."""

from .plan import Plan
from .run import validate

__all__ = ["Plan", "validate"]
