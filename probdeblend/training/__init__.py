"""From scenes to weights: streams, the training loop, recipes, and fitted calibrators."""
