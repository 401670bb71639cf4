"""What NVIDIA's GPUs grant a block, by compute capability (CUDA C++ Programming Guide, technical
specifications): what the plans of both GPU backends have to fit."""

from typing import NamedTuple


class Architecture(NamedTuple):
    major: int
    minor: int
    shared_per_block: int  # bytes, with the opt-in
    shared_per_multiprocessor: int  # bytes

    @property
    def id(self) -> str:
        return f"sm_{self.major}{self.minor}"


KIB = 1 << 10
ARCHITECTURES = [
    Architecture(8, 0, 163 * KIB, 164 * KIB),
    Architecture(8, 6, 99 * KIB, 100 * KIB),
    Architecture(8, 7, 163 * KIB, 164 * KIB),
    Architecture(8, 9, 99 * KIB, 100 * KIB),
    Architecture(9, 0, 227 * KIB, 228 * KIB),
    Architecture(10, 0, 227 * KIB, 228 * KIB),
    Architecture(12, 0, 99 * KIB, 100 * KIB),
]
