"""What is trained beside the base: ControlNet, the ablations' variants, and their published files."""
