"""One page that compares runs, from run folders alone: what differs, curves, pictures, figures, samples."""
