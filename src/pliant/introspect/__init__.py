"""See where the units of a deformable network sample: numbers (`sampling`) and pictures (`draw`)."""

from pliant.introspect.sampling import SamplingPoints, sampling_points

__all__ = ["SamplingPoints", "sampling_points"]
