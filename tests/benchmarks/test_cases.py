"""Bytes and operations against counts by hand: the floor that every figure is held against."""

import pytest

import cases
import inputs
from cases import AffinityCase, CosineCase, InfoNCECase, SimilarityCase


def test_cosine_bytes_by_hand():
    # Rows per image: x 2, y 8 and t 2 read, 10 gradients written. 2048 numbers of 4 bytes each.
    case = CosineCase(256, 2, 8, 2048, "float32", "")
    assert case.moved_bytes() == 256 * 22 * 2048 * 4 == 46_137_344


def test_cosine_bytes_of_the_design():
    # "cosine B=1024 G=2 L=8 D=2048, bf16: 92 MB"
    assert CosineCase(1024, 2, 8, 2048, "bfloat16", "").moved_bytes() == 92_274_688


def test_features_are_read_and_get_a_gradient():
    without = CosineCase(3, 2, 5, 7, "float32", "").moved_bytes()
    with_features = CosineCase(3, 2, 5, 7, "float32", "", features=True).moved_bytes()
    assert with_features - without == 3 * 5 * 7 * 4 * 2


def test_cosine_flops_by_hand():
    # G = L = 2. Norms: 4 online, 2 targets. Cosines: 2 gg, 4 lg, 1 ll. Rows added to gradients:
    # 2 to globals, 4 to locals from targets, 2 from each other, 4 along themselves: 25 times 2D.
    assert CosineCase(1, 2, 2, 10, "float32", "").flops() == 25 * 2 * 10


def test_similarity_bytes_by_hand():
    # a 3, b 2 rows of 5: read twice, written once; S and dS of 3 x 2
    assert SimilarityCase(7, 3, 2, 5, "float32", "").moved_bytes() == 7 * (3 * 5 * 5 + 2 * 6) * 4


def test_similarity_with_itself_reads_its_rows_once_per_pass():
    assert SimilarityCase(1, 4, None, 8, "bfloat16", "").moved_bytes() == (3 * 4 * 8 + 2 * 16) * 2


def test_info_nce_by_hand():
    # 1024 crops with their gradients, 512 targets, 65536 negatives of 128 numbers
    case = InfoNCECase(256, 2, 2, 65536, 128, "float32", "")
    assert case.moved_bytes() == (2 * 1024 + 512 + 65536) * 128 * 4
    assert case.flops() == 4 * 1024 * 65536 * 128


def test_info_nce_in_batch_by_hand():
    # the targets of the other 7 images, 2 each; none is read again as a negative
    case = InfoNCECase(8, 2, 3, None, 16, "float32", "")
    assert case.moved_bytes() == 8 * (2 * 5 + 2) * 16 * 4
    assert case.flops() == 4 * 40 * 14 * 16


def test_affinity_by_hand():
    # 24 crops of 16 numbers; W₁ is [5, 32], W₂ [5, 5]; 48 ordered pairs
    case = AffinityCase(8, 3, 16, "float32", "", hidden=5)
    assert case.moved_bytes() == 2 * (24 * 16 + 5 * 32 + 25) * 4
    assert case.flops() == 3 * 2 * (24 * 32 * 5 + 48 * 25)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_listed_cases(device):
    every = [
        case
        for group in (cases.COSINE, cases.SIMILARITY, cases.INFO_NCE, cases.AFFINITY, cases.STEP)
        for case in group[device]
    ]
    assert len({case.id for case in every}) == len(every)
    assert all(case.why for case in every)
    assert sum(case.smoke for case in every) == 1
    assert {"float32", "bfloat16"} <= {case.dtype for case in cases.COSINE[device]}
    assert {True, False} == {case.view_major for case in cases.COSINE[device]}


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("view_major", [False, True])
def test_moved_bytes_are_those_of_the_tensors(view_major, features):
    case = CosineCase(4, 2, 3, 16, "bfloat16", "", view_major=view_major, features=features)
    made = inputs.cosine_inputs(case, "cpu")
    read = sum(tensor.nbytes for tensor in [*made.leaves, *made.constants])
    written = sum(leaf.nbytes for leaf in made.leaves)
    assert case.moved_bytes() == read + written
    leaves, constants = made.blocks()
    assert [block.shape[0] for block in [*leaves, *constants]] == [4] * (len(leaves) + 1)
