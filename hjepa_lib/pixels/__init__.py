"""World models of pixels (seeds 001 and 002): data, models, training, comparison."""
