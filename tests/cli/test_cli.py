"""The command line as a whole: help, versions, and what an interrupt leaves."""

import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import probdeblend
from probdeblend.cli import main, options

COMMANDS = sorted(main.commands)
ROOT = Path(__file__).parents[2]


def test_help_is_quick():
    """Neither torch nor anything else that is heavy is imported for a page of help."""
    code = (
        "import sys\nfrom probdeblend.cli import main\n"
        "try: main(['deblend', '--help'])\nexcept SystemExit: pass\n"
        "print({'torch', 'galsim', 'astropy', 'numpy', 'matplotlib'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.endswith("set()\n")


def test_a_request_to_terminate_ends_a_command_like_an_interrupt(run, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(options, "observed", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    result = run("isolate", "mosaic.fits", "--output", "isolated")
    assert result.exit_code == 130
    assert result.stderr.strip() == "Interrupted!"
    assert signal.getsignal(signal.SIGTERM) == before


def test_quiet_prints_errors_alone(run, fake):
    assert run("-q", "deblend").output == ""
    assert run("-q", "deblend").stderr == "Error: probdeblend-output: exists already; --overwrite replaces it\n"


def test_quiet_and_json_exclude_each_other(run, fake):
    result = run("--quiet", "deblend", "--json")
    assert (result.exit_code, result.stderr) == (1, "Error: quiet and json are mutually exclusive, got both\n")


def test_a_missing_package_is_told_with_its_remedy(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = run("deblend", "--table", "parquet")
    assert result.exit_code == 1
    assert result.stderr.endswith("; python -m pip install pyarrow\n")


def test_verbose_prints_warnings_and_where_an_error_was_raised(run, monkeypatch):
    def observed(_):
        warnings.warn("the header is odd", UserWarning, stacklevel=1)
        raise ValueError("psf is odd")

    monkeypatch.setattr(options, "observed", observed)
    with pytest.warns(UserWarning, match="the header is odd") as seen:
        plain, verbose = run("deblend"), run("--verbose", "deblend")
    assert len(seen) == 1
    assert plain.exit_code == verbose.exit_code == 1
    assert plain.stderr == "Error: psf is odd\n"
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.endswith("Error: psf is odd\n")


def test_version(run):
    assert run("--version").output == f"probdeblend, version {probdeblend.__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_page_shows_an_example(run, command):
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example:\n    probdeblend {command}" in result.output


def test_the_documented_options_exist():
    text = (ROOT / "docs" / "getting_started.md").read_text()
    documented = {row.split("`")[1].split()[0] for row in text.splitlines() if row.startswith("| `--")}
    options = {name for option in main.commands["deblend"].params for name in option.opts}
    assert documented <= options


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_nothing(tmp_path, number):
    """Ctrl-C or a request to terminate during a long command: no traceback, no partial file."""
    # A shell lets what it runs in the background ignore Ctrl-C, and children inherit that.
    heed = "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    run = f"{heed}; runpy.run_module('probdeblend', run_name='__main__')"
    command = [sys.executable, "-c", run, "simulate", "set", "--count", "100000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors == "Interrupted!\n"
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())
