"""Every command that writes, killed at each file operation or out of disk: nothing is lost, half-written or blocked.

A command runs in a forked process, where an audit hook counts what happens to files: the process is killed, asked to
end, or told that the disk is full, at the first operation, at the second, and so on. Files that may not become larger
than a limit end it in the middle of writing. Long computations are done once before, and forks inherit their answers.
"""

import contextlib
import errno
import hashlib
import io
import json
import mmap
import multiprocessing
import os
import re
import resource
import shutil
import signal
import sys
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

SIZE = ("--count", "2", "--size", "64")
QUICK = ("--draws", "64", "--passes", "2")
COMMANDS = {
    "deblend": ("../image.fits", "--psf", "candels_f160w", *QUICK, "--save-draws", "--output", "out"),
    "evaluate": ("../scenes", "--output", "out"),
    "calibrate": ("../scenes", "--output", "out"),
    "isolate": ("../image.fits", "--psf", "candels_f160w", "--output", "out"),
    "simulate": ("out", *SIZE),
    "inject": ("../library", *SIZE, "--output", "out"),
    "train": ("out", "--steps", "2", "--batch-size", "2", "--workers", "0"),
}
RESUMED = ("calibrate", "simulate", "inject", "train")
SENTENCE = re.compile(r"(Error: [^\n]+|\w+!)\n\Z")
CHANGES = ("os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.symlink", "shutil.rmtree")
FILLING = ("open", "os.link", "os.mkdir", "os.rename")  # they may find the disk full
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
LIMIT = 60  # s for a command


def changes(event, args):
    """Whether an event of the audit changes a file of the working folder."""
    if event == "open":
        return isinstance(args[0], str) and isinstance(args[2], int) and args[2] & WRITING and near(args[0])
    return event in CHANGES and near(args[0])


def near(path):
    return os.path.commonpath([Path.cwd(), Path.cwd() / os.fsdecode(path)]) == str(Path.cwd())


def watch(number, ending, reached):
    """End at the operation of a number: by a signal, or by an error where there is none."""
    numbers = count(1)

    def hook(event, args):
        if changes(event, args) and (ending or event in FILLING) and next(numbers) == number:
            reached[0] = 1
            if not ending:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
            os.kill(os.getpid(), ending)

    sys.addaudithook(hook)


def confine(size, ending, reached):
    """Let no file become larger: the signal that a process gets then kills it, or is ignored, as by default."""
    reached[0] = 1
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if ending else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def run(folder, *arguments, first=None):
    """Run a command in a folder, in a process of its own; return its exit status and what it said."""
    from probdeblend.cli import main

    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if not (process := os.fork()):
        status = 99
        try:
            signal.alarm(LIMIT)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background ignores it
            os.chdir(folder)
            for stream in (1, 2):
                os.dup2(writing, stream)
            if first is not None:
                first()
            main(arguments, prog_name="probdeblend")
        except SystemExit as end:
            status = end.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", newline="\n") as said:
        text = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), text.replace("\r", "\n")


def contents(path):
    """Names of files and what is in them, without the random part of hidden names; None where there is nothing."""
    files = [path] if path.is_file() else sorted(path.rglob("[!.]*")) + sorted(path.rglob(".*.partial"))
    names = [re.sub(r"\.[0-9a-f]{8}\.partial", ".partial", str(file.relative_to(path))) for file in files]
    return {name: digest(file) for name, file in zip(names, files, strict=True)} if path.exists() else None


def digest(file):
    """The digest of a file; the metadata of weights come in any order."""
    if file.is_dir():
        return ""
    data = file.read_bytes()
    if data[8:9] == b"{":
        start = 8 + int.from_bytes(data[:8], "little")
        data = json.dumps(json.loads(data[8:start]), sort_keys=True).encode() + data[start:]
    return hashlib.sha256(data).hexdigest()


def once(owner, name, key=lambda *_: None):
    """Compute the answer of a function once, or once for each key."""
    compute, answers = getattr(owner, name), {}

    def answer(*arguments, **options):
        if (chosen := key(*arguments)) not in answers:
            answers[chosen] = compute(*arguments, **options)
        return answers[chosen]

    setattr(owner, name, answer)


def written_once(owner, name):
    """Compute what a method writes to a file once."""
    write, answers = getattr(owner, name), []

    def answer(made, file, **options):
        if not answers:
            write(made, memory := io.BytesIO(), **options)
            answers.append(memory.getvalue())
        with contextlib.nullcontext(file) if isinstance(file, io.BytesIO) else Path(file).open("wb") as opened:
            opened.write(answers[0])

    setattr(owner, name, answer)


def quick(loss, image, *_):
    """A loss of random numbers and few weights."""
    loss.parts = {"random": float(torch.rand(()))}
    return (loss.network.flux.bias - torch.rand(8) - image.mean()).square().mean()


def prepare(home):
    """Import what the commands need, write their input, and replace what takes long."""
    from astropy.io import fits
    from astropy.table import Table
    from bumps import Bumps
    from galaxies import galaxy
    from matplotlib.figure import Figure
    from tqdm import tqdm
    from xarray import Dataset

    from probdeblend import cli, surveys
    from probdeblend.cli.evaluate import ACCURACY
    from probdeblend.deblending import Deblender, products, weights
    from probdeblend.plots import images
    from probdeblend.posterior.calibrator import Known
    from probdeblend.simulation import Simulator, stream
    from probdeblend.training import calibrate, evaluation, fields, recipes

    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # it would be a thread, which a fork lacks
    galaxies, calibrator = [galaxy(number) for number in range(3)], weights.load().calibrator
    unknown = Known("network", {}, {}, *np.zeros((3, 2, 0)))
    tested, report = Table({name: ["all"] for name in ["state", "bands", *ACCURACY]}), Table({"factor": [1.0]})
    fit = calibrate.CalibratorFit(calibrator, tested, Table({"ece": [0.01]}), report[:0])
    calibrate.fit_answers, calibrate.answer = lambda *_, **options: fit, lambda *_: unknown
    calibrate.HELD_OUT = fields.CHUNK = 1
    surveys.isolate = lambda *_, **options: galaxies
    for owner, name in ((weights, "load"), (Deblender, "__call__"), (evaluation, "evaluate")):
        once(owner, name)
    for owner, name in ((images, "plot_stamps"), (products, "plot_field")):
        once(owner, name)
    once(Simulator, "_batch", key=lambda *arguments: arguments[1:])
    once(recipes, "_familiar")
    written_once(Figure, "savefig")
    written_once(Dataset, "to_netcdf")
    recipes.SceneLoss.forward = quick
    stream.SceneStream, recipes.VALIDATE_EVERY = Bumps, 1
    recipes.VALIDATION_SCENES = recipes.FAMILIAR_SCENES = 2
    cli.options.BATCH_PIXELS = 64**2
    os.chdir(home)
    y, x = np.mgrid[:64, :64]
    light = np.exp(-((x - 30) ** 2 + (y - 30) ** 2) / 18) + np.exp(-((x - 36) ** 2 + (y - 40) ** 2) / 18)
    noise = np.random.default_rng(1).normal(0, 3e-3, light.shape)
    fits.PrimaryHDU((light / 50 + noise).astype("f4"), fits.Header({"ABMAGZP": 25.9})).writeto("image.fits")
    surveys.write_library("library", galaxies)
    cli.main(("simulate", "scenes", *SIZE), standalone_mode=False)


class Trial:
    """All ways to end one command, and what they leave."""

    def __init__(self, name):
        from probdeblend.cli import main

        self.name, self.command, self.resumed = name, (name, *COMMANDS[name]), name in RESUMED
        self.home = Path.cwd()
        out = self.start(earlier=False) / "out"
        os.chdir(out.parent)
        main(self.command, standalone_mode=False)
        os.chdir(self.home)
        files = [out] if out.is_file() else [*out.iterdir()]
        self.whole, self.sizes = contents(out), sorted({file.stat().st_size // 2 for file in files})
        self.inputs = self.given()
        self.faults, self.known, self.ends = [], set(), Counter()

    def given(self):
        return [contents(self.home / name) for name in ("image.fits", "scenes", "library")]

    def start(self, *, earlier):
        """Make an empty folder, or one with an output of another run."""
        from probdeblend._files import output_folder

        folder = self.home / f"{self.name}-{len(list(self.home.iterdir()))}"
        folder.mkdir()
        if earlier and self.name == "train":
            (folder / "out").write_text("earlier")
        elif earlier:
            with output_folder(folder / "out") as out:
                (out / "earlier").touch()
        return folder

    def end(self, how, first, killed=None, *, earlier):
        """Run the command with an end to come; return whether it came."""
        folder, reached = self.start(earlier=earlier), mmap.mmap(-1, 1)
        before, options = contents(folder / "out"), ["--overwrite"] * earlier
        status, said = run(folder, *self.command, *options, first=partial(first, reached))
        if reached[0]:
            self.ends[how] += 1
            found = [*self.judge(folder, before, status, said, killed), *self.again(folder)]
            self.faults += [f"{how} {self.ends[how]} of {self.name} {' '.join(options)}: {fault}" for fault in found]
        elif status:
            self.faults.append(f"{self.name} without an end: {said}")
        shutil.rmtree(folder)
        return bool(reached[0])

    def judge(self, folder, before, status, said, killed):
        """Say what is wrong right after the end."""
        out, seen = folder / "out", {entry.name for entry in folder.iterdir()}
        hidden = {name for name in seen if re.fullmatch(r"\..*\.partial", name)}
        if strange := seen - hidden - {"out", "out.partial" if self.resumed else "out"}:
            yield f"left {strange}"
        now, expected = contents(out), dict(self.whole)
        if "field.png could not be drawn" in said:
            expected.pop("field.png")
        if now not in (before, expected):
            yield f"output is {now}"
        if self.given() != self.inputs:
            yield "an input was changed"
        ended = now == expected if status == 0 else SENTENCE.search(said) if status > 0 else status == -(killed or 0)
        if "Traceback" in said or not ended:
            yield f"ended with {status} and said {said!r}"
        if not killed and hidden:
            yield f"left {hidden}"

    def again(self, folder):
        """Run the command again with each option that should work, and say where it does not."""
        state = tuple(contents(folder).items())
        if state in self.known:
            return
        self.known.add(state)
        out, kept = folder / "out", (folder / "out.partial").exists()
        overwrite = ["--overwrite"] * out.exists()
        ways = [["--overwrite"] if overwrite or kept else []]
        ways += [["--resume", *overwrite]] if kept and contents(out) != self.whole else []
        for way in ways:
            copy = folder.with_name("again")
            shutil.copytree(folder, copy)
            status, said = run(copy, *self.command, *way)
            if status:
                yield f"cannot run again with {way}: {said!r}"
            elif contents(copy / "out") != self.whole:
                yield f"differs when run again with {way}"
            elif left := [entry.name for entry in copy.glob("[!.]*") if entry.name != "out"]:
                yield f"run again with {way} leaves {left}"
            shutil.rmtree(copy)

    def all_ends(self):
        """Kill the command at every operation; at those that replace an earlier output, also end it otherwise."""
        for how in ("SIGKILL", "SIGTERM", "SIGINT", "full disk"):
            ending = getattr(signal, how, None)
            first, step = {"SIGTERM": (1, 3), "SIGINT": (2, 3)}.get(how, (1, 1))
            for earlier in (False, True)[how != "SIGKILL" :]:
                for number in count(first, step):
                    end = partial(watch, number, ending)
                    if not self.end(how, end, ending if how == "SIGKILL" else None, earlier=earlier):
                        break
        for number, size in enumerate([0, *self.sizes]):
            ending = (None, signal.SIGXFSZ)[number % 2]
            self.end("limit", partial(confine, size, ending), ending, earlier=True)

    def until_it_is_done(self, operation=12):
        """Kill the command, resume it, kill that again, each time later, and so on."""
        folder, options = self.start(earlier=False), []
        for number in range(20):
            first = partial(watch, operation, signal.SIGKILL, mmap.mmap(-1, 1))
            status, said = run(folder, *self.command, *options, first=first)
            self.ends["resumed"] += status < 0
            if contents(folder / "out") == self.whole:
                break
            operation, options = 5 * (number + 1), ["--resume"]
        if contents(folder / "out") != self.whole:
            self.faults.append(f"{self.name} is never done, but ended with {status} and said {said!r}")


def attempt(name):
    """End a command in every way; return how often, and what is wrong."""
    trial = Trial(name)
    trial.all_ends()
    if trial.resumed:
        trial.until_it_is_done()
    return trial.ends, trial.faults


def attempt_in_place(name):
    """The same for an output that is written where it will be."""
    from probdeblend import _files

    @contextlib.contextmanager
    def careless(path, **options):
        Path(path).mkdir(exist_ok=True)
        yield Path(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_files, "output_folder", careless)
        return attempt(name)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A process of one thread that does nothing else, since it forks."""
    home, context = tmp_path_factory.mktemp("kills"), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=prepare, initargs=(home,)) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_may_end_anywhere(desk, name):
    ends, faults = desk.submit(attempt, name).result()
    assert not faults
    assert ends["SIGKILL"] >= 16
    assert min(ends["SIGTERM"], ends["SIGINT"], ends["full disk"]) >= 3
    assert ends["limit"] >= 2
    assert ends["resumed"] >= 2 * (name in RESUMED)


@pytest.mark.slow
def test_a_careless_command_would_be_seen(desk):
    _, faults = desk.submit(attempt_in_place, "evaluate").result()
    for how in ("SIGKILL", "limit"):
        assert [fault for fault in faults if fault.startswith(how) and "output is" in fault], how
