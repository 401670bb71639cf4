"""The training loop of one method."""

import csv
import json
import math
import os
import random
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import checkpoint
import evaluate
from augment import draw_examples, multi_crop
from board import Board
from config import LATER, METHODS, RESUME_MAY_CHANGE, Config, check_batch
from data import ImageData
from encoder import blamed_on, build_encoder, probe_encoder
from errors import Interrupted, UserError, reason, writing
from interrupt import Interruption
from logo_kernels import LoGoTerms, block_cosine_similarity, logo_loss
from metrics import CSV_COLUMNS, read_metrics
from model import FRAMEWORKS, Embedded, Embedding
from ranks import Ranks, in_contact
from repulsion import Affinity, Repulsion

# channel_std is 1 when embeddings point everywhere and 0 when they all point the same way.
COLLAPSED_BELOW = 0.2
# What an entry of the history has.
HISTORY = {"step", "epoch", "knn", "feature_rank", "loss", "z_std", "z_rank"}


class Trainer:
    """One run of one method: the network, its optimiser, and the step that it stands at.

    All ranks call the same methods in the same order.
    """

    def __init__(
        self, config: Config, data: ImageData, out: Path, ranks: Ranks | None = None
    ) -> None:
        self.config, self.data, self.out = config, data, out
        self.ranks = ranks or Ranks()
        self.device = torch.device(config.device)
        check_batch(config, len(data.train_images))
        self.steps_per_epoch = len(data.train_images) // config.batch_size
        self.total_steps = self.steps_per_epoch * config.epochs
        method = METHODS[config.method]
        self.local_crops = config.local_crops if method.local_crops else 0

        random.seed(config.seed)
        np.random.seed(config.seed)
        torch.manual_seed(config.seed)  # All methods start from the same encoder.
        encoder = build_encoder(config.encoder, data.channels)
        features = probe_encoder(encoder, config.encoder, data.channels, config.crop_sizes)
        moving = f"cannot be copied, or not moved to {self.device}"
        with blamed_on(config.encoder, moving), in_contact():
            self.network = FRAMEWORKS[method.framework].build(config, encoder, features)
            self.network.to(self.device)
        # An encoder from elsewhere may have parameters for other uses.
        self.embed = self.ranks.averaging(Embedding(self.network), spare=":" in config.encoder)
        self.augment = multi_crop(config, data, self.local_crops)
        self.examples = draw_examples(config, data, self.device)
        lr = self.network.default_lr if config.lr is None else config.lr
        self.peak_lr = lr * config.batch_size / 256
        groups = self.network.parameter_groups()
        self.optimizer = torch.optim.SGD(
            [{"params": group} for group in groups],
            lr=self.peak_lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        self.repulsion = None
        if method.repulsion and self.local_crops > 1:
            self.repulsion = Repulsion(config, groups[0], self.device, self.ranks)
        self.step = 0
        self.seconds = 0.0
        self.history: list[dict[str, float]] = []  # one entry per kNN evaluation
        self.csv_path = out / "metrics.csv"
        self.checkpoint_path = out / "checkpoint.pt"

    def train_step(self, images: Tensor) -> tuple[LoGoTerms, Tensor]:
        """Images uint8 [B, C, H, W] -> (LoGoTerms, z of the global crops [G*B, D]; MoCo: q).

        Each crop passes the encoder once: the affinity's step and the encoder's see the same pass.
        B is this rank's part of a batch.
        """
        global_crops, local_crops = self.augment(images)
        with self.autocast():
            embedded = self.embed(global_crops, local_crops, len(images))
        repulsion = self.repulsion
        if repulsion:
            repulsion.learn(embedded.repelled)
        self.optimizer.zero_grad(set_to_none=True)
        if repulsion and repulsion.clipped:
            terms = self.loss(embedded, None, 0.0)
            terms = terms._replace(ll=repulsion.step_apart(terms.total, embedded.repelled))
        else:
            weight = self.config.repulsion_weight if repulsion else 0.0
            terms = self.loss(embedded, repulsion.affinity if repulsion else "cosine", weight)
            terms.total.backward()
        self.optimizer.step()
        self.network.after_step(embedded)
        return terms, embedded.monitored.detach()

    def loss(self, embedded: Embedded, affinity: Affinity | None, weight: float) -> LoGoTerms:
        return logo_loss(
            embedded.online,
            embedded.local,
            targets=embedded.targets,
            affinity=affinity,
            repulsion_features=embedded.repelled,
            repulsion_weight=weight,
            pair_reduction=self.config.pair_reduction,
            return_terms=True,
            **self.network.attraction(),
        )

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)

    def set_lr(self) -> float:
        """A function of the step alone, so there is no schedule state to save: linear from 0 to the
        peak, then a cosine to 0.
        """
        warm = self.config.warmup_epochs * self.steps_per_epoch
        if self.step < warm:
            lr = self.peak_lr * self.step / warm
        else:
            angle = math.pi * (self.step - warm) / (self.total_steps - warm)
            lr = 0.5 * self.peak_lr * (1 + math.cos(angle))
        rates = self.network.rates(lr, self.peak_lr)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if self.repulsion:
            self.repulsion.set_lr(lr)
        return lr

    def batch(self) -> Tensor:
        """The images of the current step, this rank's part. The order follows from (seed, epoch),
        the place from the step, so a resumed run goes on in the middle of an epoch without
        replaying it.
        """
        epoch, position = divmod(self.step, self.steps_per_epoch)
        generator = torch.Generator().manual_seed(1_000_003 * self.config.seed + epoch)
        order = torch.randperm(len(self.data.train_images), generator=generator)
        size = self.config.batch_size
        index = self.ranks.part(order[position * size : (position + 1) * size])
        return self.data.train_images[index].to(self.device)

    def features(self) -> tuple[Tensor, Tensor]:
        """Of the training and of the test images, [N, F] and [M, F]."""
        encoder, data = self.network.encoder, self.data
        with blamed_on(self.config.encoder, "fails on whole images"):
            train, test = (
                evaluate.embed(encoder, data, images, self.device)
                for images in (data.train_images, data.test_images)
            )
        # Squares, since what follows takes norms and deviations.
        if not all(part.square().mean().isfinite() for part in (train, test)):
            raise UserError(
                f"step {self.step}: the encoder's features are not finite, or beyond 1e19; try a "
                "lower --lr, or another --encoder"
            )
        return train, test

    def example_similarity(self) -> Tensor:
        """Cosines of z between the example crops, image by image: [N*V, N*V], in block form."""
        dim, count = self.config.dim, len(self.examples.images)
        self.network.eval()
        with torch.no_grad(), blamed_on(self.config.encoder, "fails on crops of a few images"):
            z = [self.network.body(v).view(-1, count, dim) for v in self.examples.views]
        self.network.train()
        by_image = torch.cat(z).transpose(0, 1)  # [N, V, D]
        # Taken as the crops of a single image, they give every block between two images as well.
        return block_cosine_similarity(by_image.reshape(1, -1, dim))[0].float().cpu()

    def evaluate_knn(self) -> dict[str, float]:
        config, data = self.config, self.data
        train, test = self.features()
        return {
            "step": self.step,
            "epoch": self.step / self.steps_per_epoch,
            "knn": evaluate.knn_metric(data, train, test, config.knn_k, config.knn_temperature),
            "feature_rank": evaluate.effective_rank(test),
        }

    def progress_line(self) -> str:
        now = self.history[-1]
        line = (
            f"{self.config.method:18}epoch {now['epoch']:4.0f}/{self.config.epochs}   "
            f"loss {now['loss']:6.3f}   kNN {now['knn']:.3f}   "
            f"z std {now['z_std']:.2f}   z rank {now['z_rank']:.1f}"
        )
        return line + ("   COLLAPSED: see z std" if now["z_std"] < COLLAPSED_BELOW else "")

    def start(self) -> None:
        """Begin at step 0."""
        if self.ranks.is_writer:
            with writing(self.csv_path):
                self.csv_path.write_text(",".join(CSV_COLUMNS) + "\n")
        self.ranks.seed(self.config.seed)  # The same crops whatever was evaluated before.

    def run(self) -> None:
        """Train from `self.step` to the end, with rows, evaluations and checkpoints on the way.

        Ctrl-C ends it after a step, with a checkpoint.
        """
        config, ranks = self.config, self.ranks
        self.network.train()
        bar = tqdm(
            total=self.total_steps,
            initial=self.step,
            desc=config.method,
            unit="step",
            disable=None if ranks.is_writer else True,
        )
        rows = self.csv_path if ranks.is_writer else Path(os.devnull)
        since, since_step = time.perf_counter(), self.step
        with (
            writing(self.csv_path),
            rows.open("a", newline="") as file,
            bar,
            Board(config.tensorboard and ranks.is_writer, self.out, self.step) as board,
            Interruption() as interruption,
        ):
            writer = csv.writer(file, lineterminator="\n")
            while self.step < self.total_steps:
                lr = self.set_lr()
                with blamed_on(config.encoder, f"fails at step {self.step + 1}"), in_contact():
                    terms, z = self.train_step(self.batch())
                self.step += 1
                bar.update()
                epoch_ends = self.step % self.steps_per_epoch == 0
                last = self.step == self.total_steps

                if self.step % config.log_every == 0 or epoch_ends:
                    # Reading a value waits for the GPU, hence not at every step.
                    total, gg, lg, ll = self.finite(terms)
                    z = ranks.rows(z)
                    z_std, z_rank = evaluate.channel_std(z), evaluate.effective_rank(z)
                    now = time.perf_counter()
                    self.seconds += now - since
                    ms = (now - since) / (self.step - since_step) * 1e3
                    epoch = self.step / self.steps_per_epoch
                    objective = float(self.repulsion.objective) if self.repulsion else math.nan
                    (objective,) = ranks.mean([objective])
                    row = [
                        *(self.step, f"{epoch:.4f}", lr, total, gg, lg, ll, objective),
                        *(z_std, z_rank, f"{ms:.2f}"),
                    ]
                    writer.writerow(row)
                    file.flush()
                    board.write(self.step, dict(zip(CSV_COLUMNS, row, strict=True)))
                    bar.set_postfix(loss=f"{total:.3f}", z_std=f"{z_std:.2f}")
                    since, since_step = now, self.step

                if epoch_ends:
                    epoch = self.step // self.steps_per_epoch
                    if epoch % config.knn_every == 0 or last:
                        paused = time.perf_counter()
                        self.history.append(
                            ranks.from_writer(self.evaluate_knn)
                            | {"loss": total, "z_std": z_std, "z_rank": z_rank}
                        )
                        board.write(self.step, {"knn": self.history[-1]["knn"]})
                        since += time.perf_counter() - paused  # not part of ms_per_step
                        bar.write(self.progress_line())
                stops = ranks.any(interruption.requested)
                if self.step % config.checkpoint_every == 0 or last or stops:
                    self.finite(terms)  # A checkpoint is worth going back to.
                    board.flush()
                    self.save(file)
                if stops:
                    raise Interrupted(
                        f"interrupted at step {self.step} of {self.total_steps}. Repeat the "
                        "command with --resume to go on from there."
                    )

    def finite(self, terms: LoGoTerms) -> list[float]:
        """The terms as numbers, over the whole batch."""
        values = self.ranks.mean([term.item() for term in terms])
        if not math.isfinite(values[0]):
            parts = ", ".join(f"{n} {v:.4g}" for n, v in zip(terms._fields, values, strict=True))
            raise UserError(
                f"step {self.step}: the loss is {values[0]} ({parts}); try a lower --lr"
            )
        return values

    def save(self, csv_file: IO[str]) -> None:
        random_states = self.ranks.on_writer(checkpoint.random_states())
        self.ranks.from_writer(lambda: self.write(csv_file, random_states))

    def write(self, csv_file: IO[str], random_states: list[dict[str, Any]]) -> None:
        """The checkpoint; random_states: of all ranks."""
        csv_file.flush()
        os.fsync(csv_file.fileno())  # Rows that the checkpoint counts must be as safe as itself.
        state = {
            "config": self.comparable_config(),
            "images": self.data.fingerprint,
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
            "csv_bytes": self.csv_path.stat().st_size,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "repulsion": {name: part.state_dict() for name, part in self.repulsion_parts().items()},
            "random": random_states[0],
        }
        if len(random_states) > 1:
            # The running statistics in the network are those that rank 0 saw in its parts.
            state["ranks"] = {"random": random_states[1:], "running_statistics": "rank 0"}
        checkpoint.save(self.checkpoint_path, state)

    def resume(self) -> str | None:
        """Continue where the checkpoint stands. Call it last: it sets the random states.

        Returns what it cannot keep, if there is something.
        """
        state = self.ranks.from_writer(lambda: checkpoint.load(self.checkpoint_path))
        try:
            return self.restore(state)
        except (UserError, KeyboardInterrupt):
            raise
        except Exception as error:  # What a checkpoint holds may be anything.
            raise UserError(
                f"--resume: {self.checkpoint_path} does not fit ({reason(error)}): it was changed, "
                "or the --encoder was. Start again with another --out."
            ) from error

    def restore(self, state: dict[str, Any]) -> str | None:
        saved, asked = state["config"], self.comparable_config()
        different = [
            f"{name} was {saved.get(name, LATER.get(name))}, is {asked.get(name, LATER.get(name))}"
            for name in sorted(saved.keys() | asked.keys())
            if saved.get(name) != asked.get(name)
        ]
        if different:
            raise UserError(
                f"--resume: {self.checkpoint_path} belongs to another configuration: "
                f"{'; '.join(different)}. Repeat its settings, or choose another --out."
            )
        if state.get("images", self.data.fingerprint) != self.data.fingerprint:
            raise UserError(
                f"--resume: {self.checkpoint_path} belongs to other images ({state['images'][0]} "
                f"to train on, now {len(self.data.train_images)}). Bring them back, or choose "
                "another --out."
            )
        if self.ranks.is_writer:
            self.check_csv(state["csv_bytes"])
        step, seconds, history = state["step"], float(state["seconds"]), state["history"]
        if type(step) is not int or not 0 <= step <= self.total_steps:
            raise ValueError(f"step {step!r} of {self.total_steps}")
        if not all(entry.keys() >= HISTORY for entry in history):
            raise ValueError(f"an evaluation lacks one of {', '.join(sorted(HISTORY))}")
        if step == self.total_steps and not history:
            raise ValueError("no evaluation at its last step")
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, part in self.repulsion_parts().items():
            part.load_state_dict(state["repulsion"][name])
        self.step, self.seconds, self.history = step, seconds, history
        if self.ranks.is_writer:
            with writing(self.csv_path):
                # Rows after the checkpoint come again.
                os.truncate(self.csv_path, state["csv_bytes"])
        return self.restore_random_states(
            [state["random"], *state.get("ranks", {}).get("random", [])]
        )

    def check_csv(self, size: int) -> None:
        """Refuse a metrics.csv that lost rows of the checkpoint, which counts so many bytes."""
        have = self.csv_path.stat().st_size if self.csv_path.exists() else 0
        if have < size:
            raise UserError(
                f"--resume: {self.csv_path} has {have} bytes, the checkpoint counts {size}: it was "
                "changed. Start again with another --out."
            )
        read_metrics(self.csv_path, size)

    def restore_random_states(self, states: list[dict[str, Any]]) -> str | None:
        """Of the ranks that wrote the checkpoint; a rank that was not among them begins anew."""
        ranks = self.ranks
        if ranks.rank < len(states):
            checkpoint.restore_random_states(states[ranks.rank])
        else:
            ranks.seed(self.config.seed, self.step)
        if len(states) == ranks.count:
            return None
        return (
            f"the checkpoint was written by {len(states)} processes and is resumed by "
            f"{ranks.count}: weights, optimisers, the queue and the order of the images go on; the "
            "random crops, and the parts of a batch that batch norm sees, are not those that would "
            "have come"
        )

    def repulsion_parts(self) -> dict[str, Any]:
        return self.repulsion.parts() if self.repulsion else {}

    def comparable_config(self) -> dict[str, Any]:
        """The settings that a resumed run must share, as plain values."""
        values = json.loads(json.dumps(asdict(self.config), default=str))
        return {
            name: value
            for name, value in values.items()
            if name not in RESUME_MAY_CHANGE and (name, value) not in LATER.items()
        }
