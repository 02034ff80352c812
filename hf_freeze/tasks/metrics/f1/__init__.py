"""The folder that `evaluate.load` takes for `f1`."""
