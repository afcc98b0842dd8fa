"""From hint and prompt to image: units of control, generation, job lists."""
