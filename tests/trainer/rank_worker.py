"""What each process of test_ranks.py does: python rank_worker.py (train | exact) FOLDER"""

import os
import shutil
import signal
import sys
from copy import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "python"))

from config import MOST, Config
from data import ImageData, load_scenes, to_float
from errors import Interrupted, in_words
from logo_kernels import LocalAffinity
from ranks import Ranks, joined
from trainer import Trainer

TINY = Config(
    scenes=(60, 24), image_size=32, batch_size=12, epochs=2, dim=16, bottleneck=8, global_size=16,
    local_size=8, local_crops=2, log_every=1, checkpoint_every=MOST, queue_size=100,
    repulsion_weight=0.5,
)  # fmt: skip
STEPS, STOPS = 10, 4
VARIANTS = {
    "simsiam": replace(TINY, method="simsiam-logo"),
    "moco": replace(TINY, method="moco-logo", affinity="learned"),
    "batch": replace(TINY, method="moco-logo", negatives="batch"),
    "clipped": replace(TINY, affinity="learned", repulsion_step="clipped"),
    "spare": replace(TINY, encoder="rank_worker:Spare", tensorboard=True),
}
# Steps without random numbers: eq. 6 has no noise.
FIXED = {
    "joint": replace(TINY, method="moco-logo", affinity="learned", objective="difference"),
    "clipped": replace(VARIANTS["clipped"], objective="difference", repulsion_clip=0.1),
}
# Steps in float64 in which batch norm is one map for all. θd has the negatives of one process.
EXACT_STEPS = 20
EXACT = {
    "simsiam": replace(TINY, epochs=4, method="simsiam-logo"),
    "queue": replace(TINY, epochs=4, method="moco-logo", warmup_epochs=1),
    "batch": replace(VARIANTS["batch"], epochs=4),
    "clipped": replace(TINY, epochs=4, repulsion_step="clipped"),
}


class Spare(nn.Sequential):
    """An encoder with a parameter that it does not use."""

    def __init__(self) -> None:
        super().__init__(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 8))
        self.spare = nn.Parameter(torch.ones(3))


class Events:
    """In the place of TensorBoard's writer, which the tests do not need: who began to write."""

    def __init__(self, folder: str, purge_step: int) -> None:
        with open(Path(folder) / "events", "a") as file:
            print(os.environ["RANK"], purge_step, file=file)

    def add_scalar(self, *_: object) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def load() -> ImageData:
    return load_scenes(*TINY.scenes, seed=0, size=TINY.image_size)


def fixed_crops(images: Tensor) -> tuple[Tensor, Tensor]:
    x = to_float(images)
    local = [x[:, :, 4:12, 4:12], x[:, :, 18:26, 18:26]]
    return torch.cat([x[:, :, :16, :16], x[:, :, 8:24, 8:24]]), torch.cat(local)


def begin_alike(trainer: Trainer) -> None:
    """Several ranks begin with other keys than one, and then with another θd."""
    if trainer.config.method.startswith("moco"):
        nn.init.eye_(trainer.network.queue.keys)
    if trainer.config.affinity == "learned":
        torch.manual_seed(1)
        trainer.repulsion.affinity.load_state_dict(LocalAffinity(TINY.dim).state_dict())


def weights(trainer: Trainer) -> dict[str, Tensor]:
    """All that has to be the same on all ranks: no running statistics."""
    modules = {"network": trainer.network}
    if trainer.config.affinity == "learned":
        modules["affinity"] = trainer.repulsion.affinity
    found = {
        f"{name}.{key}": value.detach().clone()
        for name, module in modules.items()
        for key, value in module.named_parameters()
    }
    if trainer.config.method.startswith("moco"):
        found["queue"] = trainer.network.queue.keys.clone()
    return found


def train(ranks: Ranks, folder: Path) -> None:
    """Each variant without a stop, and stopped by Ctrl-C on the last rank alone, then resumed."""
    sys.modules["torch.utils.tensorboard"] = SimpleNamespace(SummaryWriter=Events)
    data, step = load(), Trainer.train_step
    for name, config in VARIANTS.items():
        whole, stopped = folder / name / "whole", folder / name / "stopped"
        for out in (whole, stopped):
            ranks.from_writer(lambda out=out: out.mkdir(parents=True))
        trainer = Trainer(config, data, whole, ranks)
        trainer.start()
        images = trainer.batch()
        trainer.run()
        found = {"weights": weights(trainer), "images": images}
        torch.save(found, folder / name / f"{ranks.rank}.pt")

        def step_and_press(self: Trainer, images: Tensor):
            if self.step == STOPS - 1 and ranks.rank == ranks.count - 1:
                os.kill(os.getpid(), signal.SIGINT)
            return step(self, images)

        Trainer.train_step = step_and_press
        trainer = Trainer(config, data, stopped, ranks)
        trainer.start()
        try:
            trainer.run()
        except Interrupted:
            assert trainer.step == STOPS
        else:
            raise AssertionError("it did not stop")
        Trainer.train_step = step
        ranks.from_writer(lambda: shutil.copytree(stopped, stopped.with_name("middle")))  # noqa: B023
        trainer = Trainer(config, data, stopped, ranks)
        assert trainer.resume() is None
        assert trainer.step == STOPS
        trainer.run()


def fixed(ranks: Ranks, folder: Path) -> None:
    """One step on crops that are the same for everyone: what the optimisers got."""
    data = load()
    for name, config in FIXED.items():
        trainer = Trainer(config, data, folder, ranks)
        trainer.augment = fixed_crops
        begin_alike(trainer)
        trainer.network.train()
        trainer.set_lr()
        trainer.train_step(trainer.batch())
        torch.save(gradients(trainer), folder / f"{name}-{ranks.rank}.pt")


def exact(
    name: str, data: ImageData, folder: Path, ranks: Ranks | None = None, steps: int = EXACT_STEPS
) -> dict[str, Tensor]:
    """The weights after so many steps."""
    ranks = copy(ranks or Ranks())
    averaging = ranks.averaging
    ranks.averaging = lambda module, **more: averaging(module.double().eval(), **more)
    trainer = Trainer(EXACT[name], data, folder, ranks)
    trainer.augment = lambda images: [crops.double() for crops in fixed_crops(images)]
    begin_alike(trainer)
    for _ in range(steps):
        trainer.set_lr()
        trainer.train_step(trainer.batch())
        trainer.step += 1
    return weights(trainer)


def gradients(trainer: Trainer) -> dict[str, list[Tensor]]:
    """After a first step: momentum buffers are then gradients, but for the decay of weights."""
    repulsion = trainer.repulsion
    found = {
        "body": [p.grad for group in trainer.network.parameter_groups() for p in group],
        "affinity": [p.grad for p in repulsion.affinity.parameters()],
    }
    if repulsion.clipped:
        state = repulsion.own_optimizer.state
        found["repulsion"] = [state[p]["momentum_buffer"] for p in repulsion.parameters]
    return found


if __name__ == "__main__":
    what, out = sys.argv[1], Path(sys.argv[2])
    with in_words(), joined() as here:
        if what == "exact":
            for name in EXACT:
                found = exact(name, load(), out, here)
                torch.save(found, out / f"{name}-{here.rank}.pt")
        else:
            train(here, out)
            fixed(here, out)
