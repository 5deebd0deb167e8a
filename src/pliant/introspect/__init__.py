"""What the deformable layers of any model look at and what they cost, as numbers; `draw` makes pictures of them."""

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
