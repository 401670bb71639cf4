"""The cosine LoGo loss and its gradient in one launch: one program per image.

A program reads its image's rows, forms their Gram matrix on the tensor cores, takes loss and W from
it, and writes the gradient W·X from the same on-chip tile. Where an image is too large for one
tile, a second loop finds the rows in L1 or L2. A program has one image, however small: many
programs of one or two warps fill a multiprocessor (tiles.py), and images that share no tile cannot
pass each other NaN.
"""

# Upper case marks compile-time constants in kernels.
# ruff: noqa: N803, N806
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from .image import combination, cosines_of, gram_matrix, rows_of_image, store_gradients
from .launch import (
    alignment,
    gradient_rows,
    launching,
    reduction_workspace,
    strides,
    unit_steps,
)
from .numbers import TL_DTYPE, biased_exponent, from_exponent
from .tickets import arrives_last
from .tiles import operand_dtype, tile_for

if TYPE_CHECKING:
    from ...cosine import CosineCall, CosineResult

# Weights of pairs up to here cannot take W beyond bf16's or fp32's range, since norms are at least
# 2^-30 (numbers.py). Larger weights go the way of fp16, with rows of W normalised and saturation; a
# weight that lies on the device goes the way of extreme norms, which does both as well.
ORDINARY_WEIGHT = 2.0**40
ORDINARY_WEIGHT_ = tl.constexpr(ORDINARY_WEIGHT)

# So many images are a group, whose terms the last of their programs sums; the last program of all
# sums the groups' sums. These are two short steps at the end of a launch, whatever B: 8192 images
# are 64 groups of 128, where one program would walk over 8192 values by itself.
GROUP = 128


@triton.jit
def pair_kinds(G: tl.constexpr, L: tl.constexpr, T0: tl.constexpr, R0: tl.constexpr,
               REPULSION: tl.constexpr, V_PAD: tl.constexpr):  # fmt: skip
    """Which (row i, row j) are pairs of each term, [V_PAD, V_PAD]; eqs 3, 4, 5."""
    i = tl.arange(0, V_PAD)[:, None]
    j = tl.arange(0, V_PAD)[None, :]
    target = (j >= T0) & (j < T0 + G)
    gg = target & (i < G) & (j - T0 != i)
    lg = target & (i >= G) & (i < G + L)
    ll = (i >= R0) & (i < R0 + L) & (j >= R0) & (j < R0 + L) & (i != j) & REPULSION
    return gg, lg, ll


@triton.jit
def sum_three(values, count, apart, CHUNK: tl.constexpr):
    """Sums of the first `count` entries of three rows, `apart` from each other, in fixed order."""
    gg = tl.zeros([CHUNK], tl.float32)
    lg = tl.zeros([CHUNK], tl.float32)
    ll = tl.zeros([CHUNK], tl.float32)
    for start in range(0, count, CHUNK):
        index = start + tl.arange(0, CHUNK)
        inside = index < count
        # From L2, where other multiprocessors wrote them.
        gg += tl.load(values + index, inside, other=0.0, cache_modifier=".cg")
        lg += tl.load(values + apart + index, inside, other=0.0, cache_modifier=".cg")
        ll += tl.load(values + 2 * apart + index, inside, other=0.0, cache_modifier=".cg")
    return tl.sum(gg, 0), tl.sum(lg, 0), tl.sum(ll, 0)


# Integers are not specialised by value: what matters of them for the code, the alignment of rows,
# is ALIGN_IN and ALIGN_OUT, so that a batch of another size, or of one image, compiles nothing.
@triton.jit(
    do_not_specialize=[
        *(f"{v}_{of}" for v in "xytr" for of in ("image", "row", "step")),
        *(f"g{v}_{of}" for v in "xyr" for of in ("image", "row")),
        "row_scale_rows", "images", "gg_weight", "lg_weight", "ll_weight", "image_weight",
    ]
)  # fmt: skip
def cosine_kernel(
    x_ptr, x_image, x_row, x_step,  # [B, G, D] and its strides; y itself where G = 0
    y_ptr, y_image, y_row, y_step,  # [B, L, D] of the dtype of x; x itself where L = 0
    t_ptr, t_image, t_row, t_step,  # [B, G, D]; x itself where not HAS_T
    r_ptr, r_image, r_row, r_step,  # [B, L, D]; y itself where not HAS_R
    gx_ptr, gx_image, gx_row,  # gradients, of unit step; read where GRAD_X, GRAD_Y, GRAD_R
    gy_ptr, gy_image, gy_row,
    gr_ptr, gr_image, gr_row,
    row_scale_ptr, row_scale_rows,  # [B, row_scale_rows] fp32, written where ROW_SCALE
    total_ptr, terms_ptr,  # [] and [3], or [B] and [3, B] where PER_IMAGE; terms where TERMS
    # Used where not PER_IMAGE, for B images in N groups of GROUP:
    partials_ptr,  # fp32, [3, B] sums of images, then [3, N] of groups
    counters_ptr,  # int32, zeros, [1 + N] programs that have arrived: of the groups, of each group
    images,
    gg_weight, lg_weight, ll_weight,  # of one pair in the result: divided by B for the mean
    image_weight,  # 1/B for the mean, else 1
    repulsion_weight_ptr,  # fp32, [] by which ll_weight is multiplied, where ON_DEVICE
    G: tl.constexpr, L: tl.constexpr, D: tl.constexpr,
    HAS_T: tl.constexpr, HAS_R: tl.constexpr, REPULSION: tl.constexpr, PER_IMAGE: tl.constexpr,
    TERMS: tl.constexpr,
    GRAD_X: tl.constexpr, GRAD_Y: tl.constexpr, GRAD_R: tl.constexpr, ROW_SCALE: tl.constexpr,
    UNIT: tl.constexpr,  # every step is 1
    ALIGN_IN: tl.constexpr, ALIGN_OUT: tl.constexpr,  # of rows that are read and written, bytes
    CAREFUL: tl.constexpr,  # rows of W need normalising: fp16, or huge weights
    ON_DEVICE: tl.constexpr,
    OP: tl.constexpr,
    V_PAD: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr, RESCUE_D: tl.constexpr,
    STAGES: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    row = tl.arange(0, V_PAD)
    if ON_DEVICE:
        ll_weight *= tl.load(repulsion_weight_ptr)

    # Row order: x | y | t | r. Targets that are the global crops themselves start at row 0 and
    # features that are the local crops at row G: then nothing is read twice.
    T0: tl.constexpr = G + L if HAS_T else 0
    R0: tl.constexpr = G + L + (G if HAS_T else 0) if HAS_R else G
    ROWS: tl.constexpr = G + L + (G if HAS_T else 0) + (L if HAS_R else 0)
    is_x = row < G
    is_y = (row >= G) & (row < G + L)
    is_t = (row >= T0) & (row < T0 + G) & HAS_T
    is_r = (row >= R0) & (row < R0 + L) & HAS_R
    T_APART: tl.constexpr = HAS_T and t_ptr.dtype.element_ty != x_ptr.dtype.element_ty
    R_APART: tl.constexpr = HAS_R and r_ptr.dtype.element_ty != x_ptr.dtype.element_ty

    x_rows = rows_of_image(x_ptr, image, row, 0, x_image, x_row)
    y_rows = rows_of_image(y_ptr, image, row, G, y_image, y_row)
    t_rows = rows_of_image(t_ptr, image, row, T0, t_image, t_row)
    r_rows = rows_of_image(r_ptr, image, row, R0, r_image, r_row)
    x_rows = tl.where(is_y, y_rows, x_rows)
    in_x = is_x | is_y
    if HAS_T and not T_APART:
        x_rows = tl.where(is_t, t_rows, x_rows)
        in_x = in_x | is_t
    if HAS_R and not R_APART:
        x_rows = tl.where(is_r, r_rows, x_rows)
        in_x = in_x | is_r
    # Triton's alignment analysis ends at a choice between pointers; without it loads are scalar.
    x_rows = tl.multiple_of(x_rows, ALIGN_IN)
    t_rows = tl.multiple_of(t_rows, ALIGN_IN)
    r_rows = tl.multiple_of(r_rows, ALIGN_IN)
    steps = tl.where(is_t, t_step, tl.where(is_r, r_step, tl.where(is_y, y_step, x_step)))
    steps = steps.to(tl.int64)

    tile, gram, factor, extreme = gram_matrix(
        x_rows, t_rows, r_rows, in_x, is_t, is_r, steps,
        ROWS, D, V_PAD, BLOCK_D, SPLIT, RESCUE_D, STAGES, OP, T_APART, R_APART, UNIT,
        GRAD_X or GRAD_Y or GRAD_R,
    )  # fmt: skip

    if ON_DEVICE and not CAREFUL:
        extreme = extreme | (tl.abs(ll_weight) > ORDINARY_WEIGHT_)

    # Cosines, terms and W
    cosines, inverse, inverse_of_column = cosines_of(gram, V_PAD)
    is_gg, is_lg, is_ll = pair_kinds(G, L, T0, R0, REPULSION, V_PAD)
    gg = -tl.sum(tl.sum(tl.where(is_gg, cosines, 0.0), 1), 0)
    lg = -tl.sum(tl.sum(tl.where(is_lg, cosines, 0.0), 1), 0)
    ll = 0.5 * tl.sum(tl.sum(tl.where(is_ll, cosines, 0.0), 1), 0)

    GG_PAIRS: tl.constexpr = G * (G - 1) if G > 1 else 1
    LG_PAIRS: tl.constexpr = L * G if L * G > 0 else 1
    LL_PAIRS: tl.constexpr = L * (L - 1) // 2 if L > 1 else 1
    gg_scale = image_weight / GG_PAIRS
    lg_scale = image_weight / LG_PAIRS
    ll_scale = image_weight / LL_PAIRS
    if PER_IMAGE:
        tl.store(total_ptr + image, gg_weight * gg + lg_weight * lg + ll_weight * ll)
        if TERMS:
            tl.store(terms_ptr + image, gg_scale * gg)
            tl.store(terms_ptr + images + image, lg_scale * lg)
            tl.store(terms_ptr + 2 * images + image, ll_scale * ll)
    else:
        tl.store(partials_ptr + image, gg)
        tl.store(partials_ptr + images + image, lg)
        tl.store(partials_ptr + 2 * images + image, ll)

    if GRAD_X or GRAD_Y or GRAD_R:
        gx_rows = rows_of_image(gx_ptr, image, row, 0, gx_image, gx_row)
        gy_rows = rows_of_image(gy_ptr, image, row, G, gy_image, gy_row)
        gr_rows = rows_of_image(gr_ptr, image, row, R0, gr_image, gr_row)
        wanted = (is_x & GRAD_X) | (is_y & GRAD_Y)
        gx_rows = tl.where(is_y, gy_rows, gx_rows)
        if GRAD_R and not R_APART:
            wanted = wanted | is_r
            gx_rows = tl.where(is_r, gr_rows, gx_rows)
        gx_rows = tl.multiple_of(gx_rows, ALIGN_OUT)
        gr_rows = tl.multiple_of(gr_rows, ALIGN_OUT)

        pairs = tl.where(is_gg, -gg_weight, 0.0) + tl.where(is_lg, -lg_weight, 0.0)
        pairs += tl.where(is_ll, ll_weight, 0.0)
        weights = combination(pairs, cosines, inverse_of_column, V_PAD)

        store_scale = tl.full([V_PAD], 1.0, tl.float32)
        if ROW_SCALE:
            # fp16 gradients: |gradient_i| ≤ Σ_j |w_ij| / ‖x_i‖ without another pass over it. The
            # power of two above that, over 2^15, leaves stored magnitudes below 2^15.
            bound = tl.sum(tl.abs(pairs), 1) * inverse * factor
            exponent = tl.minimum(tl.maximum(biased_exponent(bound) + 1 - 15, 1), 253)
            store_scale = from_exponent(254 - exponent)
            scale = from_exponent(exponent)
            if x_ptr.dtype.element_ty != tl.float16:
                store_scale = tl.where(is_r, store_scale, 1.0)
                scale = tl.where(is_r, scale, 1.0)
            if R_APART and r_ptr.dtype.element_ty != tl.float16:
                store_scale = tl.where(is_r, 1.0, store_scale)
                scale = tl.where(is_r, 1.0, scale)
            slot = tl.where(is_r, row - R0 + (G + L), row)
            tl.store(row_scale_ptr + image * row_scale_rows + slot, scale, in_x & ~is_t | is_r)

        store_gradients(
            tile, weights, inverse, factor, extreme,
            x_rows, t_rows, r_rows, in_x, is_t, is_r, steps,
            gx_rows, wanted, gr_rows, is_r, store_scale,
            D, BLOCK_D, SPLIT, RESCUE_D, STAGES, OP, T_APART, R_APART,
            GRAD_R and R_APART, UNIT, CAREFUL,
        )  # fmt: skip

    if not PER_IMAGE:
        # Which program sums depends on who comes last; what is summed in which order does not.
        groups = tl.cdiv(images, GROUP)
        group = tl.program_id(0) // GROUP
        first = group * GROUP
        members = tl.minimum(images - first, GROUP)
        if arrives_last(counters_ptr + 1 + group, members):
            gg, lg, ll = sum_three(partials_ptr + first, members, images, GROUP)
            sums_ptr = partials_ptr + 3 * images
            tl.store(sums_ptr + group, gg)
            tl.store(sums_ptr + groups + group, lg)
            tl.store(sums_ptr + 2 * groups + group, ll)
            if arrives_last(counters_ptr, groups):
                gg, lg, ll = sum_three(sums_ptr, groups, groups, GROUP)
                tl.store(total_ptr, gg_weight * gg + lg_weight * lg + ll_weight * ll)
                if TERMS:
                    tl.store(terms_ptr, gg_scale * gg)
                    tl.store(terms_ptr + 1, lg_scale * lg)
                    tl.store(terms_ptr + 2, ll_scale * ll)


def cosine(call: CosineCall, result: CosineResult) -> None:
    """Fills loss, terms and gradients by one launch of `cosine_kernel`.

    Without global crops nothing attracts: no term of targets is left, and none is read.
    """
    first = call.local_crops if call.global_crops is None else call.global_crops
    assert first is not None
    images, _, dim = first.shape
    g = 0 if call.global_crops is None else call.global_crops.shape[1]
    l = 0 if call.local_crops is None else call.local_crops.shape[1]  # noqa: E741  (as in the paper)
    targets = call.targets if g > 0 else None
    features = call.features
    to_global, to_local, to_features = result.grad_global, result.grad_local, result.grad_features
    weights, tensor = (call.gg_weight, call.lg_weight, call.ll_weight), call.repulsion_weight_tensor
    repulsion = call.repulsion and l > 1
    with launching(first):
        if features is not None and not repulsion:
            # No term looks at them: they are not read, and their gradient is zero.
            if to_features is not None:
                to_features.zero_()
            if result.row_scale is not None:
                result.row_scale[:, g + l :].fill_(1)
            features = to_features = None
        x = first  # each stands in for those that are absent
        y = x if call.local_crops is None else call.local_crops
        t = x if targets is None else targets
        r = y if features is None else features
        op = operand_dtype(x.dtype, t.dtype, r.dtype)
        careful = (
            torch.float16 in (op, x.dtype, r.dtype) or max(map(abs, weights)) > ORDINARY_WEIGHT
        )
        rows = g + l + (0 if targets is None else g) + (0 if features is None else l)
        loaded = x.element_size()
        loaded += t.element_size() if t.dtype != x.dtype else 0
        loaded += r.element_size() if r.dtype != x.dtype else 0
        gradient = not (to_global is None and to_local is None and to_features is None)
        tile = tile_for(rows, dim, op, loaded, gradient)
        image_weight = 1 / images if call.reduction == "mean" else 1.0
        per_image = call.reduction == "none"
        if per_image:
            partials, counters = result.total, result.total  # not used
        else:
            partials, counters = reduction_workspace(x, images, triton.cdiv(images, GROUP))
        row_scale = result.row_scale
        cosine_kernel[(images,)](
            x, *strides(x), y, *strides(y), t, *strides(t), r, *strides(r),
            *gradient_rows(to_global, x), *gradient_rows(to_local, x),
            *gradient_rows(to_features, r),
            result.total if row_scale is None else row_scale,
            0 if row_scale is None else row_scale.shape[1],
            result.total, result.total if result.terms is None else result.terms,
            partials, counters, images,
            *(float(weight * image_weight) for weight in weights), image_weight,
            result.total if tensor is None else tensor,
            G=g, L=l, D=dim,
            HAS_T=targets is not None, HAS_R=features is not None, REPULSION=repulsion,
            PER_IMAGE=per_image, TERMS=result.terms is not None,
            GRAD_X=to_global is not None, GRAD_Y=to_local is not None,
            GRAD_R=to_features is not None,
            ROW_SCALE=row_scale is not None, UNIT=unit_steps(x, y, t, r),
            ALIGN_IN=alignment(x, y, t, r),
            ALIGN_OUT=alignment(to_global, to_local, to_features),
            CAREFUL=careful, ON_DEVICE=tensor is not None,
            OP=TL_DTYPE[op], V_PAD=tile.v_pad, BLOCK_D=tile.block_d, SPLIT=tile.split,
            RESCUE_D=tile.rescue_d, STAGES=tile.num_stages,
            GROUP=GROUP, num_warps=tile.num_warps,
        )  # fmt: skip
