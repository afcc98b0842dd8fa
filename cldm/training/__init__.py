"""Training of a branch: the Lightning module, its callbacks and strategy, what a finished run says."""
