"""Lightning callbacks: the schedule, the scores, pictures, averaging of checkpoints, and translations to a file."""

from lit_transformer.callbacks.averaging import (
    CheckpointAveraging,
    average_checkpoints,
    last_checkpoints,
    write_averaged_checkpoint,
)
from lit_transformer.callbacks.bleu import BLEUEvaluation
from lit_transformer.callbacks.moving_average import MovingAverage
from lit_transformer.callbacks.pictures import AttentionPictures
from lit_transformer.callbacks.stopping import StopTogether
from lit_transformer.callbacks.warmup import InverseSqrtWarmup
from lit_transformer.callbacks.writer import TranslationWriter

__all__ = [
    "AttentionPictures",
    "BLEUEvaluation",
    "CheckpointAveraging",
    "InverseSqrtWarmup",
    "MovingAverage",
    "StopTogether",
    "TranslationWriter",
    "average_checkpoints",
    "last_checkpoints",
    "write_averaged_checkpoint",
]
