import numpy as np
import pytest

from probdeblend.posterior import Flag


def test_flags_have_words():
    assert str(Flag(0)) == "none"
    assert str(Flag(np.int64(3))) == str(Flag.EDGE | Flag.BAD_PIXELS) == "edge, bad pixels"
    assert [int(flag) for flag in Flag] == [2**bit for bit in range(len(Flag))]
    assert all(f"``{flag.name}`` ({flag:d})" in Flag.__doc__ for flag in Flag)
    with pytest.raises(ValueError, match="invalid value 65536"):
        Flag(65536)
