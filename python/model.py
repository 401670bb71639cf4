"""SimSiam (Chen & He, CVPR 2021) and MoCo (He et al., CVPR 2020).

Each brings what the training loop asks of a framework: embeddings and their targets, the loss that
draws them together, parameter groups, their rates, and what follows a step.
"""

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from config import Config
from logo_kernels import NegativeQueue


@dataclass(frozen=True)
class Embedded:
    """What one forward pass of all crops gives the loss; [B, V, D] are views of view-major rows."""

    online: Tensor  # [B, G, D]: SimSiam's h(z), MoCo's q
    local: Tensor | None  # [B, L, D], likewise
    targets: Tensor  # [B, G, D], constants: SimSiam's z, MoCo's keys
    repelled: Tensor | None  # [B, L, D]: SimSiam's z, MoCo's q
    monitored: Tensor  # [G*B, D], of the global crops: z, q


def by_image(rows: Tensor, images: int) -> Tensor:
    """View-major [V*B, D] -> [B, V, D], a view that costs no copy. B = images."""
    return rows.view(-1, images, rows.shape[1]).transpose(0, 1)


class Framework(nn.Module):
    """An encoder and a projector, and how they are trained."""

    encoder: nn.Module
    projector: nn.Module
    # For a batch of 256, where none is given: the rate that suits short runs on the scenes.
    default_lr: float
    # Encoders that a global crop passes in a step.
    encoders: int

    @classmethod
    def build(cls, config: Config, encoder: nn.Module, features: int) -> "Framework":
        raise NotImplementedError

    @property
    def body(self) -> nn.Sequential:
        """Crops [N, C, S, S] -> z [N, D]; what the repulsion moves."""
        return nn.Sequential(self.encoder, self.projector)

    def embed(self, global_crops: Tensor, local_crops: Tensor | None, images: int) -> Embedded:
        """Crops [G*B, C, S, S] and [L*B, C, s, s] of B images."""
        raise NotImplementedError

    def attraction(self) -> dict[str, Any]:
        """The arguments of logo_loss that say how crops are drawn together."""
        raise NotImplementedError

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """What the optimiser moves, the body first."""
        return [[*self.encoder.parameters(), *self.projector.parameters()]]

    def rates(self, lr: float, peak: float) -> list[float]:
        """Of each group, where the schedule that began at peak has come to lr."""
        return [lr]

    def after_step(self, embedded: Embedded) -> None:
        """What changes once the optimiser has moved the weights."""


class SimSiam(Framework):
    """crops [N, C, S, S] -> (z [N, D], h(z) [N, D]).

    Projector: three layers with batch norm, the last without affine parameters. Predictor h: a
    bottleneck of two layers, batch norm in the hidden one only. Both as published, where
    D = hidden = 2048 and the bottleneck has 512.
    """

    default_lr = 0.4
    encoders = 1

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        dim: int,
        bottleneck: int,
        predictor_lr: float = 1.0,
        fixed_predictor_lr: bool = True,
    ) -> None:
        """predictor_lr: the predictor's rate as a multiple of the body's; fixed: it stays."""
        super().__init__()
        self.predictor_lr, self.fixed_predictor_lr = predictor_lr, fixed_predictor_lr
        self.encoder = encoder
        self.projector = nn.Sequential(
            nn.Linear(features, dim, bias=False),
            nn.BatchNorm1d(dim),
            nn.ReLU(),
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim),
            nn.ReLU(),
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim, affine=False),
        )
        self.predictor = nn.Sequential(
            nn.Linear(dim, bottleneck, bias=False),
            nn.BatchNorm1d(bottleneck),
            nn.ReLU(),
            nn.Linear(bottleneck, dim),
        )

    @classmethod
    def build(cls, config: Config, encoder: nn.Module, features: int) -> "SimSiam":
        return cls(
            encoder,
            features,
            config.dim,
            config.bottleneck,
            config.predictor_lr,
            config.fixed_predictor_lr,
        )

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projector(self.encoder(crops))
        return z, self.predictor(z)

    def embed(self, global_crops: Tensor, local_crops: Tensor | None, images: int) -> Embedded:
        z, h = self(global_crops)
        z_local = h_local = None
        if local_crops is not None:
            z_local, h_local = (by_image(rows, images) for rows in self(local_crops))
        # Eq. 5 is about the representation: it sees z, not the predictor's guess at another z.
        targets = by_image(z, images).detach()
        return Embedded(by_image(h, images), h_local, targets, z_local, z)

    def attraction(self) -> dict[str, Any]:
        return {"similarity": "cosine"}

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        return [*super().parameter_groups(), list(self.predictor.parameters())]

    def rates(self, lr: float, peak: float) -> list[float]:
        return [lr, self.predictor_lr * (peak if self.fixed_predictor_lr else lr)]


class MoCo(Framework):
    """crops [N, C, S, S] -> queries [N, D]; `keys` gives the targets, `queue` the negatives.

    Projector: two layers with batch norm, the last without affine parameters (MoCo v3). That of
    MoCo v2, without batch norm, collapsed on the scenes within an epoch.

    The momentum encoder, projector included, starts as a copy and gets no gradient. Like the online
    one it normalises by the statistics of its own batch. With key_groups = 1 that is all G * B
    global crops in one pass: a key and its query share the rest of their batch, which makes the
    task a little easier. With more, the crops pass in so many parts, drawn anew at every step, so
    that a key is normalised among others than its query: what MoCo does by shuffling among devices.
    Running statistics, which share nothing (EMAN, Cai et al., CVPR 2021), lag behind the weights in
    a run of some hundred steps and were worse here.
    """

    default_lr = 0.1
    encoders = 2

    def __init__(
        self,
        encoder: nn.Module,
        features: int,
        dim: int,
        queue_size: int,
        negatives: Literal["queue", "batch"] = "queue",
        temperature: float = 0.2,
        ema: float = 0.99,
        key_groups: int = 1,
    ) -> None:
        super().__init__()
        self.key_groups = key_groups
        self.negatives, self.temperature, self.ema = negatives, temperature, ema
        self.encoder = encoder
        self.projector = nn.Sequential(
            nn.Linear(features, dim, bias=False),
            nn.BatchNorm1d(dim),
            nn.ReLU(),
            nn.Linear(dim, dim, bias=False),
            nn.BatchNorm1d(dim, affine=False),
        )
        self.momentum = copy.deepcopy(self.body)
        self.momentum.requires_grad_(False)
        self.queue = NegativeQueue(dim, queue_size, group=dist.group.WORLD)

    @classmethod
    def build(cls, config: Config, encoder: nn.Module, features: int) -> "MoCo":
        return cls(
            encoder,
            features,
            config.dim,
            config.queue_size,
            config.negatives,
            config.temperature,
            config.ema,
            config.key_groups,
        )

    def forward(self, crops: Tensor) -> Tensor:
        return self.projector(self.encoder(crops))

    @torch.no_grad()
    def keys(self, global_crops: Tensor) -> Tensor:
        if self.key_groups == 1:
            return self.momentum(global_crops)
        # From the global generator of the crops' device, which checkpoints keep.
        order = torch.randperm(len(global_crops), device=global_crops.device)
        parts = order.tensor_split(self.key_groups)
        keys = torch.cat([self.momentum(global_crops[rows]) for rows in parts])
        return keys[order.argsort()]

    def embed(self, global_crops: Tensor, local_crops: Tensor | None, images: int) -> Embedded:
        q = self(global_crops)
        q_local = None if local_crops is None else by_image(self(local_crops), images)
        # All crops are drawn to global ones alone (eqs. 3 and 4): local crops need no keys.
        keys = by_image(self.keys(global_crops), images)
        return Embedded(by_image(q, images), q_local, keys, q_local, q)

    def attraction(self) -> dict[str, Any]:
        negatives = (
            {"negatives": self.queue.keys}
            if self.negatives == "queue"
            else {"negatives": "batch", "group": dist.group.WORLD}
        )
        return {"similarity": "info_nce", "temperature": self.temperature, **negatives}

    def after_step(self, embedded: Embedded) -> None:
        self.update_momentum(self.ema)
        # After the loss, so that no query meets its own positive as a negative. The keys of all
        # G global crops, as in the authors' code: they have been computed, and each is another
        # negative. So the queue goes back K / (G * B) steps.
        if self.negatives == "queue":
            self.queue.enqueue(embedded.targets)

    @torch.no_grad()
    def update_momentum(self, ema: float) -> None:
        """Momentum encoder = ema * itself + (1 - ema) * online; once a step, after the optimiser.

        Parameters alone: buffers (running statistics) are those of its own batches.
        """
        # A tensor that two layers share comes but once.
        averages, values = (list(part.parameters()) for part in (self.momentum, self.body))
        torch._foreach_lerp_(averages, values, 1 - ema)


class Embedding(nn.Module):
    """A framework's `embed` as a forward, which is all that DistributedDataParallel sees."""

    def __init__(self, network: Framework) -> None:
        super().__init__()
        self.network = network

    def forward(self, *crops: Any) -> Embedded:
        return self.network.embed(*crops)


FRAMEWORKS: dict[str, type[Framework]] = {"simsiam": SimSiam, "moco": MoCo}
