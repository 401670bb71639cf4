"""--tensorboard writes what the CSV has, once, also over a resume.

Against a stub of torch.utils.tensorboard, since the package is not among those that the tests need.
"""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

import train
from board import Board
from config import Config
from data import load_scenes
from errors import UserError
from metrics import CSV_COLUMNS, read_metrics
from trainer import Trainer

TINY = Config(
    scenes=(64, 8), image_size=32, batch_size=16, epochs=2, dim=16, bottleneck=8, global_size=16,
    local_size=8, log_every=1, checkpoint_every=3, tensorboard=True,
)  # fmt: skip


class Writer:
    """Keeps what it is given, and forgets what TensorBoard would not show."""

    shown: dict[tuple[str, int], list[float]]  # by tag and step

    def __init__(self, folder: str, purge_step: int) -> None:
        for tag, step in list(self.shown):
            if step >= purge_step:
                del self.shown[tag, step]
        self.unflushed: list[tuple[str, int, float]] = []

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.unflushed.append((tag, step, value))

    def flush(self) -> None:
        for tag, step, value in self.unflushed:
            self.shown.setdefault((tag, step), []).append(value)
        self.unflushed.clear()

    close = flush


@pytest.fixture
def shown(monkeypatch) -> dict[tuple[str, int], list[float]]:
    found = {}
    monkeypatch.setattr(Writer, "shown", found, raising=False)
    module = SimpleNamespace(SummaryWriter=Writer)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return found


def test_it_shows_what_the_csv_has_once(shown, tmp_path, monkeypatch):
    """A run that goes on after a checkpoint at step 3 and a row of step 4."""
    data = load_scenes(64, 8, seed=0, size=32)
    trainer = Trainer(TINY, data, tmp_path)
    trainer.start()
    batch = trainer.batch

    def fail_at_step_5():
        if trainer.step == 4:
            raise KeyboardInterrupt
        return batch()

    monkeypatch.setattr(trainer, "batch", fail_at_step_5)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    assert ("total", 4) in shown
    resumed = Trainer(TINY, data, tmp_path)
    resumed.resume()
    assert resumed.step == 3
    resumed.run()

    metrics = read_metrics(tmp_path / "metrics.csv")
    assert metrics["step"].tolist() == list(range(1, 9))
    columns = [name for name in CSV_COLUMNS if name != "step"]
    expected = {
        (name, int(step)): [value]
        for name in columns
        for step, value in zip(metrics["step"], metrics[name], strict=True)
        if not math.isnan(value)
    }
    expected |= {("knn", entry["step"]): [entry["knn"]] for entry in resumed.history}
    assert shown == expected


def test_a_checkpoint_counts_no_row_that_is_not_written(shown, tmp_path, monkeypatch):
    trainer = Trainer(TINY, load_scenes(64, 8, seed=0, size=32), tmp_path)
    trainer.start()
    at_save = []
    monkeypatch.setattr(trainer, "save", lambda _: at_save.append((trainer.step, max(
        step for _, step in shown))))  # fmt: skip
    trainer.run()
    assert at_save == [(3, 3), (6, 6), (8, 8)]


def test_without_the_option_nothing_is_imported(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with Board(False, tmp_path, 0) as board:
        board.write(1, {"loss": 1.0})
        board.flush()


def test_without_the_package_it_is_told_before_data_are_loaded(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(train, "load_data", lambda _: pytest.fail("data were loaded"))
    with pytest.raises(UserError, match=r"--tensorboard: the package is missing .*\[tensorboard\]"):
        train.run(replace(TINY, out=tmp_path))
