"""Every setting of the trainer; tyro makes the command line from this dataclass."""

import math
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from errors import UserError, reason


class Method(NamedTuple):
    """What a value of --method stands for."""

    framework: Literal["simsiam", "moco"]
    local_crops: bool  # drawn to the global ones
    repulsion: bool  # of the local crops of one image


METHODS = {
    "simsiam": Method("simsiam", local_crops=False, repulsion=False),
    "simsiam-multicrop": Method("simsiam", local_crops=True, repulsion=False),
    "simsiam-logo": Method("simsiam", local_crops=True, repulsion=True),
    "moco": Method("moco", local_crops=False, repulsion=False),
    "moco-multicrop": Method("moco", local_crops=True, repulsion=False),
    "moco-logo": Method("moco", local_crops=True, repulsion=True),
}
SIMSIAM_METHODS = tuple(name for name, m in METHODS.items() if m.framework == "simsiam")
MOCO_METHODS = tuple(name for name, m in METHODS.items() if m.framework == "moco")
GROUPS = {"all-simsiam": SIMSIAM_METHODS, "all-moco": MOCO_METHODS, "all": tuple(METHODS)}


@dataclass(frozen=True)
class Config:
    method: Literal[
        "simsiam", "simsiam-multicrop", "simsiam-logo", "moco", "moco-multicrop", "moco-logo",
        "all-simsiam", "all-moco", "all",
    ] = "simsiam-logo"  # fmt: skip
    """simsiam, moco: global crops alone. -multicrop: and local crops, drawn to the global ones
    (lambda = 0). -logo: and the local crops of one image repel each other. all-simsiam, all-moco:
    the three side by side; all: all six."""
    preset: Literal["paper", "official"] | None = None
    """A published algorithm and its CIFAR-10 settings for the framework of --method, as the
    defaults that the other options then change. Both learn the affinity, which takes its step
    first. paper: then one step on eq. 9. official (the authors' code): attraction averaged over its
    pairs, repulsion in a step of its own with a clipped gradient. See docs/deviations.md."""
    dataset: Literal["scenes", "cifar10", "fashion-mnist", "fashion-scenes", "folder"] = "scenes"
    """scenes: composed from scikit-learn's digits. fashion-mnist: garments of 28 x 28.
    fashion-scenes: composed from these. Either brings sizes of its own as the defaults: images of
    28 and crops of 28 and 20 pixels, or images of 84 and crops of 56 and 42. folder: one folder of
    images per class."""
    data: Path | None = None
    """Where cifar10, the four files of Fashion-MNIST, or the folder lies."""
    skip_unreadable: bool = False
    """Leave out images of a folder that cannot be read, and say which."""
    image_size: int = 48
    """Pixels per side of the scenes, or to which the images of a folder are scaled."""
    scenes: tuple[int, int] = (4000, 1000)
    """Number of training and of test scenes."""

    global_crops: int = 2
    """G, at least 2: the loss needs a pair."""
    local_crops: int = 2
    """L (0 with --method simsiam and moco)."""
    global_size: int = 32
    """Pixels per side of a global crop."""
    local_size: int = 24
    """Pixels per side of a local crop."""
    global_scale: tuple[float, float] = (0.6, 1.0)
    """Share of the image's area in a global crop."""
    local_scale: tuple[float, float] = (0.15, 0.5)
    """Share of the image's area in a local crop."""

    repulsion_weight: float = 0.01
    """lambda of eq. 9. The paper's 1e-4 belongs to its learnt affinity, D = 2048 and 200 epochs. On
    the scenes 0.3 is far too much: the attraction terms stay near 0."""
    affinity: Literal["cosine", "learned"] = "cosine"
    """How -logo measures that two local crops are alike. learned: LocalAffinity, an MLP that tells
    the crops of one image from those of two and takes a step before the encoder at each batch."""
    objective: Literal["logistic", "difference"] = "logistic"
    """What the learned affinity minimises. difference: eq. 6 to the letter, which has no bound."""
    affinity_lr: float = 0.4
    """The learned affinity's rate for a batch of 256, not decayed (published: 0.03). With 2.0, on
    embeddings of the scenes, it does not learn."""
    repulsion_step: Literal["joint", "clipped"] = "joint"
    """joint: lambda * ll is part of the loss (eq. 9). clipped: ll without lambda has its own
    optimiser and a gradient of at most --repulsion-clip times the norm of the attraction's."""
    repulsion_clip: float = 0.015
    """See --repulsion-step clipped."""
    pair_reduction: Literal["sum", "mean"] = "mean"
    """mean: one average over all attraction pairs, so that one lr suits every number of crops.
    sum: eq. 9 as published."""

    encoder: str = "small"
    """small, resnet18, timm:NAME of a model of timm, or package.module:factory of any nn.Module
    [N, C, H, W] -> [N, F]."""
    dim: int = 256
    """D, the width of the projector (published: 2048; MoCo-LoGo: 128)."""
    bottleneck: int = 64
    """The width inside SimSiam's predictor (published: 512)."""

    negatives: Literal["queue", "batch"] = "queue"
    """MoCo's. batch: the keys of the other images of the batch, without a queue."""
    queue_size: int = 1024
    """K, keys in MoCo's queue (published: 4096)."""
    temperature: float = 0.2
    """tau of MoCo's InfoNCE, eq. 1 (published: 0.07)."""
    ema: float = 0.99
    """Share of itself that MoCo's momentum encoder keeps at each step (published: 0.999)."""
    key_groups: int = 1
    """Random parts of a step's global crops, those of one process, that pass MoCo's momentum
    encoder one by one, so that batch norm's statistics of a key are not those of its query (MoCo's
    shuffling BN). 1: all together, in their order."""

    epochs: int = 8
    batch_size: int = 64
    """Images of a step, of all processes together."""
    lr: float | None = None
    """For a batch of 256; the rate used is lr * batch_size / 256, decayed by a cosine to 0. If not
    given, 0.4 for SimSiam and 0.1 for MoCo (published for both: 0.03)."""
    warmup_epochs: int = 0
    """Epochs in which the rate first rises from 0, step by step; the cosine takes the rest. Rates
    that stay, those of the affinity and of a fixed predictor, do so from the first step."""
    predictor_lr: float = 10.0
    """The predictor's rate as a multiple of the others' (SimSiam: 1). In short runs it learns too
    slowly otherwise."""
    fixed_predictor_lr: bool = True
    """The predictor keeps its rate while the others decay, as in SimSiam."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0

    knn_every: int = 1
    """Epochs between kNN evaluations."""
    knn_k: int = 20
    """Neighbours that vote."""
    knn_temperature: float = 0.1
    """A neighbour's vote weighs exp(cosine / temperature)."""

    device: str = "cpu"
    """cpu or cuda."""
    bf16: bool = False
    """bfloat16 autocast in the network."""
    log_every: int = 5
    """Steps between rows of the CSV."""
    tensorboard: bool = False
    """Write the CSV's columns and kNN for TensorBoard too."""
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    out: Path | None = None
    """Folder for the results: runs/DATASET-METHOD if not given."""
    resume: bool = False
    """Continue from the checkpoint in the folder for the results, if there is one."""
    export: bool = False
    """Write the trained encoder to encoder.safetensors."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Those that --method stands for."""
        return GROUPS.get(self.method, (self.method,))

    @property
    def channels(self) -> int:
        """Of the images."""
        return 3 if self.dataset in ("cifar10", "folder") else 1

    @property
    def composed(self) -> bool:
        """The images are scenes, of which --scenes and --image-size say how many and how large."""
        return self.dataset in ("scenes", "fashion-scenes")

    @property
    def crop_sizes(self) -> tuple[int, ...]:
        """Of the crops that the encoder sees."""
        local = self.local_crops > 0 and any(METHODS[name].local_crops for name in self.methods)
        return (self.global_size, self.local_size) if local else (self.global_size,)


# Zhang et al., CVPR 2022: SimSiam-LoGo as in the paper, MoCo-LoGo as in the authors' code, which
# has no SimSiam. Either framework runs with either algorithm. The projector is that of model.MoCo.
_CIFAR10 = {
    "dataset": "cifar10", "encoder": "resnet18", "global_crops": 2, "local_crops": 2,
    "global_size": 32, "local_size": 32, "global_scale": (0.4, 1.0), "local_scale": (0.05, 0.4),
    "repulsion_weight": 1e-4, "lr": 0.03, "affinity_lr": 0.03, "momentum": 0.9,
    "weight_decay": 1e-4, "epochs": 200,
}  # fmt: skip
_FRAMEWORKS = {
    "simsiam": {"dim": 2048, "bottleneck": 512, "batch_size": 512, "predictor_lr": 1.0},
    "moco": {
        "dim": 128, "queue_size": 4096, "temperature": 0.07, "ema": 0.999, "batch_size": 256,
    },
}  # fmt: skip
# The logistic form for both: eq. 6 as it stands has no bound, so f grows with the steps.
_ALGORITHMS = {
    "paper": {"repulsion_step": "joint", "pair_reduction": "sum"},
    "official": {"repulsion_step": "clipped", "repulsion_clip": 0.015, "pair_reduction": "mean"},
}


# Pixels of the images and of their crops, in the proportions of the scenes'.
_SIZES = {
    "fashion-mnist": {"image_size": 28, "global_size": 28, "local_size": 20},
    "fashion-scenes": {"image_size": 84, "global_size": 56, "local_size": 42},
}


def defaults(asked: Config) -> Config:
    """What the options that were not given are, by the preset and the data set asked for."""
    preset = with_preset(asked.preset, asked.method) if asked.preset else Config()
    return replace(preset, **_SIZES.get(asked.dataset, {}))


def with_preset(preset: str, method: str) -> Config:
    """The settings that `--preset preset --method method` stands for."""
    if method == "all":
        raise UserError(
            "--preset: the published settings of SimSiam and MoCo differ; want --method "
            "all-simsiam, all-moco or one method"
        )
    framework = METHODS[GROUPS.get(method, (method,))[0]].framework
    settings = _CIFAR10 | _FRAMEWORKS[framework] | _ALGORITHMS[preset]
    return Config(method=method, affinity="learned", objective="logistic", **settings)


# What may differ between the run that is resumed and the one that resumes it. What a preset sets
# is compared setting by setting, and images by their fingerprint.
RESUME_MAY_CHANGE = {
    "data", "skip_unreadable", "device", "out", "resume", "export", "preset", "tensorboard",
}  # fmt: skip

# Settings that came after runs that are kept, and the value that means what was done before: a run
# with it is the same run.
LATER = {"key_groups": 1, "warmup_epochs": 0}

AT_LEAST = {
    "global_crops": 2, "local_crops": 0, "global_size": 1, "local_size": 1, "dim": 1,
    "bottleneck": 1, "epochs": 1, "batch_size": 2, "knn_every": 1, "knn_k": 1, "log_every": 1,
    "checkpoint_every": 1, "image_size": 8, "lr": 0, "repulsion_weight": 0, "queue_size": 1,
    "affinity_lr": 0, "repulsion_clip": 0, "predictor_lr": 0, "weight_decay": 0, "seed": 0,
    # The exponent cosine / temperature has to be a float32.
    "knn_temperature": 1e-6,
    "key_groups": 1, "warmup_epochs": 0,
}  # fmt: skip
# Numbers beyond these have no use, and products of them stay within a float32, or an int64. NumPy's
# seeds end earlier.
MOST, MOST_REAL = 2**31 - 1, 1e6
AT_MOST = {"seed": 2**32 - 1}
# A fifth of the training images chooses the linear probe's L2.
LEAST_IMAGES = 5


def validate(config: Config, processes: int = 1) -> None:
    """Refuse what can be told from the settings alone, before anything is loaded.

    processes: how many share a batch.
    """

    def refuse(name: str, want: str) -> None:
        got = getattr(config, name)
        got = " ".join(map(str, got)) if isinstance(got, tuple) else repr(got)
        raise UserError(f"--{name.replace('_', '-')}: got {got}; want {want}")

    for name, value in asdict(config).items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                refuse(name, "a finite number")
            most = MOST_REAL if isinstance(number, float) else AT_MOST.get(name, MOST)
            if isinstance(number, int | float) and number > most:
                refuse(name, f"at most {most:g}" if most == MOST_REAL else f"at most {most}")
    for name, least in AT_LEAST.items():
        value = getattr(config, name)
        if value is not None and value < least:
            refuse(name, f"at least {least}")
    for name in ("global_scale", "local_scale"):
        low, high = getattr(config, name)
        if not 0 < low <= high <= 1:
            refuse(name, "0 < low <= high <= 1")
    if config.temperature <= 0:
        refuse("temperature", "a number above 0")
    if config.warmup_epochs >= config.epochs:
        refuse("warmup_epochs", f"fewer than --epochs {config.epochs}")
    part, rest = divmod(config.batch_size, processes)
    if rest or part < 2:
        refuse(
            "batch_size",
            f"a multiple of the {processes} processes, with 2 images or more for each",
        )
    keys = config.global_crops * part
    if config.key_groups > keys // 2:
        # Batch norm has no statistics of one row.
        here = " of a process" if processes > 1 else ""
        refuse("key_groups", f"at most {keys // 2}, two of the {keys} global crops{here} to each")
    for name in ("ema", "momentum"):
        if not 0 <= getattr(config, name) < 1:
            refuse(name, f"0 <= {name} < 1")
    if (config.affinity, config.repulsion_step) != ("cosine", "joint") and config.local_crops < 2:
        refuse("local_crops", "at least 2 with --affinity learned or --repulsion-step clipped")
    if config.composed:
        if config.scenes[0] < LEAST_IMAGES or config.scenes[1] < 1:
            refuse("scenes", f"at least {LEAST_IMAGES} training scenes and 1 test scene")
        check_batch(config, config.scenes[0])
    if config.dataset == "scenes":
        if config.data is not None:
            raise UserError(
                f"--data {config.data}: --dataset scenes reads no files; want --dataset folder, "
                "cifar10, fashion-mnist or fashion-scenes with it"
            )
    elif config.data is None:
        raise UserError(f"--dataset {config.dataset} needs --data, the folder of the images")
    if config.skip_unreadable and config.dataset != "folder":
        raise UserError("--skip-unreadable: belongs to --dataset folder")
    check_device(config)
    check_memory(config, processes)


def check_batch(config: Config, images: int) -> None:
    """Images: how many there are to train on."""
    if images < LEAST_IMAGES:
        raise UserError(f"--data: {images} training images; want at least {LEAST_IMAGES}")
    if images < config.batch_size:
        raise UserError(
            f"--batch-size: got {config.batch_size} for {images} training images; want at most as "
            "many"
        )


def check_device(config: Config) -> None:
    try:
        device = torch.device(config.device)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError(f"the trainer does not know {device.type}")
        torch.empty(0, device=device)
    except Exception as error:
        raise UserError(
            f"--device: got {config.device!r}; want cpu, or cuda on a machine that has it "
            f"({reason(error)})"
        ) from error


def check_memory(config: Config, processes: int) -> None:
    """Refuse what this machine's memory cannot hold, before the system ends the program for it.

    Lower bounds in bytes, of the largest arrays alone.
    """
    cpu, device = torch.device("cpu"), torch.device(config.device)
    frameworks = {METHODS[name].framework for name in config.methods}
    crops = config.global_crops * config.global_size**2 + config.local_crops * config.local_size**2
    arrays = [
        ("--batch-size, --global-crops, --local-crops and their sizes", device,
         4 * (config.batch_size // processes) * crops),
        ("--dim", device, 4 * 2 * config.dim**2),
    ]  # fmt: skip
    if "simsiam" in frameworks:
        arrays.append(("--dim, --bottleneck", device, 4 * 2 * config.dim * config.bottleneck))
    if "moco" in frameworks:
        arrays.append(("--dim, --queue-size", device, 4 * config.dim * config.queue_size))
    if config.composed:
        # Kept as uint8, and scored as float32 before anything is trained.
        arrays.append(
            ("--scenes, --image-size", cpu, 5 * sum(config.scenes) * config.image_size**2)
        )
    for names, where, size in arrays:
        memory = memory_of(where)
        if size > memory:
            raise UserError(
                f"{names}: take more than {size / 2**30:.0f} GiB of memory; this machine has "
                f"{memory / 2**30:.0f}"
            )


def memory_of(device: torch.device) -> float:
    """In bytes; without a bound where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return math.inf
