"""The `triton` backend's pair stage: kernels of one or two launches each."""

from __future__ import annotations

from ..pairs import PairStage
from . import pair_hidden, pair_output
from . import unit as units


class TritonPairStage(PairStage):
    unit = staticmethod(units.unit)
    unit_backward = staticmethod(units.unit_backward)
    hidden_layer = staticmethod(pair_hidden.hidden_layer)
    hidden_gradient = staticmethod(pair_hidden.hidden_gradient)
    output_layer = staticmethod(pair_output.output_layer)
    output_gradient = staticmethod(pair_output.output_gradient)
    hidden_moments = staticmethod(pair_hidden.hidden_moments)
    hidden = staticmethod(pair_hidden.hidden)
    hidden_sums = staticmethod(pair_hidden.hidden_sums)
    hidden_backward = staticmethod(pair_hidden.hidden_backward)
    output_moments = staticmethod(pair_output.output_moments)
    output = staticmethod(pair_output.output)
    output_sums = staticmethod(pair_output.output_sums)
    output_backward = staticmethod(pair_output.output_backward)
