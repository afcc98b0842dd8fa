"""Data sources; all yield ldm.batch.Batch."""
