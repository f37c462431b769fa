"""The package stays within the limits of its layout."""

import pytest

from benchmarks.house import LIMITS, code_lines, measure


@pytest.fixture(scope="module")
def measured():
    return measure()


@pytest.mark.parametrize("name", LIMITS)
def test_limits(measured, name):
    assert 0 <= measured[name] <= LIMITS[name]


def test_documentation_is_no_code():
    assert (
        code_lines('"""Doc."""\n\n# note\nx = """two\nlines"""\n\n\ndef f():\n    """Doc.\n    """\n    return x\n')
        == 4
    )
