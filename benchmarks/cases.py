"""The problems that are measured, why each is there, and what each must cost at the least.

B images, G global crops, L local crops, D numbers per crop; V, W rows of a similarity block.
`moved_bytes` counts every input read once and every result written once: no implementation moves
less, so a copy of the same number of bytes is the floor that the measured times are held against.
"""

from __future__ import annotations

from dataclasses import dataclass

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class CosineCase:
    """`logo_loss`, cosine: forward, and backward to the online crops (and features)."""

    images: int
    global_crops: int
    local_crops: int
    dim: int
    dtype: str
    why: str
    view_major: bool = False  # crops as one forward pass of a network gives them: [V, B, D]
    features: bool = False  # repulsion features of their own, as SimSiam passes them
    smoke: bool = False

    operation = "cosine"

    @property
    def size(self) -> str:
        return f"({self.images}, {self.global_crops}, {self.local_crops}, {self.dim})"

    @property
    def id(self) -> str:
        size = f"{self.images}x{self.global_crops}x{self.local_crops}x{self.dim}"
        return _id(self.operation, size, self.dtype, self.view_major, self.features and "features")

    def moved_bytes(self) -> int:
        """Read x [B, G, D], y [B, L, D], t [B, G, D] and any r [B, L, D]; write dx, dy, dr.

        The loss and its terms, a handful of scalars, are left out.
        """
        g, l = self.global_crops, self.local_crops  # noqa: E741
        online = g + l + (l if self.features else 0)
        rows = online + g + online  # read online and targets, write gradients
        return self.images * rows * self.dim * ELEMENT_BYTES[self.dtype]

    def flops(self) -> int:
        """Cosines pair by pair, and each gradient row as a combination of the rows it met.

        2D for each product of two rows and for each row added with a weight. An upper figure: the
        sums of eqs. 3-5 can be had for less, and no roof of arithmetic is near at any case here.
        """
        g, l = self.global_crops, self.local_crops  # noqa: E741
        online = g + l + (l if self.features else 0)
        norms = online + g
        pairs = g * (g - 1) + l * g + l * (l - 1) // 2
        to_global = g * (g - 1)
        to_local = l * g
        repelled = l * (l - 1)
        along_itself = online
        row_products = norms + pairs + to_global + to_local + repelled + along_itself
        return 2 * self.dim * self.images * row_products


@dataclass(frozen=True)
class SimilarityCase:
    """`block_cosine_similarity`: forward, and backward from a full upstream gradient."""

    images: int
    rows: int  # V
    others: int | None  # W; None: the rows against themselves
    dim: int
    dtype: str
    why: str
    view_major: bool = False

    operation = "similarity"
    smoke = False

    @property
    def size(self) -> str:
        return f"({self.images}, {self.rows}, {self.others or 'self'}, {self.dim})"

    @property
    def id(self) -> str:
        size = f"{self.images}x{self.rows}x{self.others or 'self'}x{self.dim}"
        return _id(self.operation, size, self.dtype, self.view_major, False)

    def moved_bytes(self) -> int:
        """Forward reads the rows and writes S; backward reads dS and the rows, writes their grads.

        The rows are read twice: dS is not known in forward.
        """
        rows = self.rows + (self.others or 0)
        block = self.rows * (self.others or self.rows)
        return self.images * (3 * rows * self.dim + 2 * block) * ELEMENT_BYTES[self.dtype]

    def flops(self) -> int:
        """2D for each cosine, and for each of its shares in a gradient row; norms as well."""
        rows = self.rows + (self.others or 0)
        block = self.rows * (self.others or self.rows)
        return 2 * self.dim * self.images * (3 * block + 2 * rows)


@dataclass(frozen=True)
class InfoNCECase:
    """`logo_loss`, InfoNCE: forward, and backward to the online crops."""

    images: int
    global_crops: int
    local_crops: int
    negatives: int | None  # K, of a queue; None: the targets of the other images
    dim: int
    dtype: str
    why: str

    operation = "info_nce"
    view_major = False
    smoke = False

    @property
    def size(self) -> str:
        return (
            f"({self.images}, {self.global_crops}, {self.local_crops}, "
            f"{self.negatives or 'batch'}, {self.dim})"
        )

    @property
    def id(self) -> str:
        negatives = self.negatives or "batch"
        size = f"{self.images}x{self.global_crops}x{self.local_crops}x{negatives}x{self.dim}"
        return _id(self.operation, size, self.dtype, False, False)

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


@dataclass(frozen=True)
class AffinityCase:
    """`LocalAffinity`: forward, and backward to the crops and to θd."""

    images: int
    local_crops: int
    dim: int
    dtype: str
    why: str
    hidden: int = 256  # of both layers

    operation = "affinity"
    view_major = False
    smoke = False

    @property
    def size(self) -> str:
        return f"({self.images}, {self.local_crops}, {self.dim})"

    @property
    def id(self) -> str:
        size = f"{self.images}x{self.local_crops}x{self.dim}"
        return _id(self.operation, size, self.dtype, False, False)

    def moved_bytes(self) -> int:
        """Read crops and θd, write their gradients; batch norms and biases are left out."""
        crops = self.images * self.local_crops * self.dim
        weights = self.hidden * (2 * self.dim + self.hidden)
        return 2 * (crops + weights) * ELEMENT_BYTES[self.dtype]

    def flops(self) -> int:
        """Forward products and twice as many backward: the first of each crop, both halves of W₁,
        the second of each pair.
        """
        crops = self.images * self.local_crops
        pairs = crops * (self.local_crops - 1)
        return 3 * 2 * self.hidden * (2 * crops * self.dim + pairs * self.hidden)


@dataclass(frozen=True)
class StepCase:
    """One optimiser step of SimSiam-LoGo on a small ResNet, crops already cut."""

    images: int
    global_crops: int
    local_crops: int
    global_size: int
    local_size: int
    dim: int
    why: str

    operation = "training_step"
    smoke = False
    dtype = "float32"
    view_major = True

    @property
    def size(self) -> str:
        return f"({self.images}, {self.global_crops}, {self.local_crops}, {self.dim})"

    @property
    def id(self) -> str:
        size = f"{self.images}x{self.global_crops}x{self.local_crops}x{self.dim}"
        return _id(self.operation, size, self.dtype, False, False)


def _id(operation: str, size: str, dtype: str, view_major: bool, extra: str | bool) -> str:
    parts = [operation, size, dtype]
    if view_major:
        parts.append("view_major")
    if extra:
        parts.append(str(extra))
    return "-".join(parts)


COSINE = {
    "cpu": (
        CosineCase(
            8, 2, 2, 128, "float32", "the smallest: call overhead decides", smoke=True
        ),
        CosineCase(8, 2, 8, 256, "float32", "small batch, many crops: overhead and little data"),
        CosineCase(256, 2, 2, 2048, "float32", "the paper's SimSiam-LoGo"),
        CosineCase(
            256, 2, 2, 2048, "float32", "the paper's, as its trainer calls it: h(z), z, view-major",
            view_major=True, features=True,
        ),
        CosineCase(256, 2, 8, 256, "float32", "fits the last-level cache"),
        CosineCase(256, 2, 8, 2048, "float32", "many crops, larger than the caches"),
        CosineCase(
            256, 2, 8, 2048, "float32", "the same, strided over images", view_major=True
        ),
        CosineCase(1024, 2, 8, 256, "float32", "many images, short rows"),
        CosineCase(8, 2, 2, 128, "bfloat16", "the smallest, under autocast"),
        CosineCase(256, 2, 8, 256, "bfloat16", "half the bytes, converted on the way"),
        CosineCase(256, 2, 8, 2048, "bfloat16", "the same, larger than the caches"),
    ),
    # The largest first: if time runs out, they are what was worth measuring.
    "cuda": (
        CosineCase(8192, 2, 8, 2048, "bfloat16", "12 times the L2: bandwidth alone decides"),
        CosineCase(1024, 2, 8, 2048, "bfloat16", "a usual step under autocast"),
        CosineCase(1024, 2, 8, 2048, "float32", "a usual step"),
        CosineCase(8, 2, 2, 128, "float32", "the smallest: host overhead decides", smoke=True),
        CosineCase(1024, 2, 8, 2048, "float16", "fp16: gradients carry scales per row"),
        CosineCase(
            1024, 2, 8, 2048, "bfloat16", "strided over images", view_major=True
        ),
        CosineCase(
            256, 2, 2, 2048, "bfloat16", "the paper's, as its trainer calls it",
            view_major=True, features=True,
        ),
        CosineCase(256, 2, 8, 2048, "float32", "fits the L2"),
        CosineCase(256, 2, 8, 2048, "bfloat16", "fits the L2 twice"),
        CosineCase(1024, 2, 8, 256, "bfloat16", "many images, short rows"),
        CosineCase(256, 2, 8, 256, "float32", "a few microseconds of data"),
        CosineCase(256, 2, 2, 2048, "float32", "the paper's SimSiam-LoGo"),
        CosineCase(8, 2, 8, 256, "bfloat16", "small batch, many crops"),
        CosineCase(8192, 2, 8, 2048, "float32", "1.5 GB moved"),
    ),
}  # fmt: skip

SIMILARITY = {
    "cpu": (
        SimilarityCase(8, 4, None, 128, "float32", "the smallest: overhead decides"),
        SimilarityCase(256, 10, None, 2048, "float32", "all crops of an image with each other"),
        SimilarityCase(256, 8, 2, 2048, "float32", "local crops with global crops (eq. 4)"),
        SimilarityCase(256, 10, None, 2048, "bfloat16", "all crops, half the bytes"),
        SimilarityCase(256, 8, 2, 256, "float32", "short rows, view-major", view_major=True),
    ),
    "cuda": (
        SimilarityCase(8192, 10, None, 2048, "bfloat16", "all crops: bandwidth alone decides"),
        SimilarityCase(8, 4, None, 128, "float32", "the smallest: overhead decides"),
        SimilarityCase(1024, 8, 2, 2048, "bfloat16", "local crops with global crops (eq. 4)"),
        SimilarityCase(1024, 10, None, 2048, "float32", "all crops in fp32"),
        SimilarityCase(1024, 64, None, 256, "bfloat16", "many crops: the products weigh most"),
    ),
}

INFO_NCE = {
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
    ),
}

AFFINITY = {
    "cpu": (
        AffinityCase(
            256, 8, 2048, "float32", "many crops, the paper's D: concatenation costs most"
        ),
        AffinityCase(256, 2, 128, "float32", "the authors' L and D: two pairs of an image"),
        AffinityCase(256, 2, 2048, "float32", "one product of a crop or of a pair: the same"),
        AffinityCase(256, 4, 128, "float32", "short rows: the second product decides"),
        AffinityCase(256, 4, 2048, "float32", "in between"),
        AffinityCase(256, 8, 128, "float32", "many crops, short rows"),
        AffinityCase(1024, 2, 128, "float32", "the same for a larger batch"),
        AffinityCase(1024, 2, 2048, "float32", "the same for a larger batch"),
        AffinityCase(1024, 4, 128, "float32", "the same for a larger batch"),
        AffinityCase(1024, 4, 2048, "float32", "the same for a larger batch"),
        AffinityCase(1024, 8, 128, "float32", "pairs larger than the caches"),
        AffinityCase(1024, 8, 2048, "float32", "0.9 GB of concatenated pairs"),
    ),
    "cuda": (
        AffinityCase(
            1024, 8, 2048, "float32", "many crops, the paper's D: concatenation costs most"
        ),
        AffinityCase(1024, 2, 2048, "float32", "one product of a crop or of a pair: the same"),
        AffinityCase(1024, 8, 128, "float32", "the second product decides"),
        AffinityCase(256, 2, 128, "float32", "the authors' L and D: host overhead decides"),
    ),
}

# Widths of 16 leave nothing but the host's work: argument checks, dispatch, autograd, allocation.
OVERHEAD = {
    device: (
        CosineCase(8, 2, 2, 16, "float32", "host overhead alone"),
        InfoNCECase(8, 2, 2, 64, 16, "float32", "host overhead alone"),
        AffinityCase(8, 2, 16, "float32", "host overhead alone", hidden=16),
    )
    for device in ("cpu", "cuda")
}

STEP = {
    "cpu": (StepCase(64, 2, 4, 32, 16, 256, "the trainer as it runs by default"),),
    "cuda": (StepCase(256, 2, 8, 32, 16, 2048, "the trainer's small ResNet, D as published"),),
}
