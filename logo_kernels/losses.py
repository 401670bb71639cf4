"""The LoGo loss: the public function, its terms, and the module form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, overload

import torch
from torch import Tensor

from . import checks, ranks
from .backends import AUTO, BACKENDS
from .contrast import contrast
from .cosine import cosine_loss, repulsion_loss
from .weights import PAIR_REDUCTIONS

Affinity = str | Callable[[Tensor], Tensor] | None

SIMILARITIES = ("cosine", "info_nce")
REDUCTIONS = ("mean", "sum", "none")


class LoGoTerms(NamedTuple):
    """The loss and what it is made of.

    ``gg``, ``lg`` and ``ll`` are detached, each the mean over its pairs of one image, reduced over
    images as ``total`` is. All four are scalars, or [B] with ``reduction="none"``; float32, or
    float64 if any input is. A tuple, so that it can be unpacked; only ``total`` can be
    differentiated.

    Attributes:
        total: the loss, whose formula `logo_loss` gives.
        gg: attraction between the global crops (eq. 3); 0 for G = 1.
        lg: attraction of the local crops to the global ones (eq. 4); 0 for L = 0.
        ll: the affinity of the local crops (eq. 5), without λ; 0 for L < 2 or ``affinity=None``.

    Examples:
        >>> terms = logo_loss(torch.ones(4, 2, 4), return_terms=True, reduction="none")
        >>> terms.gg.round(decimals=4)
        tensor([-1., -1., -1., -1.])
        >>> total, gg, lg, ll = terms
        >>> bool((total == gg).all()), lg.shape  # G = 2 has one pair, L = 0 has none
        (True, torch.Size([4]))
    """

    total: Tensor
    gg: Tensor
    lg: Tensor
    ll: Tensor


if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    class Options(TypedDict, total=False):
        """What `logo_loss` takes by name, but for ``return_terms``."""

        similarity: str
        negatives: Tensor | str | None
        temperature: float | Tensor
        group: ranks.Group
        affinity: Affinity
        repulsion_features: Tensor | Sequence[Tensor] | None
        repulsion_weight: float
        pair_reduction: str
        reduction: str
        backend: str

    Crops = Tensor | Sequence[Tensor]


@overload
def logo_loss(
    global_crops: Crops,
    local_crops: Crops | None = ...,
    targets: Crops | None = ...,
    *,
    return_terms: Literal[False] = ...,
    **options: Unpack[Options],
) -> Tensor: ...


@overload
def logo_loss(
    global_crops: Crops,
    local_crops: Crops | None = ...,
    targets: Crops | None = ...,
    *,
    return_terms: Literal[True],
    **options: Unpack[Options],
) -> LoGoTerms: ...


@overload
def logo_loss(
    global_crops: Crops,
    local_crops: Crops | None = ...,
    targets: Crops | None = ...,
    *,
    return_terms: bool,
    **options: Unpack[Options],
) -> Tensor | LoGoTerms: ...


def logo_loss(
    global_crops: Tensor | Sequence[Tensor],
    local_crops: Tensor | Sequence[Tensor] | None = None,
    targets: Tensor | Sequence[Tensor] | None = None,
    *,
    similarity: str = "cosine",
    negatives: Tensor | str | None = None,
    temperature: float | Tensor = 0.2,
    group: ranks.Group = None,
    affinity: Affinity = "cosine",
    repulsion_features: Tensor | Sequence[Tensor] | None = None,
    repulsion_weight: float = 1e-4,
    pair_reduction: str = "sum",
    reduction: str = "mean",
    return_terms: bool = False,
    backend: str = AUTO,
) -> Tensor | LoGoTerms:
    r"""LoGo: attraction to global crops and repulsion between local crops, for all crops at once.

    For one image with online embeddings :math:`x_i` of its G global crops, :math:`y_i` of its L
    local crops, constant targets :math:`t_j` of the global crops and repulsion features
    :math:`r_i` (LoGo, CVPR 2022, arXiv 2203.17205, eqs. 2-5 and 9):

    .. math::
        gg &= \operatorname{mean}_{i \ne j} -\cos(x_i, t_j) \\
        lg &= \operatorname{mean}_{i, j} -\cos(y_i, t_j) \\
        ll &= \operatorname{mean}_{i < j} \cos(r_i, r_j) \\
        total &= \tfrac{G(G-1)}{2} gg + L G \, lg + \lambda \tfrac{L(L-1)}{2} ll
        \qquad \text{(pair_reduction="sum")} \\
        total &= \frac{G(G-1) \, gg + L G \, lg}{G(G-1) + L G} + \lambda \, ll
        \qquad \text{(pair_reduction="mean")}

    With ``similarity="info_nce"``, :math:`-\cos(q, t)` gives way to eq. 1 with temperature τ and
    constant negatives :math:`n_k`, all of them as unit vectors (MoCo-LoGo):

    .. math::
        \ell(q, t) = -\log \frac{e^{\cos(q, t) / \tau}}
        {e^{\cos(q, t) / \tau} + \sum_k e^{\cos(q, n_k) / \tau}}

    Loss and gradient come from one pass over the crops, or, for InfoNCE, over the negatives, of
    which no logits are kept in memory. A zero row has cosine 0 and gradient 0. A gradient that its
    dtype cannot hold (it grows as 1/‖x‖ and as 1/τ) saturates at the largest finite value, and so
    does a loss (it grows as 1/τ); in float16, where the upstream gradient is above one (a
    GradScaler's), it may be inf instead, which the scaler skips. NaN or inf in a row gives NaN.

    Args:
        global_crops: [B, G, D], online outputs (SimSiam: h(z)), float32, bfloat16, float16 or
            float64, any strides (a transposed view of [G, B, D] costs no copy); or a sequence of G
            tensors [B, D], which is stacked.
        local_crops: [B, L, D] or a sequence of L tensors [B, D], dtype and device of
            ``global_crops``. None or L = 0: no local crops, lg = ll = 0.
        targets: [B, G, D], targets of the same global crops, any floating dtype; constants even if
            they require gradients. None: ``global_crops`` detached.
        similarity: "cosine" (eq. 2, SimSiam-LoGo) or "info_nce" (eq. 1, MoCo-LoGo).
        negatives: for "info_nce": [K, D], any floating dtype, constants (see `NegativeQueue`); or
            "batch": the targets of all other images, never an image's own.
        temperature: τ > 0, for "info_nce": any number; or a tensor [] on the device of the crops,
            which gets a gradient if it requires one. The host does not look at a tensor's value;
            one that is not positive gives NaN.
        group: **None means this process alone**, where torch's own functions mean the world by it.
            For ``negatives="batch"`` of several processes: a ProcessGroup, or a DeviceMesh of one
            dimension, on all of whose ranks the other images' targets are negatives too. Pass
            ``torch.distributed.group.WORLD``, which is None before ``init_process_group``. Every
            rank brings as many images. The loss is of this rank's images, so that the mean over
            ranks, which DDP and FSDP take of the gradients, is what one process finds of all
            images; that of ``reduction="sum"`` is the sum divided by the number of ranks.
        affinity: how ll measures that two local crops are alike. "cosine"; None: no repulsion; or a
            callable [B, L, D] -> [B], the affinity averaged over the pairs of each image.
        repulsion_features: [B, L, D], any floating dtype, what the affinity sees; gradients flow to
            it. None: ``local_crops``. SimSiam passes z here, since its crops are h(z).
        repulsion_weight: λ.
        pair_reduction: "sum" (eqs. 3-5, 9) or "mean" over attraction pairs (the authors' code).
        reduction: over images: "mean", "sum" or "none".
        return_terms: also return the terms.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Returns:
        The loss, a scalar or, for ``reduction="none"``, [B]; float32, or float64 if any input is.
        With ``return_terms``, a `LoGoTerms`. It can be differentiated once: a second derivative
        raises.

    Raises:
        TypeError: an argument of a wrong type or dtype.
        ValueError: a wrong shape, value, name or device, or crops without a single attraction pair
            (G = 1 and L = 0), or, for "info_nce", without negatives (K = 0, or "batch" with B = 1).
        RuntimeError: a named backend that cannot serve the call, with its reason.

    Examples:
        Two images with two global and three local crops each, all alike: every pair attracts fully.

        >>> x, y = torch.ones(2, 2, 4), torch.ones(2, 3, 4)
        >>> logo_loss(x, y, affinity=None, pair_reduction="mean").round(decimals=4)
        tensor(-1.)
        >>> terms = logo_loss(x, y, repulsion_weight=0.5, pair_reduction="mean", return_terms=True)
        >>> [round(term.item(), 4) for term in terms]  # total, gg, lg, ll
        [-0.5, -1.0, -1.0, 1.0]

        InfoNCE against a queue; the gradient goes to the crops alone.

        >>> q = torch.randn(2, 2, 8, requires_grad=True)
        >>> k, queue = torch.randn(2, 2, 8), torch.randn(16, 8)
        >>> logo_loss(q, targets=k, similarity="info_nce", negatives=queue).backward()
        >>> q.grad.shape
        torch.Size([2, 2, 8])
    """
    _check_names(similarity, affinity, pair_reduction, reduction, backend)
    temperature = checks.temperature(temperature)
    repulsion_weight = checks.number("repulsion_weight", repulsion_weight)
    x, y, t, r = _check_crops(global_crops, local_crops, targets, repulsion_features)
    n, over = _check_negatives(similarity, negatives, x, group)
    if isinstance(temperature, Tensor):
        checks.same_device("temperature", temperature, "global_crops", x)
    locals_ = 0 if y is None else y.shape[1]
    has_repulsion = affinity is not None and locals_ > 1
    fused_repulsion = has_repulsion and affinity == "cosine"
    options = pair_reduction, reduction, backend, return_terms

    ll = None
    if similarity == "cosine":
        features = r if fused_repulsion else None
        total, terms = cosine_loss(x, y, t, features, repulsion_weight, fused_repulsion, *options)
    else:
        positives = x.detach() if t is None else t
        if over is not None:
            n = ranks.own_first(positives.detach(), over)
        total, terms = contrast(x, y, positives, n, temperature, *options, over is not None)
        if fused_repulsion:
            features = cast(Tensor, y if r is None else r)
            repulsion, ll = repulsion_loss(features, repulsion_weight, *options)
            total = total + repulsion
    weighs = bool(repulsion_weight != 0)
    if has_repulsion and not fused_repulsion and (weighs or return_terms):
        pairs = locals_ * (locals_ - 1) / 2 if pair_reduction == "sum" else 1.0
        with nullcontext() if weighs else torch.no_grad():
            repulsion = _affinity(cast(Callable[[Tensor], Tensor], affinity), cast(Tensor, y), r)
            repulsion = _reduce(repulsion.to(total.dtype), reduction)
        if weighs:
            total = total + (repulsion_weight * pairs) * repulsion
        ll = repulsion.detach()
    if not return_terms:
        return total
    assert terms is not None
    if ll is None:
        ll = terms[2] if similarity == "cosine" else torch.zeros_like(terms[0])
    return LoGoTerms(total, terms[0], terms[1], ll)


class LoGoLoss(ranks.HoldsGroup):
    """`logo_loss` as a module: the settings here, the crops in ``forward``.

    An affinity that is a module becomes a submodule, so that its parameters are found. The formula,
    shapes, dtypes and errors are those of `logo_loss`, of which every argument here has the name.

    Args:
        similarity: "cosine" or "info_nce".
        temperature: τ > 0, for "info_nce": a number or a tensor [].
        group: for ``negatives="batch"`` of several processes; None: this process alone.
        affinity: "cosine", None or a callable [B, L, D] -> [B].
        repulsion_weight: λ.
        pair_reduction: "sum" or "mean" over attraction pairs.
        reduction: over images: "mean", "sum" or "none".
        return_terms: `LoGoTerms` instead of the loss alone.
        backend: "auto", "reference", "cpu", "triton" or "cuda".

    Raises:
        TypeError: an argument of a wrong type.
        ValueError: an unknown name, or a temperature that is not positive.

    Examples:
        >>> criterion = LoGoLoss(pair_reduction="mean", repulsion_weight=0.01)
        >>> crops = torch.randn(4, 2 + 3, 8, requires_grad=True)
        >>> loss = criterion(crops[:, :2], crops[:, 2:])
        >>> torch.equal(
        ...     loss,
        ...     logo_loss(
        ...         crops[:, :2], crops[:, 2:], pair_reduction="mean", repulsion_weight=0.01
        ...     ),
        ... )
        True
    """

    def __init__(
        self,
        *,
        similarity: str = "cosine",
        temperature: float | Tensor = 0.2,
        group: ranks.Group = None,
        affinity: Affinity = "cosine",
        repulsion_weight: float = 1e-4,
        pair_reduction: str = "sum",
        reduction: str = "mean",
        return_terms: bool = False,
        backend: str = AUTO,
    ) -> None:
        super().__init__()
        _check_names(similarity, affinity, pair_reduction, reduction, backend)
        checks.temperature(temperature)
        ranks.process_group(group)
        checks.number("repulsion_weight", repulsion_weight)
        self.similarity = similarity
        self.temperature = temperature
        self.group = group
        self.affinity = affinity
        self.repulsion_weight = repulsion_weight
        self.pair_reduction = pair_reduction
        self.reduction = reduction
        self.return_terms = return_terms
        self.backend = backend

    def forward(
        self,
        global_crops: Tensor | Sequence[Tensor],
        local_crops: Tensor | Sequence[Tensor] | None = None,
        targets: Tensor | Sequence[Tensor] | None = None,
        *,
        negatives: Tensor | str | None = None,
        repulsion_features: Tensor | Sequence[Tensor] | None = None,
    ) -> Tensor | LoGoTerms:
        """`logo_loss` of these crops, with the settings of the module.

        Args:
            global_crops: [B, G, D], or a sequence of G tensors [B, D].
            local_crops: [B, L, D], likewise; None: no local crops.
            targets: [B, G, D], constants; None: ``global_crops`` detached.
            negatives: for "info_nce": [K, D] or "batch".
            repulsion_features: [B, L, D], what the affinity sees; None: ``local_crops``.

        Returns:
            The loss, or `LoGoTerms` with ``return_terms``.

        Raises:
            TypeError: as `logo_loss`.
            ValueError: as `logo_loss`.
            RuntimeError: as `logo_loss`.

        Examples:
            >>> criterion = LoGoLoss(similarity="info_nce", temperature=0.1, reduction="none")
            >>> q, k = torch.randn(4, 2, 8), torch.randn(4, 2, 8)
            >>> criterion(q, targets=k, negatives="batch").shape
            torch.Size([4])
        """
        return logo_loss(
            global_crops,
            local_crops,
            targets,
            similarity=self.similarity,
            negatives=negatives,
            temperature=self.temperature,
            group=self.group,
            affinity=self.affinity,
            repulsion_features=repulsion_features,
            repulsion_weight=self.repulsion_weight,
            pair_reduction=self.pair_reduction,
            reduction=self.reduction,
            return_terms=self.return_terms,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        shown = ("similarity", "repulsion_weight", "pair_reduction", "reduction", "backend")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in shown)


def _affinity(affinity: Callable[[Tensor], Tensor], y: Tensor, r: Tensor | None) -> Tensor:
    """The callable's answer, checked: [B]."""
    seen = y if r is None else r
    answer = affinity(seen)
    if not isinstance(answer, Tensor):
        raise TypeError(f"affinity must return a tensor [B], got {type(answer).__name__}")
    if answer.shape != seen.shape[:1]:
        raise ValueError(
            f"affinity must return one value per image, [B] = [{seen.shape[0]}], "
            f"got shape {list(answer.shape)}"
        )
    return answer


def _reduce(per_image: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return per_image
    return per_image.mean() if reduction == "mean" else per_image.sum()


def _check_names(
    similarity: str, affinity: Affinity, pair_reduction: str, reduction: str, backend: str
) -> None:
    checks.one_of("similarity", similarity, SIMILARITIES)
    if isinstance(affinity, str):
        if affinity != "cosine":
            raise ValueError(f"affinity must be 'cosine', None or a callable, got {affinity!r}")
    elif affinity is not None and not callable(affinity):
        raise TypeError(
            f"affinity must be 'cosine', None or a callable, got {type(affinity).__name__}"
        )
    checks.one_of("pair_reduction", pair_reduction, PAIR_REDUCTIONS)
    checks.one_of("reduction", reduction, REDUCTIONS)
    checks.one_of("backend", backend, (AUTO, *BACKENDS))


def _check_crops(
    global_crops: Tensor | Sequence[Tensor],
    local_crops: Tensor | Sequence[Tensor] | None,
    targets: Tensor | Sequence[Tensor] | None,
    repulsion_features: Tensor | Sequence[Tensor] | None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The four inputs as blocks that agree; local crops and features None where L = 0."""
    x = checks.crops("global_crops", global_crops, "B, G, D")
    if x.numel() == 0:
        empty = "BGD"[list(x.shape).index(0)]
        raise ValueError(
            f"global_crops must not be empty, got {empty} = 0 in shape {list(x.shape)}"
        )
    y = None
    if local_crops is not None and not _is_empty_sequence(local_crops):
        y = checks.crops("local_crops", local_crops, "B, L, D")
        checks.same_dtype("local_crops", y, "global_crops", x)
        checks.alike("local_crops", y, "global_crops", x, {"B": 0, "D": 2})
        if y.shape[1] == 0:
            y = None
    if y is None and x.shape[1] == 1:
        raise ValueError(
            "global_crops has G = 1 and there are no local_crops: no pair of crops to attract; "
            "pass at least two global crops or one local crop"
        )
    t = None
    if targets is not None:
        t = checks.crops("targets", targets, "B, G, D")
        checks.alike("targets", t, "global_crops", x, {"B": 0, "G": 1, "D": 2})
    r = None
    if repulsion_features is not None and not _is_empty_sequence(repulsion_features):
        r = checks.crops("repulsion_features", repulsion_features, "B, L, D")
        if y is None and r.shape[1] > 0:
            raise ValueError(
                f"repulsion_features has shape {list(r.shape)}, but there are no local_crops that "
                f"they could be features of; pass both or neither"
            )
        if y is None:
            return x, y, t, None
        checks.alike("repulsion_features", r, "local_crops", y, {"B": 0, "L": 1, "D": 2})
    return x, y, t, r


def _check_negatives(
    similarity: str, negatives: Tensor | str | None, x: Tensor, group: ranks.Group
) -> tuple[Tensor | None, ranks.ProcessGroup | None]:
    """Negatives [K, D]; None for those of the batch, and where there are none. The ranks whose
    batches they are of, where that are several.
    """
    over = ranks.process_group(group)
    if group is not None and not isinstance(negatives, str):
        raise ValueError(
            "group is for negatives='batch' of similarity='info_nce' alone, negatives that other "
            "processes have; pass group=None (a NegativeQueue takes a group of its own)"
        )
    if similarity == "cosine":
        if negatives is not None:
            raise ValueError(
                "negatives is for similarity='info_nce' alone; similarity='cosine' has none: "
                "pass None"
            )
        return None, None
    if negatives is None:
        raise ValueError(
            "similarity='info_nce' needs negatives: pass a tensor [K, D] or 'batch', got None"
        )
    if not isinstance(negatives, str):
        return checks.negatives(negatives, x, "global_crops"), None
    checks.one_of("negatives", negatives, ("batch",))
    if x.shape[0] == 1 and over is None:
        raise ValueError(
            "negatives='batch' takes those of the other images, but the batch has B = 1: pass at "
            "least two images, or negatives [K, D]"
        )
    return None, over


def _is_empty_sequence(value: Tensor | Sequence[Tensor]) -> bool:
    return checks.is_sequence(value) and len(value) == 0
