"""What a backend offers for the learned affinity: the pair stage of its MLP around the products.

The first layer's product splits, W₁[zᵢ; zⱼ] = aᵢ + cⱼ with a = U·z, c = V·z + b₁, so that the pairs
first exist with H numbers each, never with 2D. A pair p = (b, i, j), i ≠ j, of ordered crops is

    h_p = a[b, i] + c[(b + roll) mod B, j],     p = (b·L + i)·(L − 1) + j − (j > i),

roll = 0 for crops of one image, else for crops of two. P = B·L·(L − 1). Batch norm, whichever way
its statistics were found, is norm [3, H] = (mean, scale, bias), scale = weight / √(var + ε):

    n(v) = (v − mean)·scale + bias,     hidden:  x_p = relu(n(h_p))      [P, H]
                                        product: y = x·W₂ᵀ + b₂          [P, H'], torch's
                                        output:  f_p = w₃·relu(n(y_p)) + b₃
                                                 value_b = mean over the pairs of b of link(f_p)

Between the sums and the backward of each half, the statistics' part of the gradient is set up by
`pair_mlp.py` as correction [2, H] = (Σ m / N, Σ m·(v − mean) / (N·(var + ε))), zeros where the
statistics are constants; m is the gradient that arrives at n(v).

A layer is such a half whole, its statistics included; its norm [4, H] ends with 1/√(var + ε). Its
gradient comes with facts, [5, H], after the second product [6, H']: the correction's two rows, then
the gradients to the norm's weight and bias, that to a bias added to v (zero, where the statistics
are the batch's), and that to w₃. Between ranks there are the single kernels: the sums of all ranks
come in between.

Sums are in fp32 or better and the same on every run. Tensors are contiguous; a and c share a dtype
T (fp32, bf16, fp16, where a backend has it fp64), as do x and y; numbers without a dtype below are
fp32, fp64 for fp64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

# link(f) of `PairStage.output`, by number: f, softplus(f), softplus(−f).
LINKS = {"identity": 0, "softplus": 1, "softplus_negated": 2}


class PairStage(ABC):
    """Unit vectors, the two layers whole, and their eight kernels; a and c are [B, L, H] T."""

    @abstractmethod
    def unit(self, z: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(ẑ [B, L, D] in `dtype`, factors) of z of any strides; see unit.py."""

    @abstractmethod
    def unit_backward(
        self, grad: Tensor, unit: Tensor, factors: Tensor, dtype: torch.dtype, view_major: bool
    ) -> Tensor:
        """Gradient to z, [B, L, D] in `dtype`, from grad and unit, which share theirs."""

    @abstractmethod
    def hidden_layer(
        self,
        a: Tensor,
        c: Tensor,
        weight: Tensor,  # [H] of batch norm
        bias: Tensor,
        mean: Tensor | None,  # [H] the running statistics, and
        var: Tensor | None,
        batches: Tensor | None,  # [] int64, how many batches they are of
        batch: bool,  # by the statistics of these pairs, which those given follow; else by those
        momentum: float,  # negative: that of every batch alike
        eps: float,
        roll: int,
    ) -> tuple[Tensor, Tensor]:
        """(X [P, H] T, norm [4, H])."""

    @abstractmethod
    def hidden_gradient(
        self, grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, batch: bool, roll: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From grad [P, H] T: gradients to a and c, and facts [5, H]."""

    @abstractmethod
    def output_layer(
        self,
        y: Tensor,
        weight: Tensor,
        bias: Tensor,
        mean: Tensor | None,
        var: Tensor | None,
        batches: Tensor | None,
        batch: bool,
        momentum: float,
        eps: float,
        last: Tensor,  # w₃ [H']
        last_bias: Tensor,  # b₃ [1]
        pairs: int,
        link: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(value [P / pairs], slope [P], norm [4, H'])."""

    @abstractmethod
    def output_gradient(
        self,
        y: Tensor,
        norm: Tensor,
        last: Tensor,
        slope: Tensor,
        grad: Tensor,  # [P / pairs] of any stride
        batch: bool,
        parameters: bool,  # whether anybody wants their gradients; else facts may be zeros
        pairs: int,
    ) -> tuple[Tensor, Tensor]:
        """Gradient to y [P, H'] T, and facts [6, H']."""

    @abstractmethod
    def hidden_moments(self, a: Tensor, c: Tensor, roll: int) -> Tensor:
        """[2, H]: mean and biased variance of h over the pairs.

        They follow from a and c alone, without a pass over the pairs.
        """

    @abstractmethod
    def hidden(self, a: Tensor, c: Tensor, norm: Tensor, roll: int) -> Tensor:
        """X [P, H] T."""

    @abstractmethod
    def hidden_sums(
        self, grad: Tensor, a: Tensor, c: Tensor, norm: Tensor, roll: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """From grad [P, H] T: (Σ_j m [B, L, H], Σ_i m [B, L, H], sums [2, H]).

        m_p = grad_p where n(h_p) > 0, else 0. The first belongs to a[b, i], the second to
        c[b, j] (so image b there is the roll's, as in h_p). sums = (Σ_p m, Σ_p m·(h − mean)).
        """

    @abstractmethod
    def hidden_backward(
        self,
        to_a: Tensor,  # [B, L, H], of hidden_sums
        to_c: Tensor,  # [B, L, H]
        a: Tensor,
        c: Tensor,
        norm: Tensor,
        correction: Tensor,  # [2, H]
        roll: int,
    ) -> tuple[Tensor, Tensor]:
        """Gradients to a and c, T: sums over their pairs of
        scale·(m_p − correction₀ − correction₁·(h_p − mean)).
        """

    @abstractmethod
    def output_moments(self, y: Tensor) -> Tensor:
        """[2, H']: mean and biased variance of each column of y [P, H'] T."""

    @abstractmethod
    def output(
        self, y: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, pairs: int, link: int
    ) -> tuple[Tensor, Tensor]:
        """(value [P / pairs], slope [P] = link′(f_p) / pairs); weight w₃ [H'], bias b₃ [1]."""

    @abstractmethod
    def output_sums(
        self, y: Tensor, norm: Tensor, slope: Tensor, grad: Tensor, pairs: int
    ) -> Tensor:
        """[2, H']: (Σ t, Σ t·(y − mean)) over the pairs where n(y) > 0, t_p = grad_b · slope_p.

        grad [P / pairs]. The weight is left out: it is a factor of the sums.
        """

    @abstractmethod
    def output_backward(
        self,
        y: Tensor,
        norm: Tensor,
        weight: Tensor,
        slope: Tensor,
        grad: Tensor,
        correction: Tensor,  # [2, H']
        pairs: int,
    ) -> Tensor:
        """Gradient to y [P, H'] T: scale·(m − correction₀ − correction₁·(y − mean)),
        m = t_p · weight where n(y) > 0, else 0.
        """
