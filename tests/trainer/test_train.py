"""The command as a user runs it: what it writes, what it refuses, and that a kill costs nothing."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from kills import difference, finish, kill_once, rows, rows_without_time

import train
from config import METHODS, MOCO_METHODS, SIMSIAM_METHODS, Config
from data import load_scenes
from encoder import load_encoder
from errors import UserError
from ranks import Ranks
from trainer import CSV_COLUMNS, Trainer, read_metrics

STEPS = 24  # 64 / 16 steps in each of 6 epochs
TINY_CONFIG = Config(
    scenes=(64, 24), image_size=32, batch_size=16, epochs=1, dim=16, bottleneck=8, global_size=16,
    local_size=8, local_crops=2, knn_every=1, log_every=1, checkpoint_every=3,
)  # fmt: skip


def test_all_methods_write_all_files_and_one_table(tmp_path):
    out = tmp_path / "run"
    done = finish(out, "--method", "all", "--epochs", "2", "--export")
    assert done.returncode == 0, done.stderr
    for name in ("raw pixels", "untrained encoder", *METHODS, "kNN mAP", "linear mAP"):
        assert name in done.stdout
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["raw pixels", "untrained encoder", *METHODS]
    assert all(0 < row["knn"] < 1 and 0 < row["linear"] < 1 for row in rows)
    assert (out / "knn.png").stat().st_size > 1000
    for method in METHODS:
        for name in ("losses.png", "crops.png", "similarity.png", "checkpoint.pt"):
            assert (out / method / name).stat().st_size > 1000
        metrics = read_metrics(out / method / "metrics.csv")
        assert metrics["step"].tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
        assert (metrics["lg"] == 0).all() == (method in ("simsiam", "moco"))
        assert (metrics["ll"] == 0).all() == (method in ("simsiam", "moco"))
    encoder, mean, _ = load_encoder(out / "simsiam-logo" / "encoder.safetensors")
    saved = torch.load(out / "simsiam-logo" / "checkpoint.pt", weights_only=True)["network"]
    for key, value in encoder.state_dict().items():
        assert torch.equal(value, saved[f"encoder.{key}"])
    assert mean.shape == (1,)


@pytest.mark.parametrize(
    ("method", "more", "saved"),
    [
        ("moco-logo", ("--affinity", "learned"), {"affinity", "affinity_optimizer"}),
        (
            "simsiam-logo",
            ("--affinity", "learned", "--repulsion-step", "clipped"),
            {"affinity", "affinity_optimizer", "repulsion_optimizer"},
        ),
    ],
)
def test_a_killed_run_continues_bit_for_bit(tmp_path, method, more, saved):
    """The short form of kills.py: what `difference` compares is all that a run leaves."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ("--method", method, *more)
    assert finish(whole, *words).returncode == 0
    wall = random.Random()  # Other moments at every run of the test; the message names them.
    moments, count = [], 0
    for target in sorted(wall.sample(range(2, STEPS), 3 if not saved else 1)):
        wait = wall.uniform(0, 0.05)
        reached = []

        def when(elapsed, target=target, wait=wait, reached=reached):
            if not reached and rows(killed) > target:
                reached.append(elapsed)
            return bool(reached) and elapsed > reached[0] + wait

        count += kill_once(killed, (*words, "--resume"), when)
        moments.append((target, rows(killed)))
    assert count >= 1, moments
    done = finish(killed, *words, "--resume")
    assert done.returncode == 0, (moments, done.stderr)

    assert difference(whole, killed) is None, moments
    expected = torch.load(whole / "checkpoint.pt", weights_only=True)
    if method == "moco-logo":
        assert {"queue.keys", "queue.pointer", "momentum.1.0.weight"} < expected["network"].keys()
        # 200 keys are no multiple of a step's 2 x 16: writes have wrapped.
        assert expected["network"]["queue.pointer"] == STEPS * 32 % 200
    assert expected["repulsion"].keys() == saved
    optimizers = [expected["optimizer"]]
    optimizers += [s for name, s in expected["repulsion"].items() if name.endswith("optimizer")]
    for optimizer in optimizers:
        assert all("momentum_buffer" in state for state in optimizer["state"].values())
        assert optimizer["state"]
    assert len(rows_without_time(whole / "metrics.csv")) == STEPS + 1


def test_two_runs_that_differ_are_told_apart(tmp_path):
    """What the comparison of a killed run with a whole one rests on."""
    state = {
        "network": {"w": torch.zeros(3)},
        "seconds": 1.0,
        "csv_bytes": 9,
        "history": [{"a": 1}],
    }
    changes = ({"w": torch.zeros(4)}, {"w": torch.tensor([0.0, 0.0, 1e-30])}, {"v": torch.zeros(3)})
    others = [state | {"network": change} for change in changes]
    others += [state | {"history": [{"a": 2}]}, state | {"history": []}]
    for name, content in (("one", state), ("two", state | {"seconds": 2.0, "csv_bytes": 8})):
        (tmp_path / name).mkdir()
        torch.save(content, tmp_path / name / "checkpoint.pt")
        (tmp_path / name / "metrics.csv").write_text(f"step,ms\n1,{name}\n")
    assert difference(tmp_path / "one", tmp_path / "two") is None
    for other in others:
        torch.save(other, tmp_path / "two" / "checkpoint.pt")
        assert difference(tmp_path / "one", tmp_path / "two")
    torch.save(state, tmp_path / "two" / "checkpoint.pt")
    (tmp_path / "two" / "metrics.csv").write_text("step,ms\n2,5\n")
    assert difference(tmp_path / "one", tmp_path / "two") == "metrics.csv"


@pytest.fixture
def stopped(tmp_path, monkeypatch) -> tuple[Config, object, Path]:
    """A run that stopped after step 3 of 4, in the middle of an epoch."""
    data = load_scenes(64, 24, seed=0, size=32)
    trainer = Trainer(TINY_CONFIG, data, tmp_path)
    trainer.start()
    save = Trainer.save

    def save_and_stop(self, file):
        save(self, file)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    monkeypatch.setattr(Trainer, "save", save)
    assert trainer.step == 3
    return TINY_CONFIG, data, tmp_path


def test_resume_cuts_rows_that_the_checkpoint_does_not_know(stopped):
    config, data, out = stopped
    with (out / "metrics.csv").open("a") as file:
        file.write("4,1.0,0.1,torn off in the mid")
    trainer = Trainer(config, data, out)
    trainer.resume()
    trainer.run()
    assert read_metrics(out / "metrics.csv")["step"].tolist() == [1, 2, 3, 4]


def test_resume_with_another_configuration_says_which(stopped):
    config, data, out = stopped
    changed = replace(config, lr=0.9, global_scale=(0.2, 0.9))
    with pytest.raises(UserError, match=r"global_scale was .*lr was .*is 0\.9"):
        Trainer(changed, data, out).resume()
    Trainer(replace(config, out=Path("elsewhere"), export=True), data, out).resume()


def test_resume_of_another_method_is_refused(stopped):
    config, data, out = stopped
    with pytest.raises(UserError, match="method was simsiam-logo, is simsiam"):
        Trainer(replace(config, method="simsiam"), data, out).resume()


def test_resume_notices_a_shortened_csv(stopped):
    config, data, out = stopped
    (out / "metrics.csv").write_text("step\n")
    with pytest.raises(UserError, match="it was changed"):
        Trainer(config, data, out).resume()


def test_an_earlier_run_is_kept(stopped):
    config, data, out = stopped
    folder = out.parent / "run"
    out.rename(folder)
    old = (folder / "checkpoint.pt").read_bytes()
    train.run_method(config, data, folder, Ranks())
    assert (folder.with_name("run.1") / "checkpoint.pt").read_bytes() == old
    assert read_metrics(folder / "metrics.csv")["step"].tolist() == [1, 2, 3, 4]


def test_every_image_is_seen_once_an_epoch(tmp_path):
    data = load_scenes(64, 8, seed=0, size=32)
    trainer = Trainer(replace(TINY_CONFIG, epochs=2), data, tmp_path)
    orders = []
    for epoch in range(2):
        images = []
        for step in range(4):
            trainer.step = 4 * epoch + step
            images.append(trainer.batch())
        orders.append(torch.cat(images))
    codes = [sorted(image.numpy().tobytes() for image in order) for order in orders]
    assert codes[0] == codes[1] == sorted(i.numpy().tobytes() for i in data.train_images)
    assert not torch.equal(*orders)


def test_learning_rates_follow_simsiam(tmp_path):
    config = replace(TINY_CONFIG, lr=1.6, predictor_lr=5.0, epochs=4)
    trainer = Trainer(config, load_scenes(64, 8, seed=0, size=32), tmp_path)
    for step, share in ((0, 1.0), (8, 0.5), (16, 0.0)):
        trainer.step = step
        assert trainer.set_lr() == pytest.approx(0.1 * share)  # 1.6 * 16 / 256
        assert trainer.optimizer.param_groups[1]["lr"] == pytest.approx(0.5)


def test_methods_start_from_the_same_weights_and_differ_in_the_loss(tmp_path):
    data = load_scenes(64, 8, seed=0, size=32)
    terms, weights = {}, {}
    for method in METHODS:
        trainer = Trainer(replace(TINY_CONFIG, method=method, repulsion_weight=0.5), data, tmp_path)
        trainer.start()
        weights[method] = trainer.network.state_dict()["encoder.stem.0.weight"].clone()
        terms[method], _ = trainer.train_step(trainer.batch())
    assert all(torch.equal(weights["simsiam"], weight) for weight in weights.values())
    for family in (SIMSIAM_METHODS, MOCO_METHODS):
        plain, multi, logo = (terms[m] for m in family)
        assert plain.total.item() == pytest.approx(plain.gg.item(), abs=1e-6)
        # Two ordered global pairs and 2 x 2 local-to-global ones in one average.
        attraction = (2 * multi.gg + 4 * multi.lg).item() / 6
        assert multi.total.item() == pytest.approx(attraction, abs=1e-5)
        assert logo.total.item() == pytest.approx(attraction + 0.5 * logo.ll.item(), abs=1e-5)


def test_repulsion_sees_z_and_targets_get_no_gradient(tmp_path, monkeypatch):
    import trainer as trainer_module

    seen = {}
    loss = trainer_module.logo_loss

    def spy(global_crops, local_crops, targets, **settings):
        seen.update(settings, global_crops=global_crops, local_crops=local_crops, targets=targets)
        return loss(global_crops, local_crops, targets, **settings)

    monkeypatch.setattr(trainer_module, "logo_loss", spy)
    trainer = Trainer(TINY_CONFIG, load_scenes(64, 8, seed=0, size=32), tmp_path)
    _, z = trainer.train_step(trainer.batch())
    assert not seen["targets"].requires_grad
    assert seen["global_crops"].shape == seen["targets"].shape == (16, 2, 16)
    assert torch.equal(seen["targets"], z.view(2, 16, 16).transpose(0, 1))
    # z comes out of a batch norm without affine parameters, h(z) does not.
    z_local = seen["repulsion_features"]
    assert z_local.requires_grad
    assert z_local.mean((0, 1)).abs().max() < 1e-5 < seen["local_crops"].mean((0, 1)).abs().max()
    # Views of the view-major forward pass, not copies.
    for name in ("global_crops", "local_crops", "targets", "repulsion_features"):
        assert seen[name].stride() == (16, 256, 1)


@pytest.mark.parametrize(("method", "most"), [("simsiam-logo", 2), ("moco-logo", 20)])
def test_bf16_trains(tmp_path, method, most):
    config = replace(TINY_CONFIG, bf16=True, method=method)
    trainer = Trainer(config, load_scenes(64, 24, seed=0, size=32), tmp_path)
    trainer.start()
    trainer.run()
    metrics = read_metrics(tmp_path / "metrics.csv")
    assert len(metrics["step"]) == 4
    assert abs(metrics["total"]).max() < most
    assert all(p.dtype == torch.float32 for p in trainer.network.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"global_crops": 1}, "--global-crops: got 1; want at least 2"),
        ({"batch_size": 1}, "--batch-size: got 1"),
        ({"local_scale": (0.5, 0.2)}, "--local-scale: got 0.5 0.2"),
        ({"knn_temperature": 0.0}, "--knn-temperature: got 0.0"),
        ({"temperature": float("nan")}, "--temperature: got nan"),
        ({"ema": 1.0}, "--ema: got 1.0; want 0 <= ema < 1"),
        ({"queue_size": 0}, "--queue-size: got 0; want at least 1"),
        ({"dataset": "cifar10"}, "--dataset cifar10 needs --data"),
        ({"dataset": "folder", "data": Path("no/such/place")}, "no/such/place: no such folder"),
        ({"batch_size": 100}, "--batch-size: got 100 for 64 training images"),
        ({"scenes": (0, 5)}, "--scenes: got 0 5"),
        ({"device": "abacus"}, "--device: got 'abacus'"),
    ],
)
def test_bad_settings_are_refused_in_words(changes, message, tmp_path):
    with pytest.raises(UserError) as caught:
        train.run(replace(TINY_CONFIG, out=tmp_path / "run", **changes))
    assert message in str(caught.value)


def test_an_error_of_the_user_is_one_line_without_a_traceback(tmp_path):
    done = finish(tmp_path, "--dataset", "cifar10", "--data", "no/such/folder")
    assert done.returncode == 1
    assert done.stderr.startswith("error: --data no/such/folder: no file data_batch_1")
    assert "Traceback" not in done.stderr


def test_columns_match_rows(tmp_path):
    trainer = Trainer(TINY_CONFIG, load_scenes(64, 24, seed=0, size=32), tmp_path)
    trainer.start()
    trainer.run()
    header, *rows = (tmp_path / "metrics.csv").read_text().splitlines()
    assert header.split(",") == list(CSV_COLUMNS)
    assert all(len(row.split(",")) == len(CSV_COLUMNS) for row in rows)
