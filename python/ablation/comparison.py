"""Results by arm and seed, and their differences with a verdict by a stated rule."""

import math
import statistics
from typing import Any, NamedTuple

BASE, MULTI_CROP = "global crops only", "multi-crop"
IN_BATCH = "in-batch, "

RULE = """\
A difference is taken seed by seed (the same images, first weights and first crops). It is *within
noise* when |mean| < 2·sd/√n, with sd its sample standard deviation over n seeds; otherwise the arm
is *better* or *worse*."""

Cell = tuple[str, str, int]  # framework, arm, L
Expected = list[tuple[str, str, int, int]]  # and the seed


class Difference(NamedTuple):
    """Of two arms, over the seeds that both have."""

    n: int
    mean: float
    sd: float  # nan for n < 2

    @property
    def verdict(self) -> str:
        if self.n == 0:
            return "no runs yet"
        if self.n == 1:
            return "one seed: no verdict"
        if self.mean == 0 or abs(self.mean) < 2 * self.sd / math.sqrt(self.n):
            return "within noise"
        return "better" if self.mean > 0 else "worse"

    def __str__(self) -> str:
        if self.n == 0:
            return "–"
        spread = "" if self.n == 1 else f" ± {self.sd:.3f}"
        return f"{self.mean:+.3f}{spread} (n = {self.n})"


class Runs:
    """Results by (framework, arm, L) and seed."""

    def __init__(self, results: list[dict[str, Any]]) -> None:
        self.cells: dict[Cell, dict[int, dict[str, Any]]] = {}
        for result in results:
            cell = (result["framework"], result["arm"], result["local_crops"])
            self.cells.setdefault(cell, {})[result["seed"]] = result

    def values(self, cell: Cell, name: str) -> list[float]:
        """By seed; a run may lack what not every arm or version of the sweep measures."""
        results = [result for _, result in sorted(self.cells.get(cell, {}).items())]
        return [result[name] for result in results if result.get(name) is not None]

    def summary(self, cell: Cell, name: str, digits: int = 3) -> str:
        """Mean ± sample standard deviation."""
        values = self.values(cell, name)
        if not values:
            return "–"
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}"

    def difference(self, cell: Cell, reference: Cell, name: str) -> Difference:
        a, b = self.cells.get(cell, {}), self.cells.get(reference, {})
        gaps = [a[seed][name] - b[seed][name] for seed in sorted(a.keys() & b.keys())]
        if not gaps:
            return Difference(0, math.nan, math.nan)
        sd = statistics.stdev(gaps) if len(gaps) > 1 else math.nan
        return Difference(len(gaps), statistics.mean(gaps), sd)


class Plan(NamedTuple):
    """The cells of the sweep, in its order."""

    cells: list[Cell]
    seeds: int

    @classmethod
    def of(cls, expected: Expected) -> "Plan":
        return cls(list(dict.fromkeys(e[:3] for e in expected)), len({e[3] for e in expected}))

    @property
    def frameworks(self) -> list[str]:
        return list(dict.fromkeys(cell[0] for cell in self.cells))

    @property
    def crops(self) -> list[int]:
        return list(dict.fromkeys(cell[2] for cell in self.cells))

    def repelling(self) -> list[Cell]:
        """The arms with repulsion at the first L, framework by framework."""
        cells = [c for c in self.cells if c[2] == self.crops[0]]
        cells = [c for c in cells if not c[1].endswith((BASE, MULTI_CROP))]
        return sorted(cells, key=lambda c: (self.frameworks.index(c[0]), c[1].startswith(IN_BATCH)))

    def varied(self) -> list[Cell]:
        """The arms that run with every L, at the first."""
        return [c for c in self.cells if all((*c[:2], more) in self.cells for more in self.crops)]


def reference(cell: Cell) -> Cell:
    """What an arm with repulsion is compared with: λ = 0 and all else alike."""
    framework, arm, crops = cell
    return framework, (IN_BATCH if arm.startswith(IN_BATCH) else "") + MULTI_CROP, crops
