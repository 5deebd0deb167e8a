"""What a network learned to look at, on any model: numbers (`sampling`) and pictures (`draw`)."""

from pliant.introspect.part_offsets import RoIParts, roi_parts
from pliant.introspect.sampling import SamplingPoints, Trace, sampling_points

__all__ = ["RoIParts", "SamplingPoints", "Trace", "roi_parts", "sampling_points"]
