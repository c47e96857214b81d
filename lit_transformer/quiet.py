"""Lightning's messages, as plain as our own."""

from __future__ import annotations

import logging
import warnings

_CHATTER = (  # said elsewhere, or of no interest
    "Seed set to",
    "TPU available",
    "Restoring states from",
    "An KeyboardInterrupt was raised",
    "An SIGTERMException was raised",
)


def quieten_lightning() -> None:
    """Keeps Lightning's messages plain, without advertisements and without warnings about its own insides."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(logging.Formatter("%(message)s"))
            handler.addFilter(lambda record: "💡" not in record.getMessage())
            handler.addFilter(lambda record: not record.getMessage().startswith(_CHATTER))
    warnings.formatwarning = lambda message, *place: f"warning: {message}\n"
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(lightning|jsonargparse)\.")
    warnings.filterwarnings("ignore", message=r"\s*skip_none parameter", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # before_fit looks
    warnings.filterwarnings("ignore", message="The dirpath has changed from")  # a run continued in another folder
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")
    warnings.filterwarnings("ignore", message="You're using the WeightAveraging callback")  # it is what was asked for
