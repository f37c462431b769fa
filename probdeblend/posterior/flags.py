"""Quality flags of measurements, as bits."""

from enum import STRICT, IntFlag
from typing import Self

__all__ = ["Flag"]


class Flag(IntFlag, boundary=STRICT):
    """Quality flags of a measurement, as bits; 0 means no problem.

    ``str(Flag(bits))`` lists the names of the flags in a value of the column ``flags``, or "none".

    - ``BAD_PIXELS`` (1): more than 10 % of the pixels of the stamp are bad.
    - ``BAD_CENTER`` (2): a bad pixel lies within 5 pixels of the center of a galaxy.
    - ``OFF_CENTER`` (4): no peak of light lies within 6 pixels of the middle of the stamp.
    - ``CROWDED`` (8): more than two galaxies overlap; they were measured pair by pair.
    - ``OUTSIDE_PRIOR`` (16): a magnitude, or the magnitude difference of the pair, is outside the training prior.
    - ``NOT_DETECTED`` (32): SEP did not detect the galaxy.
    - ``TRUNCATED`` (64): the stamp extends beyond the edge of the image.
    - ``UNFAMILIAR`` (128): the stamp is unlike the training set.
    - ``ISOLATED`` (256): isolated source, measured by SEP.
    - ``OUTSIDE_CALIBRATION`` (512): outside the range that the calibrator was fitted on.
    - ``NOT_REFINED`` (1024): refinement was requested but not used; another flag gives the reason.
    - ``POOR_WEIGHTS`` (2048): importance weights of the refinement are unreliable (k-hat above 0.7).
    - ``MISFIT`` (4096): the best-fit model leaves larger residuals than noise would.
    - ``DISAGREEMENT`` (8192): refinement and network disagree.
    - ``UNEVEN_NOISE`` (16384): the noise varies across the stamp, which refinement does not model.
    - ``OTHER_COUNT`` (32768): the stamp probably does not hold exactly two galaxies.
    """

    BAD_PIXELS = 1
    BAD_CENTER = 2
    OFF_CENTER = 4
    CROWDED = 8
    OUTSIDE_PRIOR = 16
    NOT_DETECTED = 32
    TRUNCATED = 64
    UNFAMILIAR = 128
    ISOLATED = 256
    OUTSIDE_CALIBRATION = 512
    NOT_REFINED = 1024
    POOR_WEIGHTS = 2048
    MISFIT = 4096
    DISAGREEMENT = 8192
    UNEVEN_NOISE = 16384
    OTHER_COUNT = 32768

    @classmethod
    def _missing_(cls, value: object) -> Self:
        return super()._missing_(int(value))  # takes the integers of NumPy, too

    def __str__(self) -> str:
        return ", ".join(flag.name.lower().replace("_", " ") for flag in self) or "none"
