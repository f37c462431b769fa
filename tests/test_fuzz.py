"""Damaged inputs of every kind end in a right answer or in one sentence, whatever is wrong with them.

Each mutation runs in a process of its own with limits on time and memory, so that crashes and hanging are seen.
"""

import hashlib
import math
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from astropy.table import QTable

SECONDS, GIGABYTES, CRASHED = 30, 4, 70
NAMES = "image|sky_rms|rms|psf|mask|positions|weights|calibrator|scenes|library|posterior"
DEBLEND = ("deblend", "--draws", "20", "--passes", "2", "--output", "out")
CAMERA, NOISE = ("--psf", "candels_f160w"), ("--rms", "0.003")
COMMANDS = {
    **{f"{name}.fits": (*DEBLEND, f"{name}.fits", *CAMERA, *NOISE) for name in ("plain", "image", "scaled", "tiles")},
    "packed.fits.gz": (*DEBLEND, "packed.fits.gz", *CAMERA, *NOISE),
    "rms.fits": (*DEBLEND, "plain.fits", *CAMERA, "--rms", "rms.fits"),
    "psf.fits": (*DEBLEND, "plain.fits", "--psf", "psf.fits", *NOISE),
    "mask.fits": (*DEBLEND, "plain.fits", *CAMERA, *NOISE, "--mask", "mask.fits"),
    **{
        name: (*DEBLEND, "plain.fits", *CAMERA, *NOISE, "--positions", name)
        for name in ("list.csv", "list.ecsv", "list.fits", "list.vot")
    },
    "weights.safetensors": (*DEBLEND, "plain.fits", *CAMERA, *NOISE, "--weights", "weights.safetensors"),
    "calibrator.json": (*DEBLEND, "plain.fits", *CAMERA, *NOISE, "--calibrator", "calibrator.json"),
    "draws.nc": None,
    "set": ("evaluate", "set", "--no-calibrator", "--output", "out"),
    "library": ("inject", "library", "--count", "1", "--size", "64", "--output", "out"),
}
NEEDED = ("plain.fits",)


def command(name):
    """Run the command that takes the input; posteriors are read in Python alone."""
    from probdeblend.cli import main

    arguments = COMMANDS[name]
    if arguments is not None:
        return main(list(arguments), prog_name="probdeblend")
    from probdeblend.posterior import Posterior

    warnings.simplefilter("ignore")
    try:
        posterior = Posterior.open(name)
    except (ValueError, OSError) as error:
        sys.exit(f"Error: {error}")
    posterior.catalog().write("catalog.ecsv", format="ascii.ecsv")
    if posterior.cutouts is not None:
        posterior.label_image()
        posterior.model_image()
    for label in posterior.dataset["label"].values[:2]:
        posterior.covariance(int(label))
    return None


def run_alone(name):
    """In a process of its own: limits, standard streams to files, and the exit status that a user would see."""
    status = CRASHED
    try:
        for number, stream in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"../{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        used = int(re.search(r"VmSize:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (used + GIGABYTES * 2**30,) * 2)
        done = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        resource.setrlimit(resource.RLIMIT_CPU, (int(done) + SECONDS,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        command(name)
        status = 0
    except SystemExit as error:
        if isinstance(error.code, str):
            sys.stderr.write(error.code)
        status = 1 if isinstance(error.code, str) else error.code or 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def wait_for(process):
    """Wait for a child; return its status, minus a signal that ended it, or None if that was done here, and seconds."""
    until = time.monotonic() + 4 * SECONDS  # others may use the machine, too
    while time.monotonic() < until:
        done, status, used = os.wait4(process, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return None, math.inf


def digests(folder):
    """The files and folders in a folder, and what is in them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 2**28
        else ""
        for path in folder.rglob("*")
    }


def catalog_of(folder):
    """Fluxes, errors and flags of the catalog that was written."""
    table = QTable.read(folder / "catalog.ecsv", format="ascii.ecsv")
    return [
        np.ma.filled(np.ma.asarray(getattr(table[c], "value", table[c])), np.nan) for c in ("flux", "flux_err", "flags")
    ]


def _lines(path):
    """What was printed, without progress bars, which end with their speed."""
    return [re.sub(r".*/s\]", "", line).strip() for line in re.split(r"[\r\n]", path.read_text(errors="replace"))]


def refusal(name, errors):
    """What is wrong with an error message, if anything."""
    text = errors[-1] if errors else ""
    if len(errors) != 1 or not text.startswith("Error: ") or not text.isprintable() or len(text) > 700:
        return f"not one sentence: {errors[:4]}"
    if text.startswith("Error: unexpected") or not (Path(name).stem in text or re.search(rf"\b({NAMES})\b", text)):
        return f"does not say which: {text}"
    return ""


def answer(folder, must, right):
    """What is wrong with the catalog of an answer, if anything."""
    flux, error, flags = catalog_of(folder)
    good = np.isfinite(flux) & np.isfinite(error) & (error > 0)
    if not (good | (flags != 0)).all():
        return f"has an error that is not positive, and no flag: {flux} {error}"
    if must is False and not (len(flux) == len(right[0]) and np.allclose(flux, right[0], rtol=0.05)):
        return f"answers with {flux} instead of {right[0]}"
    return ""


def verdict(folder, before, name, status, must, right):
    """Return "answered" or "refused", or what is wrong."""
    errors, after = [*filter(None, _lines(folder.parent / "stderr"))], digests(folder)
    if status is None or -status in (signal.SIGXCPU, signal.SIGKILL):
        return f"takes more than {SECONDS} s"
    if status < 0 or status == CRASHED:
        return f"ends by signal {-status}, or in a traceback: {errors[-1:]}"
    if {path: digest for path, digest in after.items() if path in before} != before or any(
        "partial" in p for p in after
    ):
        return f"changes files: {sorted(after)}"
    if status:
        wrong = refusal(name, errors) or ("leaves files" if after != before else "")
        return wrong or ("refused" if must is not False else f"refused though right: {errors[-1]}")
    wrong = "accepted though damaged" if must else ""
    if name not in ("library", "set"):
        wrong = wrong or answer(folder if name == "draws.nc" else folder / "out", must, right)
    return wrong or "answered"


def serve(folder, seed, numbers, answers):
    """Read everything once, then run one mutation after the other in copies of this process."""
    import mutations
    import torch

    from probdeblend.cli import main
    from probdeblend.deblending import products

    torch.set_num_threads(1)
    products._draw = lambda *_: []  # pictures take half of the time
    whole = Path(folder) / "whole"
    whole.mkdir()
    mutations.write_inputs(whole)
    os.chdir(whole)
    os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
    right = {}
    for name in ("plain.fits", "scaled.fits", "set", "library"):
        main(list(COMMANDS[name]), standalone_mode=False)
        right[name] = catalog_of(whole / "out") if name.endswith(".fits") else None
        shutil.rmtree("out")
    names = list(mutations.MUTATIONS)
    for number in numbers:
        name, case = names[number % len(names)], Path(tempfile.mkdtemp(dir=folder)) / "case"
        case.mkdir()
        for each in {name, "plain.fits"}:
            (shutil.copytree if (whole / each).is_dir() else shutil.copy)(whole / each, case / each)
        try:
            mutation, must = mutations.mutated(case, name, number, seed)
        except Exception as error:
            answers.send((number, name, "", f"cannot be mutated: {error!r}", 0.0))
            continue
        before = digests(case)
        process = os.fork()
        if not process:
            os.chdir(case)
            run_alone(name)
        status, seconds = wait_for(process)
        try:
            found = verdict(case, before, name, status, must, right.get(name) or right["plain.fits"])
        except Exception as error:
            found = f"cannot be judged: {error!r}"
        answers.send((number, name, mutation, found, seconds))
        os.chdir(whole)
        shutil.rmtree(case.parent)
    answers.send(None)


def mutated_runs(folder, *, seed, numbers):
    """Yield number, input, mutation, verdict and seconds of each run."""
    context = multiprocessing.get_context("spawn")
    answers, sent = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(str(folder), seed, numbers, sent), daemon=True)
    process.start()
    sent.close()  # so that the end of the process is seen
    try:
        while (answer := answers.recv()) is not None:
            yield answer
    finally:
        process.kill()
        process.join()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits and their start are Linux's")
def test_damaged_inputs_end_in_a_right_answer_or_in_one_sentence(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    runs = list(mutated_runs(tmp_path, seed=24, numbers=range(300)))
    count = Counter(found for *_, found, _ in runs)
    assert not [run for run in runs if run[3] not in ("answered", "refused")]
    assert count["answered"] > 50
    assert count["refused"] > 100


if __name__ == "__main__":
    *ends, chosen = map(int, sys.argv[1:])
    with tempfile.TemporaryDirectory() as place:
        for run in mutated_runs(place, seed=chosen, numbers=range(*ends)):
            sys.stdout.write(f"{run}\n")
            sys.stdout.flush()
