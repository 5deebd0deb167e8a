"""What a network learned to look at, on any model: numbers (`sampling`) and pictures (`draw`)."""

from pliant.introspect.sampling import SamplingPoints, Trace, sampling_points

__all__ = ["SamplingPoints", "Trace", "sampling_points"]
