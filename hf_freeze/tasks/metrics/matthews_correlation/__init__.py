"""The folder that `evaluate.load` takes for `matthews_correlation`."""
