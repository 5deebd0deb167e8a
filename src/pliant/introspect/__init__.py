"""What a network learned to look at, on any model: numbers, and pictures in `draw`."""

from pliant.introspect.effective_dilation import EffectiveDilation, Spread
from pliant.introspect.part_offsets import RoIParts, roi_parts
from pliant.introspect.sampling import SamplingPoints, Trace, sampling_points

__all__ = ["EffectiveDilation", "RoIParts", "SamplingPoints", "Spread", "Trace", "roi_parts", "sampling_points"]
