"""What a network learned to look at and what that costs, on any model: numbers, and pictures in `draw`."""

from pliant.introspect.complexity import Comparison, Complexity, compare_with_plain, complexity
from pliant.introspect.effective_dilation import EffectiveDilation, Spread
from pliant.introspect.roi_parts import RoIParts, roi_parts
from pliant.introspect.sampling_points import SamplingPoints, Trace, sampling_points

__all__ = [
    "Comparison",
    "Complexity",
    "EffectiveDilation",
    "RoIParts",
    "SamplingPoints",
    "Spread",
    "Trace",
    "compare_with_plain",
    "complexity",
    "roi_parts",
    "sampling_points",
]
