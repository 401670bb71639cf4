"""MoCo-LoGo with a momentum encoder and a queue of negatives: python examples/moco_queue.py

The negatives are keys of earlier batches, so their number does not depend on the batch's size. The
queue is part of a checkpoint: a run that goes on after one takes the same steps.
"""

import copy
import io

import torch
from torch import nn

from logo_kernels import LoGoLoss, NegativeQueue
from pictures import crop, encoder, found, patterns

IMAGES, G, L, DIM, QUEUE, MOMENTUM = 64, 2, 4, 64, 4096, 0.99


class Moco(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = encoder(DIM)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.queue = NegativeQueue(DIM, QUEUE)  # buffers: in the state_dict
        self.criterion = LoGoLoss(similarity="info_nce", temperature=0.2, repulsion_weight=0.01)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([crop(batch, 0.6, 1.0) for _ in range(G)])
        parts = torch.cat([crop(batch, 0.3, 0.6) for _ in range(L)])
        q = self.network(torch.cat([whole, parts])).view(G + L, -1, DIM).transpose(0, 1)
        with torch.no_grad():
            k = self.average(whole).view(G, -1, DIM).transpose(0, 1)
        loss = self.criterion(q[:, :G], q[:, G:], targets=k, negatives=self.queue.keys)
        self.queue.enqueue(k)  # after the loss, so that no key is its own negative
        return loss

    @torch.no_grad()
    def follow(self) -> None:
        pairs = zip(self.average.parameters(), self.network.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 1 - MOMENTUM)


def train(model: Moco, optimizer: torch.optim.Optimizer, steps: range) -> torch.Tensor:
    images = patterns(512)
    for step in steps:
        torch.manual_seed(step)  # a step depends on its number and the state, on nothing else
        loss = model.loss(images[torch.randperm(len(images))[:IMAGES]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.follow()
        if step % 20 == 0 or step == steps[-1]:
            print(f"step {step:3}  loss {loss:.3f}")
    return loss.detach()


def main(steps: int = 100) -> None:
    torch.manual_seed(0)
    unseen = patterns(256, seed=1)
    model = Moco()
    optimizer = torch.optim.Adam(model.network.parameters(), lr=1e-3)
    before = found(model.network, unseen)

    train(model, optimizer, range(steps // 2))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    last = train(model, optimizer, range(steps // 2, steps))

    resumed = Moco()
    optimizer = torch.optim.Adam(resumed.network.parameters())
    state = torch.load(io.BytesIO(file.getvalue()))
    resumed.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    again = train(resumed, optimizer, range(steps // 2, steps))
    print(f"resumed from half of the way: the last loss differs by {float(again - last)}")

    after = found(model.network, unseen)
    print(f"local crops that find their image among 256: {before:.3f} before, {after:.3f} after")


if __name__ == "__main__":
    main()
