"""The two published algorithms: what each step changes, and what it leaves alone."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import train
from config import Config, with_preset
from data import load_scenes
from errors import UserError
from model import by_image
from repulsion import norm
from trainer import Trainer

TINY = Config(
    method="simsiam-logo", scenes=(64, 8), image_size=32, batch_size=16, epochs=1, dim=16,
    bottleneck=8, global_size=16, local_size=8, queue_size=80, affinity="learned", affinity_lr=0.8,
)  # fmt: skip
METHODS = ("simsiam-logo", "moco-logo")
ALGORITHMS = ("joint", "clipped")


@pytest.fixture(scope="module")
def data():
    return load_scenes(64, 8, seed=0, size=32)


@pytest.fixture
def trained(data, tmp_path):
    """Makes trainers that stand before their first step."""

    def make(**changes) -> Trainer:
        trainer = Trainer(replace(TINY, **changes), data, tmp_path)
        trainer.start()
        trainer.network.train()
        trainer.set_lr()
        return trainer

    return make


def copies(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def test_the_affinity_alone_learns_in_its_own_step(trained):
    """With the encoder at rest its objective falls, from chance; the encoder stays as it is."""
    trainer = trained()
    before = copies(trainer.network)
    _, crops = trainer.augment(trainer.batch())
    local = by_image(trainer.network(crops)[0], TINY.batch_size)
    objectives = []
    for _ in range(80):
        trainer.repulsion.learn(local)
        objectives.append(float(trainer.repulsion.objective))
    assert objectives[0] == pytest.approx(2 * 0.6931, abs=0.15)
    assert sum(objectives[-10:]) / 10 < 0.8
    assert all(p.grad is None for p in trainer.network.parameters())
    for old, new in zip(before, copies(trainer.network), strict=True):
        assert torch.equal(old, new)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_moves_theta_by_its_objective_alone(trained, method, algorithm):
    """After a step of the trainer θd is where its own step left it: the encoder's loss gave it no
    gradient, and its optimiser was called once.
    """
    trainer = trained(method=method, repulsion_step=algorithm)
    repulsion, after = trainer.repulsion, []
    learn = repulsion.learn

    def spy(local):
        learn(local)
        after.extend((p.detach().clone(), p.grad.clone()) for p in repulsion.affinity.parameters())

    before, encoder = copies(repulsion.affinity), copies(trainer.network.encoder)
    repulsion.learn = spy
    trainer.train_step(trainer.batch())
    parameters = list(repulsion.affinity.parameters())
    assert len(after) == len(parameters)
    for old, parameter, (value, gradient) in zip(before, parameters, after, strict=True):
        assert torch.equal(parameter, value)
        assert torch.equal(parameter.grad, gradient)
        assert not parameter.requires_grad
        assert old.shape == value.shape
    assert any(not torch.equal(old, p) for old, p in zip(before, parameters, strict=True))
    assert any(
        not torch.equal(old, new)
        for old, new in zip(encoder, copies(trainer.network.encoder), strict=True)
    )


@pytest.mark.parametrize("method", METHODS)
def test_joint_is_attraction_plus_weighted_affinity(trained, method):
    trainer = trained(method=method, repulsion_weight=0.5)
    terms, _ = trainer.train_step(trainer.batch())
    attraction = (2 * terms.gg + 4 * terms.lg) / 6
    assert terms.ll.item() > 0.1  # softplus, not a cosine around 0
    assert terms.total.item() == pytest.approx((attraction + 0.5 * terms.ll).item(), abs=1e-5)


@pytest.mark.parametrize("affinity", ["learned", "cosine"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_the_repulsion_is_clipped_to_a_share_of_the_attraction(trained, method, affinity, clip):
    """Both gradients from autograd on a copy of the step: the repulsion's optimiser gets its own,
    scaled down to the limit or left alone, and the attraction's gets the attraction's alone.
    """
    trainer = trained(
        method=method, affinity=affinity, repulsion_step="clipped", repulsion_clip=clip
    )
    repulsion, seen = trainer.repulsion, {}
    apart, own_step, step = (
        repulsion.step_apart,
        repulsion.own_optimizer.step,
        trainer.optimizer.step,
    )

    def gradients():
        return [p.grad.clone() for p in repulsion.parameters]

    def spy_apart(attraction, local):
        ll = repulsion.mean_affinity(local)
        seen["repelled"] = torch.autograd.grad(ll, repulsion.parameters, retain_graph=True)
        seen["attracted"] = torch.autograd.grad(attraction, repulsion.parameters, retain_graph=True)
        return apart(attraction, local)

    def spy_step(name, call):
        def spy():
            seen[name] = gradients()
            call()

        return spy

    repulsion.step_apart = spy_apart
    repulsion.own_optimizer.step = spy_step("own", own_step)
    trainer.optimizer.step = spy_step("main", step)
    trainer.train_step(trainer.batch())

    free, limit = norm(seen["repelled"]), clip * norm(seen["attracted"])
    torch.testing.assert_close(norm(seen["own"]), torch.minimum(free, limit), rtol=1e-4, atol=0)
    for own, repelled in zip(seen["own"], seen["repelled"], strict=True):
        scale = min(1.0, float(limit / free))
        torch.testing.assert_close(own, repelled * scale, rtol=1e-3, atol=1e-7)
    for main, attracted in zip(seen["main"], seen["attracted"], strict=True):
        torch.testing.assert_close(main, attracted, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("method", METHODS)
def test_each_crop_passes_the_encoder_once(trained, method, algorithm):
    trainer = trained(method=method, repulsion_step=algorithm, local_crops=3)
    rows = {"online": 0, "momentum": 0}
    watched = {
        "online": trainer.network.encoder,
        "momentum": getattr(trainer.network, "momentum", None),
    }
    for name, module in watched.items():
        if module is not None:

            def count(_, inputs, __, name=name):
                rows[name] += len(inputs[0])

            module.register_forward_hook(count)
    trainer.train_step(trainer.batch())
    assert rows == {"online": 16 * (2 + 3), "momentum": 16 * 2 if method == "moco-logo" else 0}


def test_rates_of_the_optimisers(trained):
    trainer = trained(repulsion_step="clipped", lr=1.6, affinity_lr=0.8, epochs=4)
    for step, rate in ((0, 0.1), (8, 0.05)):
        trainer.step = step
        trainer.set_lr()
        own = trainer.repulsion.own_optimizer.param_groups[0]
        assert own["lr"] == pytest.approx(rate)
        assert own["weight_decay"] == 0  # the attraction's optimiser decays these weights
        # θd follows an encoder that moves to the end: its rate does not decay.
        assert trainer.repulsion.optimizer.param_groups[0]["lr"] == pytest.approx(0.05)


@pytest.mark.parametrize("objective", ["logistic", "difference"])
def test_the_difference_falls_below_what_the_logistic_form_can(trained, objective):
    """Eq. 6 has no bound, its logistic form ends at 0: why the presets take the latter."""
    trainer = trained(objective=objective)
    _, crops = trainer.augment(trainer.batch())
    local = by_image(trainer.network(crops)[0], TINY.batch_size)
    for _ in range(60):
        trainer.repulsion.learn(local)
    assert (trainer.repulsion.objective < 0) == (objective == "difference")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("preset", ["paper", "official"])
def test_presets_name_the_algorithm(preset, method):
    config = with_preset(preset, method)
    assert (config.method, config.affinity, config.objective) == (method, "learned", "logistic")
    assert config.repulsion_step == {"paper": "joint", "official": "clipped"}[preset]
    assert config.pair_reduction == {"paper": "sum", "official": "mean"}[preset]
    assert (config.affinity_lr, config.repulsion_clip) == (0.03, 0.015)


@pytest.mark.parametrize(
    "changes",
    [{"local_crops": 1}, {"local_crops": 1, "affinity": "cosine", "repulsion_step": "clipped"}],
)
def test_a_learned_or_clipped_repulsion_needs_a_pair(changes, tmp_path):
    with pytest.raises(UserError, match="--local-crops: got 1; want at least 2 with --affinity"):
        train.run(replace(TINY, out=tmp_path, **changes))


def test_in_batch_negatives_leave_the_queue_alone(trained):
    trainer = trained(method="moco-logo", negatives="batch", affinity="cosine")
    before = trainer.network.queue.keys.clone()
    terms, _ = trainer.train_step(trainer.batch())
    assert torch.equal(trainer.network.queue.keys, before)
    # 2 x 15 keys of other images: about log(31) at chance, not log(81).
    assert terms.gg.item() < 8


def test_methods_without_repulsion_learn_nothing(trained):
    for method in ("simsiam", "simsiam-multicrop", "moco", "moco-multicrop"):
        trainer = trained(method=method)
        assert trainer.repulsion is None
        assert trainer.repulsion_parts() == {}
