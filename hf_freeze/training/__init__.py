"""The loop: trainers that apply a plan, keep it true, and save and resume what it trained."""

from hf_freeze.training.trainer import FreezeMixin, FreezeSeq2SeqTrainer, FreezeTrainer

__all__ = ["FreezeMixin", "FreezeSeq2SeqTrainer", "FreezeTrainer"]
