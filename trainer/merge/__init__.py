"""Merge checkpoints of one model into one; it must not train, and must not hold a model."""

from trainer.merge.driver import MergeReport, merge_checkpoints
from trainer.merge.merge_lora import merge_adapters
from trainer.merge.settings import MergeSettings

__all__ = ["MergeReport", "MergeSettings", "merge_adapters", "merge_checkpoints"]
