"""The cosine loss of SimSiam-LoGo in a loop of its own: python examples/first_loss.py

Global crops of an image attract each other and its local crops; its local crops repel each other.
"""

import torch
from torch import nn

from logo_kernels import logo_loss
from pictures import crop, encoder, found, patterns

IMAGES, G, L, DIM = 64, 2, 4, 64  # images of a batch, global and local crops of each, embedding


def main(steps: int = 100) -> None:
    torch.manual_seed(0)
    images, unseen = patterns(512), patterns(256, seed=1)
    network = nn.Sequential(encoder(DIM), nn.BatchNorm1d(DIM, affine=False))
    predictor = nn.Sequential(nn.Linear(DIM, 16), nn.ReLU(), nn.Linear(16, DIM))
    optimizer = torch.optim.Adam([*network.parameters(), *predictor.parameters()], lr=1e-3)
    before = found(network, unseen)

    for step in range(steps):
        batch = images[torch.randperm(len(images))[:IMAGES]]
        views = [crop(batch, 0.6, 1.0) for _ in range(G)] + [
            crop(batch, 0.3, 0.6) for _ in range(L)
        ]
        z = network(torch.cat(views))  # view by view, [(G + L) * IMAGES, DIM]
        h = predictor(z)
        z, h = (v.view(G + L, IMAGES, DIM).transpose(0, 1) for v in (z, h))  # [IMAGES, G + L, DIM]

        loss, gg, lg, ll = logo_loss(
            h[:, :G],
            h[:, G:],
            targets=z[:, :G],  # constants: no gradient flows into them
            repulsion_features=z[:, G:],
            repulsion_weight=0.01,
            return_terms=True,  # gg, lg and ll are for the log
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:3}  loss {loss:.3f}  gg {gg:.3f}  lg {lg:.3f}  ll {ll:.3f}")

    after = found(network, unseen)
    print(f"local crops that find their image among 256: {before:.3f} before, {after:.3f} after")


if __name__ == "__main__":
    main()
