"""What need not be computed again: the outputs of the frozen prefix, kept on disk and replayed."""
