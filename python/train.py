"""Train an encoder with SimSiam-LoGo or MoCo-LoGo, or either without its repulsion or local crops.

    python python/train.py                       SimSiam-LoGo on the embedded scenes, minutes
    python python/train.py --method moco-logo    MoCo-LoGo
    python python/train.py --method all-moco     its three methods side by side; or all-simsiam, all
    python python/train.py --help                every setting

The two published algorithms (Zhang et al., CVPR 2022) are presets, with their settings on CIFAR-10:

    python python/train.py --preset paper --data cifar-10-batches-py --device cuda
    python python/train.py --preset official --method moco-logo --data cifar-10-batches-py --bf16
    python python/train.py --affinity learned --repulsion-step clipped    the second on the scenes
"""

import signal
import sys

# Ctrl-C while the libraries load ends the program without a word. A shell may have told it to
# ignore the signal, which stands.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

import tyro
from torch import Tensor

import evaluate
import plots
from board import summary_writer
from config import GROUPS, METHODS, Config, check_batch, defaults, validate
from data import (
    ImageData,
    load_cifar10,
    load_fashion,
    load_fashion_scenes,
    load_folder,
    load_scenes,
)
from encoder import build_encoder, export_encoder, probe_encoder
from errors import UserError, in_words, reason, writing
from metrics import read_metrics
from ranks import Ranks, joined
from trainer import Trainer


@dataclass
class Row:
    """One line of the final table."""

    name: str
    knn: float
    linear: float
    feature_rank: float
    z_std: float | None = None
    z_rank: float | None = None
    ms_per_step: float | None = None


def main() -> None:
    with in_words(), joined() as ranks:
        # A log file shows progress too, and every name of a file can be printed.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
        # What is wrong with the words is said by one rank alone.
        config = ranks.from_writer(read_words)
        run(config, ranks)


def read_words() -> Config:
    config = tyro.cli(Config, description=__doc__)
    if (default := defaults(config)) != Config():
        # The same words again, on top of these: what the user asked for wins.
        config = tyro.cli(Config, default=default)
    return config


def run(config: Config, ranks: Ranks | None = None) -> list[Row]:
    """Everything that the command does: load, train, evaluate, draw, print."""
    ranks = ranks or Ranks()
    config = replace(config, device=ranks.device(config.device))
    validate(config, ranks.count)
    if config.tensorboard and ranks.is_writer:
        summary_writer()
    out = config.out or Path("runs") / f"{config.dataset}-{config.method}"
    ranks.from_writer(lambda: make_folder(out))
    probe_encoder(
        build_encoder(config.encoder, config.channels),
        config.encoder,
        config.channels,
        config.crop_sizes,
    )
    for remark in remarks(config):
        print(remark)
    began = time.perf_counter()
    data = load_data(config)
    check_batch(config, len(data.train_images))
    if ranks.count > 1 and ranks.from_writer(lambda: data.fingerprint) != data.fingerprint:
        raise UserError(f"--data: process {ranks.rank} has other training images than process 0")
    for note in data.notes:
        print(note)
    print(
        f"{config.dataset}: {len(data.train_images)} training and {len(data.test_images)} test "
        f"images of {data.size} x {data.size}, {len(data.classes)} classes, "
        f"{'several' if data.multi_label else 'one'} per image; seed {config.seed}"
    )
    raw_pixels = ranks.from_writer(lambda: score_pixels(config, data))

    rows, histories = [raw_pixels], {}
    for method in config.methods:
        folder = out / method if config.method in GROUPS else out
        untrained, trained, history = run_method(
            replace(config, method=method), data, folder, ranks
        )
        if len(rows) == 1:
            rows.append(untrained)  # The same for every method: the seed makes the weights.
        rows.append(trained)
        histories[method] = history
    ranks.from_writer(lambda: report(config, data, out, rows, histories))
    print("\n" + table(rows, metric_name(data)))
    print(
        f"\n{time.perf_counter() - began:.0f} s in all; metrics, pictures and checkpoint in {out}"
    )
    return rows


def report(
    config: Config, data: ImageData, out: Path, rows: list[Row], histories: dict[str, list[dict]]
) -> None:
    """results.json and the picture of all methods."""
    plots.knn(histories, rows[0].knn, rows[1].knn, metric_name(data), out / "knn.png")
    content = {
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "rows": [asdict(r) for r in rows],
    }
    with writing(out / "results.json"):
        (out / "results.json").write_text(json.dumps(content, indent=2) + "\n")


def load_data(config: Config) -> ImageData:
    if config.dataset == "scenes":
        return load_scenes(*config.scenes, seed=config.seed, size=config.image_size)
    assert config.data is not None  # validate() saw to it
    if config.dataset == "cifar10":
        return load_cifar10(config.data)
    if config.dataset == "fashion-mnist":
        return load_fashion(config.data)
    if config.dataset == "fashion-scenes":
        return load_fashion_scenes(
            config.data, *config.scenes, seed=config.seed, size=config.image_size
        )
    return load_folder(config.data, config.image_size, config.skip_unreadable)


def make_folder(path: Path) -> None:
    """Make sure that the folder is there and takes files."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (OSError, ValueError) as error:  # ValueError: a name that no system takes
        found = "a file" if isinstance(error, FileExistsError) else reason(error)
        raise UserError(f"--out {path}: {found}; want a folder that takes files") from error


def remarks(config: Config) -> list[str]:
    """What the settings make of a method that its name does not say."""
    said = []
    for name in config.methods:
        method = METHODS[name]
        if method.local_crops and config.local_crops == 0:
            said.append(f"{name}: --local-crops 0, so only global crops are drawn together")
        elif method.repulsion and config.local_crops < 2:
            said.append(f"{name}: --local-crops 1, so nothing repels")
    return said


def set_aside(out: Path) -> None:
    """An earlier run in the folder keeps its files under another name."""
    here = Path(os.path.abspath(out))
    try:
        if Path.cwd().is_relative_to(here.resolve()):  # which would then move along
            raise ValueError("it is the current folder, or one above")
        aside = next(p for i in count(1) if not (p := here.with_name(f"{here.name}.{i}")).exists())
        here.rename(aside)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--out {out}: holds an earlier run and cannot be renamed ({reason(error)}). Want "
            "--resume, or another --out."
        ) from error
    print(f"{out} held an earlier run, now kept as {aside}")


def run_method(
    config: Config, data: ImageData, out: Path, ranks: Ranks
) -> tuple[Row, Row, list[dict]]:
    """Train and evaluate one method: the rows of the untrained and of the trained encoder, and the
    history of kNN evaluations.
    """
    resumes = ranks.from_writer(lambda: prepare(config, out))
    trainer = Trainer(config, data, out, ranks)
    untrained = ranks.from_writer(
        lambda: score("untrained encoder", config, data, *trainer.features())
    )
    similarity_before = trainer.example_similarity()
    if resumes:
        remark = trainer.resume()
        print(f"{config.method}: resumed at step {trainer.step} of {trainer.total_steps}")
        if remark:
            print(f"{config.method}: {remark}")
    else:
        if config.resume:
            print(f"{config.method}: no checkpoint in {out}, so it begins at step 0")
        trainer.start()
    trainer.run()
    trained = ranks.from_writer(lambda: finish(trainer, similarity_before))
    return untrained, trained, trainer.history


def prepare(config: Config, out: Path) -> bool:
    """Make the folder of a run; whether there is one in it to go on with."""
    if not config.resume and (out / "checkpoint.pt").exists():
        set_aside(out)
    make_folder(out)
    return config.resume and (out / "checkpoint.pt").exists()


def finish(trainer: Trainer, similarity_before: Tensor) -> Row:
    """Score a run that has come to its end, export its encoder, and draw it."""
    config, data, out = trainer.config, trainer.data, trainer.out
    trained = score(config.method, config, data, *trainer.features())
    last = trainer.history[-1]
    trained.z_std, trained.z_rank = last["z_std"], last["z_rank"]
    trained.ms_per_step = trainer.seconds / trainer.total_steps * 1e3
    if config.export:
        export_encoder(
            trainer.network.encoder,
            config.encoder,
            data.mean,
            data.std,
            out / "encoder.safetensors",
        )
    plots.losses(read_metrics(trainer.csv_path), config.method, out / "losses.png")
    plots.crops(trainer.examples, out / "crops.png")
    after = trainer.example_similarity()
    plots.similarity(similarity_before, after, trainer.examples, out / "similarity.png")
    return trained


def score_pixels(config: Config, data: ImageData) -> Row:
    train, test = (
        data.normalise(part).flatten(1) for part in (data.train_images, data.test_images)
    )
    return score("raw pixels", config, data, train, test)


def score(name: str, config: Config, data: ImageData, train: Tensor, test: Tensor) -> Row:
    """KNN and linear probe of features [N, F]."""
    return Row(
        name,
        knn=evaluate.knn_metric(data, train, test, config.knn_k, config.knn_temperature),
        linear=evaluate.linear_metric(data, train, test),
        feature_rank=evaluate.effective_rank(test),
    )


def metric_name(data: ImageData) -> str:
    return "mAP" if data.multi_label else "accuracy"


def table(rows: list[Row], metric: str) -> str:
    heads = [
        "",
        f"kNN {metric}",
        f"linear {metric}",
        "rank of features",
        "z std",
        "z rank",
        "ms/step",
    ]
    formats = ["{}", "{:.3f}", "{:.3f}", "{:.1f}", "{:.2f}", "{:.1f}", "{:.0f}"]
    cells = [
        [
            "" if v is None else f.format(v)
            for f, v in zip(formats, asdict(row).values(), strict=True)
        ]
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [heads, *cells]) for i in range(len(heads))]
    return "\n".join(
        "  ".join(
            c.ljust(w) if i == 0 else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [heads, *cells]
    )


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
