"""Detection, segmentation and classification: what is special about each."""
