"""Run folders, sweeps, trackers, and trained runs read back."""
