"""The repulsion between local crops: eq. 5's affinity, the step that learns it, and, where the
encoder's repulsion has a step of its own, that step."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from config import Config
from logo_kernels import LocalAffinity, block_cosine_similarity
from ranks import Ranks

Affinity = str | Callable[[Tensor], Tensor]  # what logo_loss takes


class Repulsion:
    """ℓa and what it needs from step to step: θd, its optimiser, the repulsion's optimiser.

    parameters: those of encoder and projector, which the repulsion moves.
    """

    def __init__(
        self,
        config: Config,
        parameters: list[nn.Parameter],
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.config, self.parameters, self.ranks = config, parameters, ranks
        self.clipped = config.repulsion_step == "clipped"
        self.affinity: Affinity = "cosine"
        self.objective = float("nan")  # of the last step, for the log
        self.optimizer = self.own_optimizer = None
        if config.affinity == "learned":
            self.affinity = LocalAffinity(config.dim, device=device)
            self.learner = ranks.averaging(self.affinity)  # while it still wants gradients
            self.affinity.requires_grad_(False)
            self.optimizer = torch.optim.SGD(
                self.affinity.parameters(),
                # Never decayed: θd follows an encoder that moves to the end.
                lr=config.affinity_lr * config.batch_size / 256,
                momentum=config.momentum,
                weight_decay=config.weight_decay,
            )
        if self.clipped:
            # No weight decay: the attraction's optimiser has decayed the same parameters already.
            # set_lr() gives it the attraction's rate.
            self.own_optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=config.momentum)

    def learn(self, local: Tensor) -> None:
        """θd's step (eq. 6) on local crops [B, L, D], which it takes as constants."""
        if self.optimizer is None:
            return
        affinity = self.affinity
        affinity.requires_grad_(True)
        objective = self.learner(local, objective=self.config.objective)
        self.optimizer.zero_grad(set_to_none=True)
        objective.backward()
        self.optimizer.step()
        affinity.requires_grad_(False)  # θd* is a constant of the encoder's loss (eq. 9).
        self.objective = objective.detach()

    def step_apart(self, attraction: Tensor, local: Tensor) -> Tensor:
        """Leaves the attraction's gradient in .grad, and takes the repulsion's step by its own
        optimiser: ℓa's gradient, its norm at most repulsion_clip times that of the attraction's.

        Both gradients belong to the same weights and the same forward pass. Several ranks compare
        the norms of their means, so all take the same step. Returns ll, detached.
        """
        ll = self.mean_affinity(local)
        repelled = torch.autograd.grad(ll, self.parameters, retain_graph=True, allow_unused=True)
        repelled = self.ranks.mean_gradients(repelled)  # backward sees to the attraction's
        attraction.backward()
        attracted = [p.grad for p in self.parameters]
        limit = self.config.repulsion_clip * norm(attracted)
        scale = (limit / norm(repelled).clamp(min=1e-30)).clamp(max=1.0)
        for parameter, gradient in zip(self.parameters, repelled, strict=True):
            parameter.grad = None if gradient is None else gradient * scale
        self.own_optimizer.step()
        for parameter, gradient in zip(self.parameters, attracted, strict=True):
            parameter.grad = gradient
        return ll.detach()

    def mean_affinity(self, local: Tensor) -> Tensor:
        """ℓa over all images and pairs, a scalar."""
        if self.affinity != "cosine":
            return self.affinity(local).mean()
        crops = local.shape[1]
        first, second = torch.triu_indices(crops, crops, offset=1, device=local.device)
        return block_cosine_similarity(local)[:, first, second].mean()

    def set_lr(self, lr: float) -> None:
        if self.own_optimizer is not None:
            self.own_optimizer.param_groups[0]["lr"] = lr

    def parts(self) -> dict[str, Any]:
        """What has a state to save, by name."""
        parts = {
            "affinity": self.affinity,
            "affinity_optimizer": self.optimizer,
            "repulsion_optimizer": self.own_optimizer,
        }
        return {name: part for name, part in parts.items() if hasattr(part, "state_dict")}


def norm(gradients: Sequence[Tensor | None]) -> Tensor:
    """The Euclidean norm of all of them together; None where a parameter was not used."""
    return torch.stack([g.float().norm() for g in gradients if g is not None]).norm()
