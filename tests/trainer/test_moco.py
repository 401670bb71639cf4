"""MoCo's parts in the training step: momentum encoder, keys, queue, presets."""

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import train
import trainer as trainer_module
from config import MOCO_METHODS, Config, validate, with_preset
from data import load_scenes
from model import MoCo
from trainer import Trainer

# 16 images x 2 global crops are 32 keys a step, and 80 is no multiple of that.
TINY = Config(
    method="moco-logo", scenes=(64, 24), image_size=32, batch_size=16, epochs=1, dim=16,
    global_size=16, local_size=8, queue_size=80, temperature=0.1, ema=0.9, log_every=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def data():
    return load_scenes(64, 24, seed=0, size=32)


@pytest.fixture
def trainer(data, tmp_path) -> Trainer:
    trainer = Trainer(TINY, data, tmp_path)
    trainer.start()
    trainer.network.train()
    return trainer


def copies(*modules: nn.Module) -> list[torch.Tensor]:
    """The parameters, as they are now."""
    return [p.detach().clone() for p in nn.Sequential(*modules).parameters()]


def spy_on_loss(monkeypatch) -> list[dict]:
    """What logo_loss gets at each step: constants copied, since the queue changes in place."""
    calls = []
    loss = trainer_module.logo_loss

    def spy(global_crops, local_crops, targets, **settings):
        answer = loss(global_crops, local_crops, targets, **settings)
        calls.append(
            settings
            | {"queries": global_crops, "local": local_crops, "keys": targets.clone()}
            | {"targets": targets, "negatives": settings["negatives"].clone(), "terms": answer}
        )
        return answer

    monkeypatch.setattr(trainer_module, "logo_loss", spy)
    return calls


def test_the_momentum_encoder_starts_as_a_copy(trainer):
    network = trainer.network
    for average, value in zip(
        copies(network.momentum), copies(network.encoder, network.projector), strict=True
    ):
        assert torch.equal(average, value)


def test_ema_once_a_step(trainer):
    """After each step, ema * before + (1 - ema) * online after the optimiser."""
    network = trainer.network
    for _ in range(3):
        before = copies(network.momentum)
        trainer.set_lr()
        trainer.train_step(trainer.batch())
        trainer.step += 1
        after, online = copies(network.momentum), copies(network.encoder, network.projector)
        for old, new, value in zip(before, after, online, strict=True):
            torch.testing.assert_close(new, 0.9 * old + 0.1 * value, rtol=1e-5, atol=1e-7)
            assert not torch.equal(old, new)


def test_the_average_has_the_bits_of_one_lerp_for_each_parameter(trainer):
    """All parameters move in one call, which must not change a number of earlier runs."""
    network = trainer.network
    with torch.no_grad():
        for value in network.body.parameters():
            value.add_(torch.randn_like(value))
    expected = [
        old.lerp_(value, 1 - 0.99)
        for old, value in zip(copies(network.momentum), copies(network.body), strict=True)
    ]
    network.update_momentum(0.99)
    for new, value in zip(copies(network.momentum), expected, strict=True):
        assert torch.equal(new, value)


def test_keys_are_normalised_by_their_own_batch(trainer, monkeypatch):
    calls = spy_on_loss(monkeypatch)
    trainer.train_step(trainer.batch())
    keys = calls[0]["keys"]
    assert keys.mean((0, 1)).abs().max() < 1e-5
    assert (keys.var((0, 1), correction=0) - 1).abs().max() < 1e-2


def test_a_tensor_that_two_layers_share_is_averaged_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x.flatten(1)))

    network = MoCo(Tied(), 4, dim=4, queue_size=8)
    old = network.momentum[0].a.weight.clone()
    with torch.no_grad():
        network.encoder.a.weight += 1
    network.update_momentum(0.9)
    torch.testing.assert_close(network.momentum[0].a.weight, old + 0.1)
    assert network.momentum[0].b.weight is network.momentum[0].a.weight


@pytest.mark.parametrize("method", MOCO_METHODS)
def test_keys_are_of_global_crops_alone_and_carry_no_gradient(data, tmp_path, monkeypatch, method):
    trainer = Trainer(replace(TINY, method=method), data, tmp_path)
    network, calls = trainer.network, spy_on_loss(monkeypatch)
    seen = {"online": [], "momentum": []}
    for name, module in (("online", network.encoder), ("momentum", network.momentum)):
        module.register_forward_hook(lambda _, x, y, name=name: seen[name].append(x[0].shape))
    trainer.train_step(trainer.batch())
    global_shape, local_shape = (32, 1, 16, 16), (32, 1, 8, 8)
    assert seen["momentum"] == [global_shape]  # one pass over all G global crops
    assert seen["online"] == [global_shape] + [local_shape] * (method != "moco")

    (call,) = calls
    assert call["queries"].requires_grad
    assert not call["targets"].requires_grad
    assert call["queries"].shape == call["keys"].shape == (16, 2, 16)
    assert call["similarity"] == "info_nce"
    assert call["repulsion_weight"] == (TINY.repulsion_weight if method == "moco-logo" else 0)
    assert all(p.grad is not None for p in network.encoder.parameters())
    assert all(p.grad is None and not p.requires_grad for p in network.momentum.parameters())
    learnt = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert learnt == {id(p) for p in network.parameters() if p.requires_grad}


def test_the_queue_holds_the_last_keys_in_order(trainer, monkeypatch):
    queue, calls = trainer.network.queue, spy_on_loss(monkeypatch)
    random_keys = queue.keys.clone()
    for step in range(4):
        trainer.step = step
        trainer.train_step(trainer.batch())
    keys = [nn.functional.normalize(call["keys"].reshape(-1, 16), dim=1) for call in calls]
    assert queue.pointer == 4 * 32 % 80
    oldest_first = queue.keys.roll(-int(queue.pointer), 0)
    torch.testing.assert_close(oldest_first, torch.cat(keys)[-80:])

    # A step's negatives are what was in the queue before it: no key of its own.
    assert torch.equal(calls[0]["negatives"], random_keys)
    for own, call in zip(keys, calls, strict=True):
        assert (own @ call["negatives"].T).max() < 1 - 1e-6
    for older, call in zip(keys, calls[1:], strict=False):
        assert ((older @ call["negatives"].T).amax(1) > 1 - 1e-6).all()  # but all of the last


def test_the_loss_is_eq_1(trainer, monkeypatch):
    """Terms of a step from the formula, pair by pair."""
    calls = spy_on_loss(monkeypatch)
    trainer.train_step(trainer.batch())
    (call,) = calls

    def unit(x):
        return nn.functional.normalize(x.detach(), dim=-1)

    q, y, k, n = (unit(call[name]) for name in ("queries", "local", "keys", "negatives"))

    def info_nce(query, key):
        positive = (query * key).sum(-1) / TINY.temperature
        negative = query @ n.T / TINY.temperature
        return (torch.logsumexp(torch.cat([positive[:, None], negative], 1), 1) - positive).mean()

    gg = (info_nce(q[:, 0], k[:, 1]) + info_nce(q[:, 1], k[:, 0])) / 2
    lg = sum(info_nce(y[:, i], k[:, j]) for i in range(2) for j in range(2)) / 4
    ll = (y[:, 0] * y[:, 1]).sum(-1).mean()
    total = (2 * gg + 4 * lg) / 6 + TINY.repulsion_weight * ll
    for got, expected in zip(call["terms"], (total, gg, lg, ll), strict=True):
        torch.testing.assert_close(got.detach(), expected, rtol=1e-5, atol=1e-6)


def parsed(monkeypatch, *words: str) -> Config:
    """The settings that the command would run with."""
    configs = []
    monkeypatch.setattr(sys, "argv", ["train.py", *words])
    monkeypatch.setattr(train, "run", lambda config, _: configs.append(config))
    train.main()
    return configs[0]


def test_presets_are_the_published_settings(monkeypatch):
    moco = parsed(monkeypatch, "--preset", "official", "--method", "moco-logo", "--data", "cifar")
    validate(moco)
    assert (moco.method, moco.dataset, moco.encoder) == ("moco-logo", "cifar10", "resnet18")
    assert (moco.dim, moco.queue_size, moco.ema, moco.temperature) == (128, 4096, 0.999, 0.07)
    assert (moco.batch_size, moco.lr, moco.momentum, moco.weight_decay) == (256, 0.03, 0.9, 1e-4)
    assert (moco.global_scale, moco.local_scale) == ((0.4, 1.0), (0.05, 0.4))
    assert (moco.global_crops, moco.local_crops) == (2, 2)
    assert (moco.global_size, moco.local_size, moco.pair_reduction) == (32, 32, "mean")
    assert moco.repulsion_weight == 1e-4
    simsiam = parsed(monkeypatch, "--preset", "paper", "--data", "cifar")
    validate(simsiam)
    assert (simsiam.dim, simsiam.bottleneck, simsiam.batch_size) == (2048, 512, 512)
    assert (simsiam.lr, simsiam.predictor_lr, simsiam.pair_reduction) == (0.03, 1.0, "sum")


def test_an_explicit_option_changes_the_preset(monkeypatch):
    words = (
        "--queue-size", "512", "--epochs", "2", "--preset", "paper", "--method", "moco-logo",
        "--seed", "3", "--objective", "difference",
    )  # fmt: skip
    config = parsed(monkeypatch, *words)
    expected = replace(with_preset("paper", "moco-logo"), preset="paper", seed=3)
    assert config == replace(expected, queue_size=512, epochs=2, objective="difference")
    # Even one that says what the default would be without the preset.
    assert parsed(monkeypatch, *words[4:], "--dim", str(Config().dim)).dim == Config().dim


def test_a_preset_for_both_frameworks_at_once_is_refused(monkeypatch):
    with pytest.raises(SystemExit, match="want --method all-simsiam, all-moco or one method"):
        parsed(monkeypatch, "--preset", "paper", "--method", "all")


def test_without_a_preset_the_defaults_stand(monkeypatch):
    assert parsed(monkeypatch) == Config()
    assert Config().method == "simsiam-logo"


def test_key_groups_normalise_random_parts_by_themselves(data, tmp_path, monkeypatch):
    trainer = Trainer(replace(TINY, key_groups=5), data, tmp_path)
    network, calls, passes = trainer.network, spy_on_loss(monkeypatch), []
    network.momentum.register_forward_hook(lambda _, x, y: passes.append((x[0], y)))
    monkeypatch.setattr(trainer, "augment", lambda images: crops)
    crops = torch.randn(32, 1, 16, 16), torch.randn(32, 1, 8, 8)
    trainer.train_step(trainer.batch())
    assert [len(x) for x, _ in passes] == [7, 7, 6, 6, 6]  # 2 x 16 crops
    for _, part in passes:
        assert part.mean(0).abs().max() < 1e-5
    # Each crop passes once, and its key stands where the crop did: view-major rows, by image.
    keys = calls[0]["keys"].transpose(0, 1).reshape(32, -1)
    rows = [int((crops[0] == x).flatten(1).all(1).nonzero()) for part, _ in passes for x in part]
    assert sorted(rows) == list(range(32))
    assert rows != sorted(rows)
    assert torch.equal(keys[rows], torch.cat([y for _, y in passes]))
    passes.clear()
    trainer.train_step(trainer.batch())
    again = [int((crops[0] == x).flatten(1).all(1).nonzero()) for part, _ in passes for x in part]
    assert again != rows


def test_a_run_with_key_groups_resumes_bit_for_bit(data, tmp_path, monkeypatch):
    config = replace(TINY, key_groups=4, epochs=2, checkpoint_every=3)
    whole = Trainer(config, data, tmp_path)
    whole.start()
    whole.run()
    (tmp_path / "half").mkdir()
    stopped = Trainer(config, data, tmp_path / "half")
    stopped.start()
    save = Trainer.save

    def save_and_stop(self, file):
        save(self, file)
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    monkeypatch.setattr(Trainer, "save", save)
    resumed = Trainer(config, data, tmp_path / "half")
    resumed.resume()
    assert resumed.step == 3
    resumed.run()
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name
