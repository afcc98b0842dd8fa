"""Tables and sheets of the ablations, from records on disk."""
