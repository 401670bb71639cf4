"""The arms, and every run of a sweep in its order."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from config import LATER, LEAST_IMAGES, MOST, Config
from errors import UserError

RESULTS = Path(__file__).resolve().parents[1] / "results" / "ablation"
# Nothing of these changes what a run measures.
NOT_KEYED = {
    "data", "skip_unreadable", "out", "resume", "export", "preset", "knn_every", "checkpoint_every",
    "tensorboard",
}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    out: Path = RESULTS
    """Folder of runs.jsonl and of the report."""
    workers: int = 2
    """Runs at a time, each on one thread."""
    seeds: int = 3
    """Each arm runs with seeds 0, 1, ... of data, weights and crops."""
    frameworks: tuple[Literal["simsiam", "moco"], ...] = ("simsiam", "moco")
    local_crops: tuple[int, ...] = (2, 4, 8)
    """L. The first is that of the comparison of affinities; the other values follow after it."""
    quick: bool = False
    """Few images, steps and seeds, in runs/ablation-quick."""
    report: bool = False
    """Run nothing; write the report."""
    trainer: Config = field(default_factory=Config)
    """Settings that all arms share."""


QUICK = Sweep(
    out=Path("runs/ablation-quick"),
    seeds=1,
    local_crops=(2, 4),
    trainer=Config(scenes=(512, 256), epochs=2),
)


class Arm(NamedTuple):
    """One column of the comparison: its name in the report, and the settings that make it."""

    name: str
    method: str  # the suffix after the framework
    settings: dict[str, Any]


BASE = Arm("global crops only", "", {})
MULTI_CROP = Arm("multi-crop", "-multicrop", {})
COSINE = [Arm(f"cosine, λ = {w:g}", "-logo", {"repulsion_weight": w}) for w in (0.01, 0.1, 0.3)]
PAPER = [
    Arm(f"learned, λ = {w:g}", "-logo", {"affinity": "learned", "repulsion_weight": w})
    for w in (0.1, 1.0, 0.01)
]
DIFFERENCE = Arm(
    "learned by difference, λ = 0.1",
    "-logo",
    {"affinity": "learned", "objective": "difference", "repulsion_weight": 0.1},
)
OFFICIAL = Arm("learned, clipped", "-logo", {"affinity": "learned", "repulsion_step": "clipped"})
IN_BATCH = [
    Arm("in-batch, multi-crop", "-multicrop", {"negatives": "batch"}),
    Arm("in-batch, cosine, λ = 0.3", "-logo", {"negatives": "batch", "repulsion_weight": 0.3}),
]

# What answers most comes first, and all arms of a seed before the next seed, so that a sweep that
# stops early has whole seeds to compare.
FIRST = [BASE, MULTI_CROP, *COSINE, *PAPER[:2], OFFICIAL]
SECOND = [*IN_BATCH, PAPER[2], DIFFERENCE]
WITH_MORE_CROPS = [MULTI_CROP, COSINE[1], PAPER[0], OFFICIAL]


class Run(NamedTuple):
    framework: str
    arm: str
    config: Config

    @property
    def key(self) -> str:
        """The settings as one string: equal for runs that measure the same."""
        settings = {
            k: v
            for k, v in asdict(self.config).items()
            if k not in NOT_KEYED and (k, v) not in LATER.items()
        }
        return json.dumps(settings, sort_keys=True, default=str)


def check(sweep: Sweep) -> None:
    for name in ("workers", "seeds"):
        if not 1 <= getattr(sweep, name) <= MOST:
            raise UserError(f"--{name}: got {getattr(sweep, name)}; want at least 1")
    for name in ("frameworks", "local_crops"):
        if not getattr(sweep, name):
            raise UserError(f"--{name.replace('_', '-')}: got none; want at least one")
    if min(sweep.local_crops) < 2:
        raise UserError(f"--local-crops: got {min(sweep.local_crops)}; want at least 2, a pair")
    if sweep.trainer.dataset == "scenes" and sweep.trainer.scenes[0] < 10 * LEAST_IMAGES:
        raise UserError(
            f"--trainer.scenes: got {sweep.trainer.scenes[0]} to train on; want at least "
            f"{10 * LEAST_IMAGES}, since a probe has a tenth of the labels"
        )


def plan(sweep: Sweep) -> list[Run]:
    """Every run of the sweep, in the order in which they start."""
    check(sweep)
    shared = replace(sweep.trainer, knn_every=sweep.trainer.epochs, checkpoint_every=MOST)

    def runs(arms: list[Arm], local_crops: int) -> Iterator[Run]:
        for seed in range(sweep.seeds):
            for framework in sweep.frameworks:
                for arm in arms:
                    if framework == "moco" or "negatives" not in arm.settings:
                        settings = {"seed": seed, "local_crops": local_crops} | arm.settings
                        method: Any = framework + arm.method
                        config = replace(shared, method=method, **settings)
                        yield Run(framework, arm.name, config)

    first, *more = sweep.local_crops
    planned = [*runs(FIRST, first), *runs(SECOND, first)]
    for local_crops in more:
        planned += runs(WITH_MORE_CROPS, local_crops)
    return planned
