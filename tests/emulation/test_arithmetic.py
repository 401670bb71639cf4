"""The emulated tensor core and conversions, against numpy and torch."""

import numpy as np
import pytest
import torch

RANDOM = np.random.default_rng(1)
DTYPES = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="f16")]


def halves(values: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Values rounded to the dtype: their bits, and themselves in fp64."""
    rounded = torch.from_numpy(values).to(dtype)
    return rounded.view(torch.int16).numpy().view(np.uint16), rounded.double().numpy()


# PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": where element i of a
# lane's fragment stands. groupID = laneid >> 2, threadID_in_group = laneid % 4.


def place_a(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    row = group if 0 <= i < 2 or 4 <= i < 6 else group + 8
    column = thread * 2 + (i & 1) if i < 4 else thread * 2 + (i & 1) + 8
    return row, column


def place_b(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    row = thread * 2 + (i & 1) if i < 2 else thread * 2 + (i & 1) + 8
    return row, group


def place_c(lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    return (group if i < 2 else group + 8), thread * 2 + (i & 1)


def gather(matrix: np.ndarray, place, count: int) -> np.ndarray:
    return np.array([[matrix[place(lane, i)] for i in range(count)] for lane in range(32)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_of_fragments(planted, dtype):
    for _ in range(8):
        a_bits, a = halves(RANDOM.standard_normal((16, 16)), dtype)
        b_bits, b = halves(RANDOM.standard_normal((16, 8)), dtype)
        c = RANDOM.standard_normal((16, 8)).astype(np.float32)
        a_registers = np.ascontiguousarray(gather(a_bits, place_a, 8)).view(np.uint32)
        b_registers = np.ascontiguousarray(gather(b_bits, place_b, 4)).view(np.uint32)
        d = gather(c, place_c, 4)
        addresses = [array.ctypes.data for array in (a_registers, b_registers, d)]
        assert planted.fragments_product(*addresses, dtype == torch.bfloat16) == ""
        np.testing.assert_allclose(d, gather(c + a @ b, place_c, 4), rtol=1e-5, atol=1e-5)
        assert planted.statistics().mma == 1


@pytest.mark.parametrize(("mistake", "right"), [("none", True), ("wrong_fragment", False)])
def test_product_of_matrices(planted, mistake, right):
    a_bits, a = halves(RANDOM.standard_normal((16, 16)), torch.bfloat16)
    b_bits, b = halves(RANDOM.standard_normal((8, 16)), torch.bfloat16)  # by columns
    d = np.zeros((16, 8), np.float32)
    mark = getattr(planted.Mistake, mistake)
    assert planted.matrix_product(*(m.ctypes.data for m in (a_bits, b_bits, d)), mark) == ""
    assert np.allclose(d, a @ b.T, rtol=1e-5, atol=1e-5) == right


@pytest.mark.parametrize("dtype", DTYPES)
def test_unpack(planted, dtype):
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = np.zeros(1 << 16, np.float32)
    bf16 = dtype == torch.bfloat16
    assert planted.unpack_pairs(bits.ctypes.data, values.ctypes.data, 1 << 15, bf16) == ""
    expected = torch.from_numpy(bits.view(np.int16)).view(dtype).float().numpy()
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_pack(planted, dtype):
    bf16 = dtype == torch.bfloat16
    # All halves, the midpoints behind them, and floats of any bits.
    exact = torch.arange(1 << 16).short().view(dtype).float().numpy()
    middles = (exact.view(np.uint32) + (0x8000 if bf16 else 0x1000)).view(np.float32)
    anything = RANDOM.integers(0, 1 << 32, 1 << 18, dtype=np.uint32).view(np.float32)
    near_one = RANDOM.standard_normal(1 << 18, np.float32)
    tiny = near_one * np.float32(1e-6)  # subnormal as fp16
    x = np.concatenate([exact, middles, anything, near_one, tiny])
    pairs = np.zeros(len(x) // 2, np.uint32)
    assert planted.pack_pairs(x.ctypes.data, pairs.ctypes.data, len(pairs), bf16) == ""
    packed = torch.from_numpy(pairs.view(np.int16)).view(dtype)
    expected = torch.from_numpy(x).to(dtype)
    nan = expected.isnan()
    assert torch.equal(packed.isnan(), nan)
    assert torch.equal(packed.view(torch.int16)[~nan], expected.view(torch.int16)[~nan])


def test_clamp_keeps_nan(planted):
    x = np.array([-np.inf, -4, -3, -2, -0.0, 0, 2, 3, 4, np.inf, np.nan], np.float32)
    clamped = np.zeros_like(x)
    assert planted.clamp(x.ctypes.data, clamped.ctypes.data, len(x), 3.0) == ""
    np.testing.assert_array_equal(clamped, np.clip(x, -3, 3))
