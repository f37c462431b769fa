"""Seeds that depend on a key, so that neither batch size nor workers matter."""

from __future__ import annotations

import numpy as np

__all__ = ["seed_of"]


def seed_of(*key: int) -> int:
    """Return a seed for torch that depends on a key of integers.

    Parameters
    ----------
    *key
        Integers that are not negative.

    Returns
    -------
    int
        A 63-bit seed.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
