"""`logo_loss` with similarity="info_nce", against a queue or the batch: forward and backward.

    python benchmarks/bench_info_nce.py               time and peak memory against K, on a CPU only:
                                                      JSON and chart, to results/<device>
    python benchmarks/bench_info_nce.py --simd avx2   as a CPU without AVX-512 would

A peer maps x [B, G, D], y [B, L, D], t [B, G, D] and, of a queue, n [K, D] to the scalar of
``logo_loss(x, y, t, similarity="info_nce", negatives=n, temperature=TEMPERATURE, affinity=None)``,
"batch" in place of n without a queue; gradients come from autograd. Against a queue:

- ``six calls``  one InfoNCE for each pair of crops, as the published code does: 6 for G = L = 2
- ``once``       the logits of every crop with the negatives once, for all its positives
- ``attention``  torch's flash attention with keys = values, called directly: no logits in memory
- ``cuDNN``      attention by cuDNN, on a GPU

On a GPU, the keys of both attentions come in parts, or few queries would leave most of it idle.
Against the other images of the batch:

- ``once``    the logits of every crop with every target once, an image's own masked out
- ``NTXent``  pytorch-metric-learning's NTXentLoss, told the pairs of eqs. 3 and 4
- ``Inf-CL``  inf_cl's Triton kernels, where each image has one query and one target (on a GPU)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from harness import sweep
from harness.case import ELEMENT_BYTES, Case, Inputs, crops, summed_in, upstream_of
from harness.comparison import Contest, compare, contest_of, named
from harness.forms import Function
from harness.memory import free_bytes
from harness.timing import OURS, Step, matrix_product
from logo_kernels import logo_loss

TEMPERATURE = 0.2


@dataclass(frozen=True)
class InfoNCECase(Case):
    images: int
    global_crops: int
    local_crops: int
    negatives: int | None  # K, of a queue; None: the targets of the other images
    dim: int
    dtype: str
    why: str

    operation = "info_nce"

    def shape(self) -> tuple[int | str, ...]:
        negatives = self.negatives or "batch"
        return self.images, self.global_crops, self.local_crops, negatives, self.dim

    def moved_bytes(self) -> int:
        """Read crops, targets and negatives, write gradients of the crops."""
        crops = self.global_crops + self.local_crops
        rows = self.images * (2 * crops + self.global_crops) + (self.negatives or 0)
        return rows * self.dim * ELEMENT_BYTES[self.dtype]

    def flops(self) -> int:
        """4NKD: scores, and the negatives' weighted mean, of each crop once."""
        queried = self.local_crops + (self.global_crops if self.global_crops > 1 else 0)
        rows = self.images * queried  # one global crop has no positive
        negatives = self.negatives or (self.images - 1) * self.global_crops
        return 4 * rows * negatives * self.dim


CASES = {
    "cpu": (
        InfoNCECase(256, 2, 2, 65536, 128, "float32", "MoCo's queue and D: 1024 crops"),
        InfoNCECase(256, 2, 2, 4096, 128, "float32", "the authors' queue"),
        InfoNCECase(32, 2, 8, 4096, 256, "bfloat16", "many crops of few images, under autocast"),
        InfoNCECase(128, 2, 2, None, 128, "float32", "in-batch: NTXent's memory ends soon after"),
        InfoNCECase(2048, 2, 2, None, 128, "float32", "in-batch: a large batch"),
    ),
    "cuda": (
        InfoNCECase(1024, 2, 2, 65536, 128, "bfloat16", "4096 crops: the matrix product decides"),
        InfoNCECase(128, 2, 2, 65536, 128, "bfloat16", "512 crops: splits must fill the GPU"),
        InfoNCECase(1024, 2, 2, 65536, 256, "bfloat16", "twice the columns"),
        InfoNCECase(256, 2, 2, 4096, 128, "float32", "the authors' queue"),
        InfoNCECase(4096, 2, 2, None, 256, "bfloat16", "in-batch: 16,384 crops"),
        InfoNCECase(16384, 1, 1, None, 256, "bfloat16", "in-batch, one direction: Inf-CL's"),
        InfoNCECase(256, 2, 2, 65536, 128, "float32", "the README's, beside the CPU's"),
        InfoNCECase(2048, 2, 2, None, 128, "float32", "the README's in-batch, beside the CPU's"),
    ),
}


def inputs_of(case: InfoNCECase, device: str) -> Inputs:
    """x, y as leaves, t and any negatives n [K, D], unit vectors as in a queue, as constants."""
    x, y, t = crops([case.global_crops, case.local_crops, case.global_crops], case, device)
    constants = [t]
    if case.negatives is not None:
        n = torch.randn(case.negatives, case.dim, device=device)
        constants.append(F.normalize(n, dim=1).to(x.dtype))
    return Inputs([x.requires_grad_(), y.requires_grad_()], constants)


def loss(x: Tensor, y: Tensor, t: Tensor, n: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Ours in the peers' signature; without negatives, against the batch."""
    return logo_loss(
        x, y, t,
        similarity="info_nce", negatives="batch" if n is None else n, temperature=TEMPERATURE,
        affinity=None,
        backend=backend,
    )  # fmt: skip


def total(gap: Tensor, x: Tensor) -> Tensor:
    """Eqs. 3 and 4 from lse − s⁺ of all pairs [B, G + L, G]."""
    losses = F.softplus(gap, threshold=50)
    dtype = summed_in(x)
    gg = losses[:, : x.shape[1]]
    own = gg.diagonal(dim1=1, dim2=2).sum(dtype=dtype)
    return (losses.sum(dtype=dtype) - own - 0.5 * (gg.sum(dtype=dtype) - own)) / x.shape[0]


def six_calls(x: Tensor, y: Tensor, t: Tensor, n: Tensor) -> Tensor:
    """Cross entropy with the positive in front of the negatives, pair by pair."""
    xs, ys = F.normalize(x, dim=-1).unbind(1), F.normalize(y, dim=-1).unbind(1)
    ts, keys = F.normalize(t, dim=-1).unbind(1), F.normalize(n, dim=-1)

    def call(query: Tensor, key: Tensor) -> Tensor:
        positive = (query * key).sum(-1, keepdim=True)
        logits = torch.cat([positive, query @ keys.mT], 1) / TEMPERATURE
        first = torch.zeros(len(query), dtype=torch.long, device=x.device)
        return F.cross_entropy(logits, first, reduction="none").mean(dtype=dtype)

    dtype = summed_in(x)
    loss = x.new_zeros((), dtype=dtype)
    for i, x_i in enumerate(xs):
        for j, t_j in enumerate(ts):
            if i != j:
                loss = loss + 0.5 * call(x_i, t_j)
    for y_i in ys:
        for t_j in ts:
            loss = loss + call(y_i, t_j)
    return loss


def once(x: Tensor, y: Tensor, t: Tensor, n: Tensor) -> Tensor:
    """log Σ e^logit of every crop once; each pair is a softplus of its difference to that."""
    queries = F.normalize(torch.cat([x, y], 1), dim=-1)
    lse = (queries @ F.normalize(n, dim=-1).mT / TEMPERATURE).logsumexp(-1, keepdim=True)
    return total(lse - queries @ F.normalize(t, dim=-1).mT / TEMPERATURE, x)


# [1, H, N, D] queries and [1, H, K, D] keys, which are the values too -> (O, log-sum-exp).
Engine = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def flash_engine(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    run = (
        torch.ops.aten._scaled_dot_product_flash_attention
        if queries.is_cuda
        else torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    )
    return run(queries, keys, keys, scale=1 / TEMPERATURE)[:2]


def cudnn_engine(queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    run = torch.ops.aten._scaled_dot_product_cudnn_attention
    return run(queries, keys, keys, None, True, scale=1 / TEMPERATURE)[:2]


def by_attention(engine: Engine, x: Tensor, y: Tensor, t: Tensor, n: Tensor) -> Tensor:
    """The softmax-weighted mean O and the log-sum-exp from one attention call; ∂lse/∂q̂ = O/τ."""
    queries = F.normalize(torch.cat([x, y], 1), dim=-1)
    rows = queries.detach().flatten(0, 1)
    keys = F.normalize(n, dim=-1)
    parts = parts_of(len(keys), len(rows), multiprocessors(x)) if x.is_cuda else 1
    mean, lse = attend(engine, rows, keys, parts)
    mean, lse = mean.view_as(queries), lse.view(*queries.shape[:2], 1).to(queries.dtype)
    linear = (queries * mean).sum(-1, keepdim=True) / TEMPERATURE
    lse = lse + linear - linear.detach()  # the value of lse, the gradient O/τ
    return total(lse - queries @ F.normalize(t, dim=-1).mT / TEMPERATURE, x)


def attend(engine: Engine, rows: Tensor, keys: Tensor, parts: int) -> tuple[Tensor, Tensor]:
    """(O [N, D], lse [N]) of rows [N, D] and keys [K, D], whose parts are given as heads."""
    heads = keys.view(1, parts, -1, keys.shape[1])
    mean, lse = engine(rows.expand(1, parts, *rows.shape), heads)
    if parts == 1:
        return mean.reshape(rows.shape), lse.reshape(-1)
    lse = lse.reshape(parts, -1, 1)
    share = lse.softmax(0)
    return (mean[0] * share).sum(0).to(rows.dtype), lse.logsumexp(0).reshape(-1)


def parts_of(keys: int, rows: int, multiprocessors: int) -> int:
    """Equal parts of the keys, so that blocks of 128 rows occupy a GPU, two to a multiprocessor."""
    parts = 1
    while keys % (2 * parts) == 0 and 2 * parts * -(-rows // 128) <= 2 * multiprocessors:
        parts *= 2
    return parts


def multiprocessors(tensor: Tensor) -> int:
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count


def attention(x: Tensor, y: Tensor, t: Tensor, n: Tensor) -> Tensor:
    return by_attention(flash_engine, x, y, t, n)


def cudnn(x: Tensor, y: Tensor, t: Tensor, n: Tensor) -> Tensor:
    return by_attention(cudnn_engine, x, y, t, n)


def once_in_batch(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """One product; the positives' logits are the masked blocks."""
    images, crops, dim = x.shape[0], x.shape[1] + y.shape[1], x.shape[2]
    queries = F.normalize(torch.cat([x, y], 1), dim=-1)
    targets = F.normalize(t, dim=-1)
    logits = queries.view(-1, dim) @ targets.view(-1, dim).mT / TEMPERATURE
    image = torch.arange(images, device=x.device)
    own = image.repeat_interleave(crops)[:, None] == image.repeat_interleave(t.shape[1])
    lse = logits.masked_fill(own, -torch.inf).logsumexp(-1).view(images, crops, 1)
    return total(lse - queries @ targets.mT / TEMPERATURE, x)


def ntxent(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Its mean is over positive pairs; ours sums an image's pairs and averages over images."""
    from pytorch_metric_learning.losses import NTXentLoss

    images, globals_, dim = x.shape
    loss = NTXentLoss(temperature=TEMPERATURE)
    targets = t.reshape(-1, dim)
    image = torch.arange(images, device=x.device)
    of_target = image.repeat_interleave(globals_)

    def attraction(queries: Tensor, skip_itself: bool) -> Tensor:
        of_query = image.repeat_interleave(queries.shape[1])
        same = of_query[:, None] == of_target
        positive = same.clone()
        if skip_itself:
            positive.fill_diagonal_(False)
        anchors, positives = positive.nonzero(as_tuple=True)
        others, negatives = (~same).nonzero(as_tuple=True)
        mean = loss(
            queries.reshape(-1, dim), of_query, (anchors, positives, others, negatives),
            targets, of_target,
        )  # fmt: skip
        return mean * len(anchors) / images

    return 0.5 * attraction(x, True) + attraction(y, False)


def infcl(x: Tensor, y: Tensor, t: Tensor) -> Tensor:
    """Its denominator has all targets: the positive, and those of the other images."""
    from inf_cl import cal_flash_loss

    if x.shape[1] != 1 or y.shape[1] != 1:
        raise ValueError("Inf-CL has one query and one positive per image")
    queries, targets = F.normalize(y[:, 0], dim=-1), F.normalize(t[:, 0], dim=-1)
    losses = cal_flash_loss(queries, targets, scale=1 / TEMPERATURE, head_dim=y.shape[2])
    return losses.mean() + 0 * x.sum()  # one global crop has no pair, and a gradient of zero


QUEUE: dict[str, Function] = {"six calls": six_calls, "once": once, "attention": attention}
BATCH: dict[str, Function] = {"once": once_in_batch, "NTXent": ntxent}
QUEUE_ON_A_GPU: dict[str, Function] = {"cuDNN": cudnn}
BATCH_ON_A_GPU: dict[str, Function] = {"Inf-CL": infcl}
PACKAGES = {"NTXent": "pytorch_metric_learning", "Inf-CL": "inf_cl"}


def peers_of(case: InfoNCECase, device: str) -> dict[str, Function]:
    """Against the batch or against a queue; some there are on a GPU only."""
    peers = BATCH if case.negatives is None else QUEUE
    on_a_gpu = BATCH_ON_A_GPU if case.negatives is None else QUEUE_ON_A_GPU
    return peers | on_a_gpu if device == "cuda" else peers


def missing_peers(case: InfoNCECase, device: str) -> dict[str, str]:
    """Those that cannot run at this case -> why."""
    if case.negatives is not None:
        return {}
    reasons = {name: missing(name, case, device) for name in peers_of(case, device)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def missing(name: str, case: InfoNCECase, device: str) -> str | None:
    """Why a peer against the batch cannot run at a case, or None."""
    package = PACKAGES.get(name)
    if package is not None and find_spec(package) is None:
        return f"{package} is not installed"
    if name == "Inf-CL" and (case.global_crops, case.local_crops) != (1, 1):
        return "it has one query and one positive per image"
    if name != "NTXent":
        return None
    needed, free = ntxent_bytes(case), free_bytes(device)
    if needed <= free:
        return None
    return f"it needs {needed / 2**30:.0f} GiB at the least, and {free / 2**30:.0f} GiB are free"


def ntxent_bytes(case: InfoNCECase) -> int:
    """At the least: of each positive pair with each negative pair, a flag and two numbers."""
    most = 0
    for queried, positives in (
        (case.global_crops, case.global_crops - 1),
        (case.local_crops, case.global_crops),
    ):
        queries = case.images * queried
        negative_pairs = queries * (case.images - 1) * case.global_crops
        most = max(most, queries * positives * negative_pairs)
    return most * (1 + 2 * ELEMENT_BYTES[case.dtype])


def contest(case: InfoNCECase, device: str) -> Contest:
    return contest_of(
        case, device, inputs_of(case, device), named(loss), peers_of(case, device),
        missing=missing_peers(case, device),
        upstream=upstream_of(case.dtype, device),
        product=matrix_product(case.flops(), case.dtype, device),
    )  # fmt: skip


def test_info_nce(benchmark, case, device) -> None:
    compare(benchmark, case, device, contest(case, device))


LOGITS_BYTES = 2 << 30  # of one array: peers that keep logits stop where these outgrow it


def steps_over_k(negatives: int) -> dict[str, Step]:
    """Ours and the peers, eagerly, as far as their memory goes."""
    case = InfoNCECase(256, 2, 2, negatives, 128, "float32", "")
    inputs = inputs_of(case, "cpu")
    peers = QUEUE if 1024 * negatives * 4 <= LOGITS_BYTES else {"attention": attention}
    functions = {OURS: loss, **peers}
    return {name: partial(inputs.step, function) for name, function in functions.items()}


OVER_K = sweep.Sweep(
    name="info_nce_over_k",
    title="InfoNCE of 1024 crops, D = 128, fp32, forward and backward, eager",
    parameter="negatives",
    values=[4096 * 4**power for power in range(5)],  # to 1,048,576
    steps=steps_over_k,
)

if __name__ == "__main__":
    raise SystemExit(sweep.main(OVER_K, __doc__, sys.argv))
