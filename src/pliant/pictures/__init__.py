"""Pictures of results: boxes, masks and class names on images, and charts of numbers."""
