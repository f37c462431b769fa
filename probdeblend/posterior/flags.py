"""What can be noteworthy about the measurement of a galaxy, as bits."""

from enum import IntFlag

__all__ = ["Flag", "describe_flags"]


class Flag(IntFlag):
    """Why a galaxy's answer deserves a second look; 0 is a clean one.

    - ``BAD_PIXELS`` (1): more than 10 % of the stamp's pixels are bad.
    - ``BAD_CENTER`` (2): a bad pixel lies within 5 pixels of a galaxy's centre.
    - ``OFF_CENTER`` (4): no peak of light lies within 6 pixels of the middle of the stamp.
    - ``CROWDED`` (8): more than two galaxies overlap; they were measured pair by pair.
    - ``OUTSIDE_PRIOR`` (16): a magnitude, or the pair's difference, is outside the prior of the training set.
    - ``NOT_DETECTED`` (32): SEP did not find the galaxy.
    - ``TRUNCATED`` (64): the stamp reaches over the edge of the image.
    - ``UNFAMILIAR`` (128): the stamp is unlike the family that the network was trained on.
    - ``SINGLE`` (256): a lone source, measured by SEP.
    - ``OUTSIDE_CALIBRATION`` (512): beyond the galaxies that the calibrator was fitted on.
    - ``NOT_REFINED`` (1024): refinement was asked for and is not used; another flag says why.
    - ``POOR_WEIGHTS`` (2048): the importance weights of the refinement are no use.
    - ``MISFIT`` (4096): the model's best fit leaves more light behind than noise would.
    - ``DISAGREEMENT`` (8192): refinement and network contradict each other.
    - ``UNEVEN_NOISE`` (16384): the noise varies over the stamp, which refinement does not know of.
    - ``OTHER_COUNT`` (32768): the stamp is not likely to hold two galaxies.
    """

    BAD_PIXELS = 1
    BAD_CENTER = 2
    OFF_CENTER = 4
    CROWDED = 8
    OUTSIDE_PRIOR = 16
    NOT_DETECTED = 32
    TRUNCATED = 64
    UNFAMILIAR = 128
    SINGLE = 256
    OUTSIDE_CALIBRATION = 512
    NOT_REFINED = 1024
    POOR_WEIGHTS = 2048
    MISFIT = 4096
    DISAGREEMENT = 8192
    UNEVEN_NOISE = 16384
    OTHER_COUNT = 32768


def describe_flags(bits: int) -> str:
    """Say in words what a sum of flags means.

    Parameters
    ----------
    bits
        A value of the flags column.

    Returns
    -------
    str
        The flags' names, comma-separated, or "none".

    Raises
    ------
    ValueError
        If `bits` holds a bit that no flag has.
    """
    if bits < 0 or int(bits) & ~sum(Flag):
        raise ValueError(f"bits must be a sum of flags from 1 to {max(Flag):d}, got {bits}")
    return ", ".join(flag.name.lower().replace("_", " ") for flag in Flag if flag & int(bits)) or "none"
