import pytest
from click.testing import CliRunner
from commands import FakeDeblender

from probdeblend.cli import main
from probdeblend.deblending import weights


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Invoke a command in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(main, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def fake(monkeypatch):
    """Weights whose answer is known."""
    deblender = FakeDeblender()
    monkeypatch.setattr(weights, "load", lambda path=None, calibrator=None: deblender)
    return deblender
