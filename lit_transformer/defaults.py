"""What the training commands do unless a configuration or an option says otherwise."""

from __future__ import annotations

from lightning.pytorch import Callback

from lit_transformer.callbacks import BLEUEvaluation, CheckpointAveraging, InverseSqrtWarmup, TranslationWriter
from lit_transformer.callbacks.checkpoint import StepCheckpoint

TRAINER_DEFAULTS = {
    "default_root_dir": "runs/transformer",
    "max_steps": 100_000,
    "max_epochs": -1,
    "val_check_interval": 1000,
    "check_val_every_n_epoch": None,
    "use_distributed_sampler": False,
    "enable_model_summary": False,  # before_fit says the one line of it that matters
}
MODEL_DEFAULT = {
    "class_path": "lit_transformer.LitTransformer",
    "init_args": {
        "network": {"class_path": "lit_transformer.Transformer"},
        "optimizer": {
            "class_path": "torch.optim.Adam",
            "init_args": {"lr": (512 * 4000) ** -0.5, "betas": (0.9, 0.98), "eps": 1e-9},
        },
    },
}
DATA_DEFAULT = {"class_path": "lit_transformer.TranslationDataModule"}
CALLBACKS: dict[str, type[Callback]] = {  # keys of the configuration; a listed callback comes before those below it
    "warmup": InverseSqrtWarmup,
    "bleu": BLEUEvaluation,
    "averaging": CheckpointAveraging,
    "writer": TranslationWriter,
    "checkpoint": StepCheckpoint,
}
USED_BY = {  # the commands that a callback is for
    "warmup": {"fit"},
    "bleu": {"fit", "validate", "test"},
    "averaging": {"validate", "test", "predict"},
    "writer": {"predict"},
    "checkpoint": {"fit"},
}
CALLBACK_DEFAULTS = {
    "bleu.output_path": "{run}/test.hyp.txt",
    "writer.output_path": "{run}/predictions.txt",
    "checkpoint.filename": "step={step}",
    "checkpoint.auto_insert_metric_name": False,
    "checkpoint.monitor": "step",
    "checkpoint.save_top_k": 5,
    "checkpoint.every_n_train_steps": 1000,
    "checkpoint.save_on_exception": True,  # also on SIGTERM and on the keyboard's interrupt
}
