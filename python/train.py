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

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from itertools import count
from pathlib import Path

import tyro
from torch import Tensor

import evaluate
import plots
from config import GROUPS, Config, validate, with_preset
from data import ImageData, load_cifar10, load_folder, load_scenes
from encoder import export_encoder
from errors import UserError
from trainer import Trainer, read_metrics


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
    sys.stdout.reconfigure(line_buffering=True)  # A log file shows progress too.
    config = tyro.cli(Config, description=__doc__)
    try:
        if config.preset:
            # The same words again, on top of the preset: what the user asked for wins.
            config = tyro.cli(Config, default=with_preset(config.preset, config.method))
        run(config)
    except UserError as error:
        sys.exit(f"error: {error}")


def run(config: Config) -> list[Row]:
    """Everything that the command does: load, train, evaluate, draw, print."""
    validate(config)
    began = time.perf_counter()
    data = load_data(config)
    print(
        f"{config.dataset}: {len(data.train_images)} training and {len(data.test_images)} test "
        f"images of {data.size} x {data.size}, {len(data.classes)} classes, "
        f"{'several' if data.multi_label else 'one'} per image; seed {config.seed}"
    )
    out = config.out or Path("runs") / f"{config.dataset}-{config.method}"
    raw = data.normalise(data.train_images).flatten(1), data.normalise(data.test_images).flatten(1)
    raw_pixels = score("raw pixels", config, data, *raw)

    methods = GROUPS.get(config.method, (config.method,))
    rows, histories = [raw_pixels], {}
    for method in methods:
        folder = out / method if config.method in GROUPS else out
        untrained, trained, history = run_method(replace(config, method=method), data, folder)
        if len(rows) == 1:
            rows.append(untrained)  # The same for every method: the seed makes the weights.
        rows.append(trained)
        histories[method] = history
    plots.knn(histories, raw_pixels.knn, rows[1].knn, metric_name(data), out / "knn.png")

    report = {
        "config": json.loads(json.dumps(asdict(config), default=str)),
        "rows": [asdict(r) for r in rows],
    }
    (out / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    print("\n" + table(rows, metric_name(data)))
    print(
        f"\n{time.perf_counter() - began:.0f} s in all; metrics, pictures and checkpoint in {out}"
    )
    return rows


def load_data(config: Config) -> ImageData:
    if config.dataset == "scenes":
        return load_scenes(*config.scenes, seed=config.seed, size=config.image_size)
    assert config.data is not None  # validate() saw to it
    if config.dataset == "cifar10":
        return load_cifar10(config.data)
    return load_folder(config.data, config.image_size)


def run_method(config: Config, data: ImageData, out: Path) -> tuple[Row, Row, list[dict]]:
    """Train and evaluate one method: the rows of the untrained and of the trained encoder, and the
    history of kNN evaluations.
    """
    if not config.resume and (out / "checkpoint.pt").exists():
        aside = next(p for i in count(1) if not (p := out.with_name(f"{out.name}.{i}")).exists())
        out.rename(aside)
        print(f"{out} held an earlier run, now kept as {aside}")
    out.mkdir(parents=True, exist_ok=True)

    trainer = Trainer(config, data, out)
    untrained = score("untrained encoder", config, data, *trainer.features())
    similarity_before = trainer.example_similarity()
    if config.resume and trainer.checkpoint_path.exists():
        trainer.resume()
        print(f"{config.method}: resumed at step {trainer.step} of {trainer.total_steps}")
    else:
        trainer.start()
    trainer.run()

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
    return untrained, trained, trainer.history


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
    main()
