"""Slips and accidents: one line that says what to do, before data are loaded where it can be."""

import errno
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import fuzz
import pytest
import torch
import tyro
from kills import difference

import errors
import evaluate
import plots
import train
from config import MOST, Config, validate
from errors import UserError, in_words
from trainer import Trainer

SMALL = tyro.cli(Config, args=fuzz.SMALL)  # 3 steps


class Ended(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def command(monkeypatch, capsys, tmp_path) -> Callable[..., Ended]:
    """What the command does once its words are read, in tmp_path; no pictures and no probes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(evaluate, "linear_metric", lambda *_: 0.5)
    for name in ("losses", "crops", "similarity", "knn"):
        monkeypatch.setattr(plots, name, lambda *_: None)

    def run(**changes: Any) -> Ended:
        status, message = 0, ""
        try:
            with in_words():
                train.run(replace(SMALL, **({"out": Path("out")} | changes)))
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            message = "" if isinstance(end.code, int) else end.code
        printed = capsys.readouterr()
        assert "\n" not in message
        return Ended(status, printed.out, printed.err + message)

    return run


@pytest.fixture
def refused(command, monkeypatch) -> Callable[..., str]:
    """The message of what has to be refused before data are loaded."""

    def load(_):
        raise AssertionError("data were loaded")

    monkeypatch.setattr(train, "load_data", load)

    def run(**changes: Any) -> str:
        ended = command(**changes)
        assert ended.status == 1
        assert ended.err.startswith("error: ")
        return ended.err

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that nothing happens to."""
    out = tmp_path_factory.mktemp("whole")
    trainer = Trainer(SMALL, train.load_data(SMALL), out)
    trainer.start()
    trainer.run()
    return out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "--seed: got -1; want at least 0"),
        ({"seed": 4294967296}, "--seed: got 4294967296; want at most 4294967295"),
        ({"repulsion_weight": float("nan")}, "--repulsion-weight: got nan; want a finite number"),
        ({"repulsion_weight": -1.0}, "--repulsion-weight: got -1.0; want at least 0"),
        ({"temperature": float("inf")}, "--temperature: got inf; want a finite number"),
        ({"temperature": 0.0}, "--temperature: got 0.0; want a number above 0"),
        ({"knn_temperature": 1e-30}, "--knn-temperature: got 1e-30; want at least 1e-06"),
        ({"momentum": -1.0}, "--momentum: got -1.0; want 0 <= momentum < 1"),
        ({"momentum": 1.0}, "--momentum: got 1.0"),
        ({"momentum": float("nan")}, "--momentum: got nan"),
        ({"weight_decay": -1e-4}, "--weight-decay: got -0.0001; want at least 0"),
        ({"weight_decay": float("inf")}, "--weight-decay: got inf"),
        ({"lr": float("nan")}, "--lr: got nan"),
        ({"lr": -1.0}, "--lr: got -1.0"),
        ({"predictor_lr": -1.0}, "--predictor-lr: got -1.0"),
        ({"lr": 1e300}, "--lr: got 1e+300; want at most 1e+06"),
        ({"predictor_lr": 1e39}, "--predictor-lr: got 1e+39; want at most 1e+06"),
        ({"affinity_lr": float("inf")}, "--affinity-lr: got inf"),
        ({"repulsion_clip": float("nan")}, "--repulsion-clip: got nan"),
        ({"ema": float("nan")}, "--ema: got nan"),
        ({"global_scale": (float("nan"), 1.0)}, "--global-scale: got nan 1.0"),
        ({"local_scale": (0.0, 1.0)}, "--local-scale: got 0.0 1.0"),
        ({"scenes": (4, 4)}, "--scenes: got 4 4; want at least 5 training scenes"),
        ({"scenes": (6, 4)}, "--batch-size: got 8 for 6 training images"),
        ({"scenes": (24, 0)}, "--scenes: got 24 0"),
        ({"image_size": 1}, "--image-size: got 1; want at least"),
        ({"global_size": 0}, "--global-size: got 0; want at least 1"),
        ({"epochs": 0}, "--epochs: got 0"),
        ({"epochs": 10**30}, f"--epochs: got {10**30}; want at most {MOST}"),
        ({"knn_k": MOST + 1}, f"--knn-k: got {MOST + 1}; want at most {MOST}"),
        ({"dim": 10000000}, "--dim: take more than 745058 GiB of memory"),
        ({"method": "moco", "queue_size": MOST, "dim": 4096}, "--dim, --queue-size: take more"),
        ({"bottleneck": MOST, "dim": 4096}, "--dim, --bottleneck: take more than"),
        ({"scenes": (1000000000, 5)}, "--scenes, --image-size: take more than"),
        ({"image_size": 1000000}, "--scenes, --image-size: take more than"),
        ({"global_size": 1000000}, "--batch-size, --global-crops, --local-crops and their"),
        ({"device": "cuda:99"}, "--device: got 'cuda:99'; want cpu, or cuda on a machine that"),
        ({"device": "meta"}, "--device: got 'meta'"),
        ({"device": ""}, "--device: got ''"),
        ({"data": Path("x")}, "--data x: --dataset scenes reads no files"),
        ({"skip_unreadable": True}, "--skip-unreadable: belongs to --dataset folder"),
        ({"encoder": "resnet19"}, "--encoder: got 'resnet19'"),
        ({"encoder": "no_such:x"}, "--encoder no_such:x: cannot be imported (ModuleNotFound"),
        ({"encoder": ".x:y"}, "--encoder .x:y: cannot be imported (TypeError"),
        ({"encoder": ":y"}, "--encoder :y: cannot be imported (ValueError: Empty module name)"),
        ({"encoder": "math:pi"}, "cannot be built by a call without arguments (TypeError"),
        ({"encoder": "torch.nn:Linear"}, "cannot be built by a call without arguments"),
        ({"encoder": "sys:exit"}, "cannot be built by a call without arguments (SystemExit"),
        ({"encoder": "torch.nn:Identity"}, "gave [2, 1, 16, 16]; want [2, F]"),
        ({"encoder": "torch.nn:Flatten"}, "crops of 16 and 12 pixels gave 256 and 144 features"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, dict) else "",
)
def test_options_are_checked_before_data_are_loaded(refused, changes, message):
    assert message in refused(**changes)


def test_the_largest_and_smallest_that_are_taken():
    for changes in ({"seed": 2**32 - 1}, {"knn_k": MOST}, {"repulsion_weight": 0.0}, {"lr": 0.0}):
        validate(Config(**changes))


@pytest.mark.parametrize("method", ["simsiam-logo", "all-simsiam"])
def test_what_the_settings_take_from_a_method_is_said(method):
    """Only for the methods that would have it."""
    said = train.remarks(Config(method=method, local_crops=1))
    assert said == ["simsiam-logo: --local-crops 1, so nothing repels"]
    said = train.remarks(Config(method=method, local_crops=0))
    assert said[-1] == "simsiam-logo: --local-crops 0, so only global crops are drawn together"
    assert train.remarks(Config(method=method)) == []


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "--out file: a file; want a folder that takes files"),
        ("file/below", "--out file/below: Not a directory; want"),
        ("/proc/x", "--out /proc/x: "),
        ("x" * 300, "File name too long; want"),
        ("a\0b", "embedded null byte"),
    ],
)
def test_an_out_that_is_no_folder(refused, tmp_path, out, message):
    (tmp_path / "file").write_text("x")
    assert message in refused(out=Path(out))


def test_an_out_that_takes_no_files(refused, monkeypatch):
    def refuse(**_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(train.tempfile, "TemporaryFile", refuse)
    assert "--out out: Permission denied; want a folder that takes files" in refused()


def test_an_earlier_run_that_cannot_be_moved_is_left_alone(command, monkeypatch, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "checkpoint.pt").write_text("x")

    def refuse(*_):
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", refuse)
    ended = command()
    assert "--out out: holds an earlier run and cannot be renamed (Device or" in ended.err
    assert (tmp_path / "out" / "checkpoint.pt").read_text() == "x"


@pytest.mark.parametrize("out", [".", "..", "../here"])
def test_an_earlier_run_in_the_current_folder_is_left_alone(command, tmp_path, monkeypatch, out):
    """If the folder were renamed, the new run would be written into it under its new name."""
    here = tmp_path / "here"
    here.mkdir()
    (here / out / "checkpoint.pt").write_text("x")
    monkeypatch.chdir(here)
    assert "cannot be renamed (ValueError: it is the current folder" in command(out=Path(out)).err
    assert (here / out / "checkpoint.pt").read_text() == "x"
    assert not (tmp_path / "here.1").exists()


@pytest.mark.parametrize("name", ["metrics.csv", "checkpoint.pt.tmp", "results.json"])
def test_a_full_disk_costs_nothing(command, whole, tmp_path, name):
    """/dev/full says what a full disk says. Afterwards --resume ends as if nothing had been."""
    out = tmp_path / "out"
    out.mkdir()
    (out / name).symlink_to("/dev/full")
    ended = command(resume=True)
    assert ended.status == 1
    assert "No space left on device). Free some space, then repeat the command with" in ended.err
    assert not (out / "checkpoint.pt.tmp").exists()
    if (out / name).is_symlink():
        (out / name).unlink()
    assert command(resume=True).status == 0
    assert difference(whole, out) is None


def test_a_disk_that_fills_while_training_keeps_the_last_checkpoint(
    command, whole, tmp_path, monkeypatch
):
    out, fsync, calls = tmp_path / "out", os.fsync, []

    def fill(descriptor):
        calls.append(descriptor)
        if len(calls) > 3:  # CSV, checkpoint, folder: the first checkpoint is whole
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fill)
    ended = command()
    assert "metrics.csv: cannot be written (No space left on device)" in ended.err
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 2
    monkeypatch.setattr(os, "fsync", fsync)
    assert "resumed at step 2 of 3" in command(resume=True).out
    assert difference(whole, out) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_after_the_step_and_costs_nothing(
    command, whole, tmp_path, monkeypatch, number
):
    step = Trainer.train_step

    def step_and_press(self, images):
        if self.step == 0:
            os.kill(os.getpid(), number)
        return step(self, images)

    monkeypatch.setattr(Trainer, "train_step", step_and_press)
    ended = command()
    assert ended.status == 130
    assert ended.err.splitlines()[-1] == (
        "interrupted at step 1 of 3. Repeat the command with --resume to go on from there."
    )
    assert "resumed at step 1 of 3" in command(resume=True).out
    assert difference(whole, tmp_path / "out") is None


@pytest.mark.parametrize("late", [False, True], ids=["in the last step", "after it"])
def test_ctrl_c_at_the_end_of_a_method_does_not_begin_the_next(command, monkeypatch, late):
    step, save = Trainer.train_step, Trainer.save

    def step_and_press(self, images):
        if self.step == 2 and not late:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, images)

    def save_and_press(self, file):
        save(self, file)
        if self.step == 3 and late:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", step_and_press)
    monkeypatch.setattr(Trainer, "save", save_and_press)
    ended = command(method="all-simsiam")
    assert ended.status == 130
    assert "simsiam-multicrop" not in ended.out
    assert "--resume" in ended.err


def test_a_second_ctrl_c_ends_at_once(command, tmp_path, monkeypatch):
    def press_twice(self, images):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("still there")

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(Trainer, "train_step", press_twice)
    ended = command()
    assert ended.status == 130
    assert "interrupted. Repeat the command, with --resume" in ended.err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_ctrl_c_that_a_shell_switched_off_stays_off(command, monkeypatch):
    monkeypatch.setattr(Trainer, "train_step", lambda self, _: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(TypeError):  # the step gave nothing: the signal did not end it
            command()
    finally:
        signal.signal(signal.SIGINT, before)


RUN = {"Net", "Tied", "constant", "detached", "nan", "inf", "huge"}


@pytest.mark.parametrize("factory", sorted({*fuzz.FACTORIES} - RUN))
def test_an_encoder_that_fails_is_named(command, tmp_path, factory):
    (tmp_path / "nets.py").write_text(fuzz.ENCODERS)
    sys.modules.pop("nets", None)
    ended = command(encoder=f"nets:{factory}", method="moco-logo", export=True)
    assert ended.status == 1
    assert "error: " in ended.err
    assert "--encoder" in ended.err
    raised_in_the_file = ("Trains", "Late", "Whole", "Backward", "Base", "raises", "exits", "deep")
    if factory in raised_in_the_file:
        assert f"{tmp_path / 'nets.py'}, line " in ended.err
    if "training and" in ended.out:  # after loading what no probe can tell before
        assert factory in ("Trains", "Late", "Whole", "Backward", "Stateful", "Pinned")


def test_an_encoder_with_shared_weights_is_exported(command, tmp_path):
    (tmp_path / "nets.py").write_text(fuzz.ENCODERS)
    sys.modules.pop("nets", None)
    assert command(encoder="nets:Tied", export=True).status == 0
    assert (tmp_path / "out" / "encoder.safetensors").stat().st_size > 0


@pytest.mark.parametrize("factory", ["nan", "inf", "huge"])
def test_features_that_are_not_finite_are_said(command, tmp_path, factory):
    (tmp_path / "nets.py").write_text(fuzz.ENCODERS)
    sys.modules.pop("nets", None)
    ended = command(encoder=f"nets:{factory}")
    assert ended.status == 1
    assert "features are not finite" in ended.err or "the loss is nan" in ended.err


def test_a_loss_that_is_not_finite_is_said_with_its_terms_and_not_saved(
    command, tmp_path, monkeypatch
):
    set_lr = Trainer.set_lr

    def poison(self):
        if self.step == 1:
            self.network.predictor[0].weight.data.fill_(float("nan"))
        return set_lr(self)

    monkeypatch.setattr(Trainer, "set_lr", poison)
    ended = command(log_every=MOST)  # the step of a checkpoint, not of a row
    assert ended.status == 1
    assert "step 2: the loss is nan (total nan, gg nan, lg nan, ll " in ended.err
    assert "try a lower --lr" in ended.err
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


@pytest.fixture
def stopped(command, tmp_path, monkeypatch) -> Path:
    """A run that stands at step 2 of 3."""
    save = Trainer.save

    def save_and_stop(self, file):
        save(self, file)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", save_and_stop)
    assert command().status == 130
    monkeypatch.setattr(Trainer, "save", save)
    return tmp_path / "out"


def drop(key: str) -> Callable[[dict], None]:
    return lambda state: state.pop(key)


@pytest.mark.parametrize(
    "change",
    [
        *map(drop, ("config", "step", "csv_bytes", "network", "optimizer", "random", "history")),
        lambda state: state.update(config=[1]),
        lambda state: state["network"].popitem(),
        lambda state: state.update(csv_bytes=None),
        lambda state: state.update(step=[]),
        lambda state: state.update(step=4),
        lambda state: state.update(step=-1),
        lambda state: state.update(step=3),  # the last, but there is no evaluation
        lambda state: state.update(seconds="x"),
        lambda state: state.update(history=[{"knn": 0.5}]),
        lambda state: state.update(history=[0.5]),
        lambda state: state["random"].update(torch=torch.zeros(3)),
        lambda state: state["optimizer"].update(param_groups=[]),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(command, stopped, change):
    state = torch.load(stopped / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, stopped / "checkpoint.pt")
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    ended = command(resume=True)
    assert ended.status == 1
    assert "checkpoint.pt does not fit" in ended.err
    assert before == {path.name: path.read_bytes() for path in stopped.iterdir()}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path.unlink(), path.mkdir()), "checkpoint.pt is not a readable checkpoint"),
        (lambda path: path.write_bytes(b""), "checkpoint.pt is not a readable checkpoint"),
        (lambda path: path.with_name("metrics.csv").write_bytes(b"x" * 9999), "metrics.csv: not"),
        (lambda path: path.with_name("metrics.csv").unlink(), "metrics.csv has 0 bytes"),
    ],
    ids=["folder", "empty", "other rows", "no rows"],
)
def test_a_damaged_run_is_not_resumed(command, stopped, damage, message):
    damage(stopped / "checkpoint.pt")
    ended = command(resume=True)
    assert ended.status == 1
    assert message in ended.err


def test_a_run_does_not_go_on_with_other_images(command, stopped, monkeypatch):
    load = train.load_data

    def other(config):
        data = load(config)
        data.train_images[0] += 1
        return data

    monkeypatch.setattr(train, "load_data", other)
    assert "belongs to other images" in command(resume=True).err


def test_a_finished_run_that_is_resumed_draws_its_pictures_again(command):
    whole = command()
    again = command(resume=True)
    assert again.status == 0
    assert "resumed at step 3 of 3" in again.out

    def kept(ended: Ended) -> list[str]:
        return [line.rsplit(maxsplit=1)[0] for line in ended.out.splitlines() if "0." in line][-3:]

    assert kept(again) == kept(whole)


def test_resume_without_a_checkpoint_says_so(command):
    assert "no checkpoint in out, so it begins at step 0" in command(resume=True).out


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("two\nlines"), 1, "error: two lines"),
        (MemoryError(), 1, "error: out of memory (MemoryError). Try a smaller --batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory"), 1, "out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "error: out of memory"),
        (OSError(errno.ENOSPC, "No space left on device", "x.png"), 1, "error: x.png: No space"),
        (OSError("odd"), 1, "error: OSError: odd. Mend that or choose another --out"),
        (BrokenPipeError(), 1, "error: nobody reads the output any more"),
        (KeyboardInterrupt(), 130, None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_what_a_user_can_mend_is_one_line(monkeypatch, error, status, message):
    monkeypatch.setattr(os, "dup2", lambda *_: None)  # what it does to our own output
    with pytest.raises(SystemExit) as caught, in_words():
        raise error
    if message is None:
        assert caught.value.code == status
    else:
        assert message in caught.value.code
        assert "\n" not in caught.value.code


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ValueError("a bug"), AssertionError()])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)), in_words():
        raise error


def test_an_error_of_the_output_is_not_blamed_on_a_file(tmp_path):
    with pytest.raises(BrokenPipeError), errors.writing(tmp_path):
        raise BrokenPipeError


def test_odd_commands_and_damaged_files_never_end_in_a_traceback():
    """The short form of fuzz.py."""
    ends = fuzz.tries(range(10), seed=1, seconds=2)
    assert ends.keys() <= {f"status {status}" for status in fuzz.RIGHT}, ends
    assert len(ends) > 1
