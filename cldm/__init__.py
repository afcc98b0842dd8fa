"""ControlNet: everything that exists because there is a hint."""
