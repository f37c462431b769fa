"""Quality flags of measurements, as bits."""

from enum import STRICT, IntFlag
from typing import Self

__all__ = ["Flag"]


class Flag(IntFlag, boundary=STRICT):
    """Quality flags of a source, as bits; 0 means no problem.

    ``str(Flag(bits))`` lists the names of the flags in a value of the column ``flags``, or "none".

    - ``EDGE`` (1): cut by the edge of the image, or of the pixels that are good.
    - ``BAD_PIXELS`` (2): a bad pixel near its center, or more than 10 % of the pixels of its mask are bad.
    - ``NOT_DETECTED`` (4): no source was found there.
    - ``DOUBTFUL`` (8): the probability that there is a source is below one half.
    - ``UNLISTED`` (16): the network sees another source nearby, which the given positions lack.
    - ``LARGE_GROUP`` (32): its group was larger than the largest that is measured jointly, and was cut.
    - ``BRIGHT`` (64): brighter or larger than the sources of the training set.
    - ``ANOMALY`` (128): unlike the training set.
    - ``OUTSIDE_CALIBRATION`` (256): outside the range that the calibrator was fitted on.
    - ``NOT_REFINED`` (512): refinement was requested but not used; another flag gives the reason.
    - ``POOR_WEIGHTS`` (1024): importance weights of the refinement are unreliable (k-hat above 0.7).
    - ``MISFIT`` (2048): the best-fit model leaves larger residuals than noise would.
    - ``DISAGREEMENT`` (4096): refinement and network disagree.
    - ``UNEVEN_NOISE`` (8192): the given noise varies within its mask; pixels are divided by a smooth version of it.
    - ``SATURATED`` (16384): its highest pixels are equally high, as clipped and saturated ones are.
    - ``SKY`` (32768): the sky around it is not zero, or no sky is left there to tell.
    """

    EDGE = 1
    BAD_PIXELS = 2
    NOT_DETECTED = 4
    DOUBTFUL = 8
    UNLISTED = 16
    LARGE_GROUP = 32
    BRIGHT = 64
    ANOMALY = 128
    OUTSIDE_CALIBRATION = 256
    NOT_REFINED = 512
    POOR_WEIGHTS = 1024
    MISFIT = 2048
    DISAGREEMENT = 4096
    UNEVEN_NOISE = 8192
    SATURATED = 16384
    SKY = 32768

    @classmethod
    def _missing_(cls, value: object) -> Self:
        return super()._missing_(int(value))  # takes the integers of NumPy, too

    def __str__(self) -> str:
        return ", ".join(flag.name.lower().replace("_", " ") for flag in self) or "none"
