"""What becomes of a trained model: loaded, merged, verified, pushed, described and exported."""

from hf_freeze.sharing.loading import load_model
from hf_freeze.sharing.merging import merged_model

__all__ = ["load_model", "merged_model"]
