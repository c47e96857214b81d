"""TranslationCLI: fit, validate, test and predict by LightningCLI, with the parts of this package in place."""

from __future__ import annotations

import inspect
import logging
import re
import shutil
import signal
import sys
import warnings
from argparse import HelpFormatter
from pathlib import Path
from typing import Any, NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_transformer.callbacks import BLEUEvaluation, CheckpointAveraging, InverseSqrtWarmup, TranslationWriter
from lit_transformer.callbacks.progress import TrainingProgress
from lit_transformer.cli import did_you_mean
from lit_transformer.data import ParallelCorpus, SubwordTokenizer, TranslationDataModule
from lit_transformer.interfaces import InputError
from lit_transformer.module import LitTransformer
from lit_transformer.nn import Transformer
from lit_transformer.translator import CheckpointError, newest_checkpoint, read_checkpoint

logger = logging.getLogger(__name__)

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
    "checkpoint": ModelCheckpoint,
}
USED_BY = {
    "warmup": {"fit"},
    "bleu": {"fit", "validate", "test"},
    "averaging": {"validate", "test", "predict"},
    "writer": {"predict"},
    "checkpoint": {"fit"},
}
CALLBACK_DEFAULTS = {
    "writer.output_path": "predictions.txt",
    "checkpoint.filename": "step={step}",
    "checkpoint.auto_insert_metric_name": False,
    "checkpoint.monitor": "step",
    "checkpoint.mode": "max",
    "checkpoint.save_top_k": 5,
    "checkpoint.every_n_train_steps": 1000,
    "checkpoint.save_on_exception": True,  # also on SIGTERM and on the keyboard's interrupt
}


class HelpfulParser(LightningArgumentParser):
    """The parser of LightningCLI, which names the nearest right key when one is misspelt."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints the message with a suggestion and exits with status 2."""
        text = " ".join(message.split()).rstrip(".")
        sys.stderr.write(f"lit-transformer: {text}.{did_you_mean(text, self._known_names())}\n")
        sys.exit(2)

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """The help page, without the lists of every class that could be named by a ``class_path``."""
        return re.sub(r",\s+known\s+subclasses:[^)]*\)", ")", super().format_help(formatter))

    def _known_names(self) -> set[str]:
        """All keys, and the arguments of the classes that a configuration usually names."""
        names = {action.dest for action in self._actions}
        for plug in (LitTransformer, Transformer, TranslationDataModule, ParallelCorpus, SubwordTokenizer):
            names |= set(inspect.signature(plug.__init__).parameters)
        return names


class RunConfig(SaveConfigCallback):
    """Keeps the parsed configuration as ``config.yaml`` in the folder of the run."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes the file when training starts; scoring a run leaves it as it is."""
        if stage == "fit":
            root = Path(trainer.default_root_dir)
            root.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, root / "config.yaml", skip_none=False, overwrite=True, multifile=False)


class TranslationCLI(LightningCLI):
    """LightningCLI for translation: linked vocabularies, default callbacks, one folder for each run.

    ``model`` and ``data`` take any subclass by ``class_path``. A callback under ``trainer.callbacks`` takes the
    place of the default one of the same kind.

    Args:
        args: The command line after the program's name, or a configuration as a dict.
    """

    def __init__(self, args: Any = None) -> None:
        super().__init__(
            LitTransformer,
            TranslationDataModule,
            save_config_callback=RunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=1,
            parser_class=HelpfulParser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            args=args,
            auto_configure_optimizers=False,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses a command line, or checks a configuration given as a dict."""
        self.config = parser.parse_object(args) if isinstance(args, dict) else parser.parse_args(args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the default callbacks, and the links between what model and data share."""
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Lets fit delete the checkpoints of an earlier run in its folder.",
        )
        parser.set_defaults({"model": MODEL_DEFAULT, "data": DATA_DEFAULT, **CALLBACK_DEFAULTS})
        network = "model.init_args.network.init_args"
        parser.link_arguments("data.init_args.vocab_size", f"{network}.vocab_size")
        parser.link_arguments("data.init_args.src_vocab_size", f"{network}.src_vocab_size")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    @property
    def _root(self) -> Path:
        """The folder of the run."""
        return Path(self.config[self.config.subcommand].trainer.default_root_dir)

    def _parse_ckpt_path(self) -> None:
        """Finds the checkpoint, and takes the network's description from it for all but fit.

        Weights fit only the network that they were trained in, so scoring and predicting build that one. Resumed
        training keeps to the configuration and refuses a checkpoint of another network.
        """
        subcommand = self.config.subcommand
        config = self.config[subcommand]
        given = config.get("ckpt_path") or ("last" if subcommand != "fit" else None)
        if given is None:
            return
        path = newest_checkpoint(self._root) if given == "last" else Path(given)
        stored = read_checkpoint(path).get("hyper_parameters", {}).get("network")
        config.ckpt_path = str(path)
        if not isinstance(stored, dict):
            raise CheckpointError(f"{path} does not say how its network is built: it was not written by fit")
        network = config.model.init_args.network
        if subcommand == "fit":
            self._check_same_network(network.init_args.as_dict(), stored["init_args"], path)
        else:
            network.class_path = stored["class_path"]
            network.init_args = type(network)(**stored["init_args"])

    @staticmethod
    def _check_same_network(given: dict[str, Any], stored: dict[str, Any], path: Path) -> None:
        for name in given.keys() & stored.keys():
            if given[name] != stored[name]:
                raise CheckpointError(
                    f"{path} holds a network with {name}={stored[name]}, but the configuration says {given[name]}; "
                    "continue with the configuration that the run was started with (config.yaml in its folder)"
                )

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer; arguments that a constructor refuses are the user's to mend."""
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except (ValueError, MisconfigurationException) as error:
            raise InputError(str(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with the default callbacks that this subcommand needs."""
        config = self._get(self.config_init, "trainer")
        own = config.callbacks or []
        own = list(own) if isinstance(own, list) else [own]
        config.callbacks = self._default_callbacks(own) + own
        if config.logger in (None, True):
            config.logger = CSVLogger(self._root, name="logs")
        return self._instantiate_trainer({**config, **kwargs}, [])

    def _default_callbacks(self, own: list[Callback]) -> list[Callback]:
        """Those that the subcommand needs and the user has not replaced by one of the same kind."""
        assert self.subcommand is not None
        chosen = [
            self._get(self.config_init, key)
            for key, kind in CALLBACKS.items()
            if self.subcommand in USED_BY[key] and not any(isinstance(callback, kind) for callback in own)
        ]
        for callback in chosen:
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((self._root / "checkpoints").absolute())
        if self.subcommand == "fit":
            chosen.append(LearningRateMonitor("step"))
        if self._get(self.config_init, "trainer").enable_progress_bar is not False:
            chosen.append(TrainingProgress())
        return chosen

    def before_fit(self) -> None:
        """Refuses to mix the checkpoints of two runs in one folder."""
        size = sum(parameter.numel() for parameter in self.model.network.parameters())
        logger.info("%s with %s parameters", type(self.model.network).__name__, f"{size:,}")
        config = self.config[self.subcommand]
        folder = self._root / "checkpoints"
        if config.ckpt_path or config.trainer.fast_dev_run or not any(folder.glob("*.ckpt")):
            return
        if not config.overwrite:
            raise InputError(
                f"{folder} already holds checkpoints: continue that run with --ckpt_path last, start it anew with "
                "--overwrite true, or choose another --trainer.default_root_dir"
            )
        shutil.rmtree(folder)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "return_predictions": False} if subcommand == "predict" else kwargs  # the writer has them

    def after_fit(self) -> None:
        """Says where everything is and what comes next."""
        if self.trainer.is_global_zero and not self._get(self.config, "trainer").fast_dev_run:
            logger.info(
                "\nThe run is in %s: config.yaml, checkpoints, logs.\nScore it:   lit-transformer test --config %s\n"
                "Translate:  lit-transformer translate %s 'a sentence'",
                self._root,
                self._root / "config.yaml",
                self._root,
            )


def _quieten_lightning() -> None:
    """Keeps Lightning's messages plain, without advertisements and without warnings about its own insides."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(logging.Formatter("%(message)s"))
            handler.addFilter(lambda record: "💡" not in record.getMessage())
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"(lightning|jsonargparse)\.")
    warnings.filterwarnings("ignore", message=r"\s*skip_none parameter", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`, callbacks used to create")


def run(arguments: list[str]) -> None:
    """Runs ``fit``, ``validate``, ``test`` or ``predict`` with the rest of the command line."""
    _quieten_lightning()
    try:
        TranslationCLI(arguments)
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
    except SIGTERMException:  # by itself it would end in exit status 0, as if the training were finished
        logger.info("stopped by SIGTERM; continue with --ckpt_path last")
        sys.exit(128 + signal.SIGTERM)
