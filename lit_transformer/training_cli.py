"""TranslationCLI: fit, validate, test and predict by LightningCLI, with the parts of this package in place."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from contextlib import ExitStack
from copy import copy
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml  # type: ignore[import-untyped]
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint, ProgressBar, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_transformer.beginnings import Beginning, take_weights
from lit_transformer.callbacks import BLEUEvaluation, CheckpointAveraging, TranslationWriter
from lit_transformer.callbacks.averaging import by_step
from lit_transformer.callbacks.moving_average import require_whole_weights
from lit_transformer.callbacks.progress import TrainingProgress
from lit_transformer.callbacks.stopping import StopTogether
from lit_transformer.checkpoints import checkpoints_in, read_checkpoint
from lit_transformer.command_options import sparing_memory
from lit_transformer.data import ParallelCorpus, SubwordTokenizer, TranslationDataModule
from lit_transformer.data.checks import check_accumulation
from lit_transformer.decoding import BeamSearch, GreedySearch
from lit_transformer.defaults import (
    CALLBACK_DEFAULTS,
    CALLBACKS,
    DATA_DEFAULT,
    MODEL_DEFAULT,
    TRAINER_DEFAULTS,
    USED_BY,
)
from lit_transformer.distillation import DistilledTransformer
from lit_transformer.given_options import check_options
from lit_transformer.interfaces import InputError, Search
from lit_transformer.kernels import has_fast_bfloat16
from lit_transformer.model_files import TOKENIZER_FILE
from lit_transformer.module import LitTransformer
from lit_transformer.network_checks import check_room
from lit_transformer.parser import HelpfulParser, plain_message
from lit_transformer.quiet import quieten_lightning
from lit_transformer.run_folder import RunConfig, RunFolder, holds_run, path_in_run
from lit_transformer.yaml_files import check_yaml, with_own_configurations

logger = logging.getLogger(__name__)

_TRIAL_FOLDER = "LIT_TRANSFORMER_TRIAL_FOLDER"  # in the environment, which ranks that Lightning starts inherit

_LESS_MEMORY = (
    "lower data.max_tokens, and raise trainer.accumulate_grad_batches as many times, if a step is to keep its tokens; "
    "in a validation, data.eval_max_tokens or bleu.beam_size"
)
_LESS_MEMORY_OF_SEARCH = "lower data.eval_max_tokens or bleu.beam_size"
SCORED_CONFIG = ("seed_everything", "model", "data", "bleu", "averaging")  # what a score depends on


class TranslationCLI(LightningCLI):
    """LightningCLI for translation: linked vocabularies, default callbacks, one folder for each run.

    ``model`` and ``data`` take any subclass by ``class_path``. A callback under ``trainer.callbacks`` takes the
    place of the default one of the same kind.

    Args:
        args: The command line after the program's name, or a configuration as a dict. The default is the command line
            of this program.
    """

    def __init__(self, args: Any = None) -> None:
        args = sys.argv[1:] if args is None else args
        self._beginning: Beginning | None = None
        self._only = args[0] if isinstance(args, list) and args else None
        with ExitStack() as self._until_the_end:
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

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The subcommand that the command line names; parsers for the others would only cost time."""
        every = LightningCLI.subcommands()
        every["predict"] |= {"return_predictions"}  # the writer has them
        return {self._only: every[self._only]} if self._only in every else every

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parses a command line, or checks a configuration given as a dict."""
        given = [] if isinstance(args, dict) else with_own_configurations(args)
        check_yaml(given)
        self.config = parser.parse_object(args) if isinstance(args, dict) else parser.parse_args(given)
        check_options(self.config[self.config.subcommand], self.config.subcommand, given)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the default callbacks, and the links between what model and data share."""
        for key, callback in CALLBACKS.items():
            parser.add_lightning_class_args(callback, key)
        parser.add_argument(
            "--overwrite",
            type=bool,
            default=False,
            help="Lets fit delete the checkpoints and logs of an earlier run in its folder.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="Lets fit begin with the network and tokenizer of an imported or exported folder, a checkpoint or a "
            "model of the Hub; only dropout is the configuration's.",
        )
        parser.set_defaults({"model": MODEL_DEFAULT, "data": DATA_DEFAULT, **CALLBACK_DEFAULTS})
        network = "model.init_args.network.init_args"
        parser.link_arguments("data.init_args.vocab_size", f"{network}.vocab_size")
        parser.link_arguments("data.init_args.src_vocab_size", f"{network}.src_vocab_size")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=_seed_of_data)

    @property
    def _root(self) -> Path:
        """The folder of the run."""
        return Path(self.config[self.config.subcommand].trainer.default_root_dir)

    @property
    def _checkpoints(self) -> Path:
        """Where the run keeps its checkpoints: in its folder, unless ``checkpoint.dirpath`` says otherwise."""
        usual, saver = self._root / "checkpoints", self.trainer.checkpoint_callback
        dirpath = getattr(saver, "dirpath", None) or usual
        return usual if Path(dirpath) == usual.absolute() else Path(dirpath)

    def _parse_ckpt_path(self) -> None:
        """Finds the weights that the subcommand begins with."""
        config, root = self.config[self.config.subcommand], self._root
        if self.config.subcommand == "fit" and config.trainer.fast_dev_run and holds_run(root):
            config.trainer.default_root_dir = self._folder_to_try(root)
        self._beginning = take_weights(config, self.config.subcommand, root, self._root)

    def _folder_to_try(self, root: Path) -> str:
        """A folder for what is only tried out and must not change a run; processes that this one starts share it."""
        if _TRIAL_FOLDER not in os.environ:
            os.environ[_TRIAL_FOLDER] = self._until_the_end.enter_context(TemporaryDirectory())
            self._until_the_end.callback(os.environ.pop, _TRIAL_FOLDER)
            if (root / TOKENIZER_FILE).is_file():
                shutil.copy(root / TOKENIZER_FILE, os.environ[_TRIAL_FOLDER])
        return os.environ[_TRIAL_FOLDER]

    def instantiate_classes(self) -> None:
        """Builds model, data and trainer; arguments that a constructor refuses are the user's to mend."""
        try:
            super().instantiate_classes()
        except InputError:
            raise
        except (ValueError, MisconfigurationException) as error:
            raise InputError(plain_message(str(error))) from error
        if self.subcommand == "fit" and isinstance(self.model, LitTransformer):
            self._try_optimizer(self.model)
        if self._beginning is not None:
            self.model.network.load_state_dict(self._beginning.network.state_dict())
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, CheckpointAveraging):
                    callback.num_checkpoints = 1  # of one model; fit averages nothing
        if self.subcommand == "predict" and isinstance(self.model, LitTransformer) and not self.model.has_own_search:
            self.model.search = self._widened(self._scored_search())
        check_room(self.model.network, self.datamodule)

    def _try_optimizer(self, model: LitTransformer) -> None:
        """Makes the optimizer once, since Lightning would only find out within the training what it refuses."""
        try:
            model.optimizer(model.parameters())
        except InputError:
            raise
        except ValueError as error:
            raise InputError(f"model.optimizer cannot be made: {plain_message(str(error))}") from error

    def _scored_search(self) -> Search:
        """The search whose translations ``test`` scores, so that ``predict`` writes the same ones."""
        own = self.trainer.callbacks  # type: ignore[attr-defined]
        listed = next((callback for callback in own if isinstance(callback, BLEUEvaluation)), None)
        evaluation: BLEUEvaluation = listed or self._get(self.config_init, "bleu")
        return evaluation.search

    def _widened(self, search: Search) -> Search:
        """The search, returning as many translations as ``predict`` writes."""
        listed = self.trainer.callbacks  # type: ignore[attr-defined]
        wanted = max((one.n_best for one in listed if isinstance(one, TranslationWriter)), default=1)
        if not isinstance(search, BeamSearch) or search.n_best >= wanted:
            return search
        if wanted > search.beam_size:
            raise InputError(
                f"--writer.n_best {wanted} needs --bleu.beam_size {wanted} or more, got {search.beam_size}"
            )
        widened = copy(search)
        widened.n_best = wanted
        return widened

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the trainer with the default callbacks that this subcommand needs."""
        config = self._get(self.config_init, "trainer")
        own = config.callbacks or []
        own = list(own) if isinstance(own, list) else [own]
        if self.subcommand == "fit":
            check_accumulation(own)  # before anything is made of the text
        config.callbacks = [*self._default_callbacks(config, own), *own, *self._watchers(config, own)]
        if config.logger in (None, True) and not config.barebones:
            config.logger = CSVLogger(self._root, name="logs")
        trainer = self._instantiate_trainer({**config, **kwargs}, [])
        for callback in own:
            if isinstance(callback, WeightAveraging):
                require_whole_weights(callback, trainer.strategy)
        if isinstance(trainer.strategy, ModelParallelStrategy) and trainer.strategy._save_distributed_checkpoint:
            raise InputError(
                "ModelParallelStrategy would write a checkpoint as a folder of parts, which no command reads: set its "
                "save_distributed_checkpoint to false, as configs/trainer/fsdp.yaml does"
            )
        return trainer

    def _default_callbacks(self, config: Any, own: list[Callback]) -> list[Callback]:
        """Those that the subcommand needs and the user has not replaced by one of the same kind."""
        chosen = [
            self._get(self.config_init, key)
            for key, kind in CALLBACKS.items()
            if str(self.subcommand) in USED_BY[key] and not any(isinstance(callback, _rivals(kind)) for callback in own)
        ]
        if config.enable_checkpointing is False or config.barebones:
            chosen = [callback for callback in chosen if not isinstance(callback, ModelCheckpoint)]
        for callback in (*chosen, *own):
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                callback.dirpath = str((self._root / "checkpoints").absolute())
            if isinstance(callback, BLEUEvaluation) and callback.output_path is None and callback in own:
                callback.output_path = Path(str(CALLBACK_DEFAULTS["bleu.output_path"]))
            if isinstance(callback, (TranslationWriter, BLEUEvaluation)) and callback.output_path is not None:
                callback.output_path = path_in_run(callback.output_path, self._root)
        return chosen

    def _watchers(self, config: Any, own: list[Callback]) -> list[Callback]:
        """Those that only look, and so come after whatever sets the learning rate."""
        watchers: list[Callback] = []
        if self.subcommand == "fit":
            self._tell_of_replaced(own)
            has_logger = config.logger not in (False, []) and not config.barebones
            watchers += [LearningRateMonitor("step"), StopTogether()] if has_logger else [StopTogether()]
        has_bar = config.enable_progress_bar is not False and not config.barebones
        if has_bar and not any(isinstance(callback, ProgressBar) for callback in own):
            watchers.append(TrainingProgress())
        return watchers

    def _tell_of_replaced(self, own: list[Callback]) -> None:
        """Says which listed callback writes the checkpoints, since it may write fewer than the default one."""
        listed = next((type(callback).__name__ for callback in own if isinstance(callback, ModelCheckpoint)), None)
        if listed:
            logger.info("%s of trainer.callbacks takes the place of checkpoint, whose settings do not count", listed)

    def before_fit(self) -> None:
        """Looks at the text first, and refuses to mix the checkpoints of two runs in one folder."""
        self._look_at_text("train", "val")
        size = sum(parameter.numel() for parameter in self.model.network.parameters())
        logger.info("%s with %s parameters", type(self.model.network).__name__, f"{size:,}")
        is_on_cpu = isinstance(self.trainer.accelerator, CPUAccelerator)
        if is_on_cpu and str(self.trainer.precision).startswith("bf16") and not has_fast_bfloat16():
            logger.info("torch has no fast bfloat16 on this CPU: --trainer.precision 32-true trains many times as fast")
        self._say_how_many_train()
        self._say_when_it_validates()
        config = self.config[self.subcommand]
        if config.ckpt_path:  # before the data module could replace the tokenizer of the run
            stored = read_checkpoint(config.ckpt_path).get(type(self.datamodule).__qualname__)
            self.datamodule.check_state(stored or {})
            is_kept = (self._root / TOKENIZER_FILE).exists() or config.data.init_args.get("tokenizer_path")
            if stored and not is_kept and self.trainer.local_rank == 0:  # goes on in another folder
                self._keep_tokenizer(self.datamodule.tokenizer)
        folder = RunFolder(self._root, self._checkpoints)
        self._meet_teachers(config, folder)
        if folder.require_room(config):
            if self.trainer.is_global_zero:
                self._until_the_end.callback(folder.keeping_tokenizer())
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, RunConfig):
                    callback.earlier = folder
        if self._beginning is not None and self.trainer.local_rank == 0:  # machines may share no folder
            self._keep_tokenizer(self._beginning.tokenizer)

    def _keep_tokenizer(self, tokenizer: SubwordTokenizer) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        tokenizer.save(self._root / TOKENIZER_FILE)

    def _say_how_many_train(self) -> None:
        """Lightning takes all GPUs that it finds, and the budget of a batch is that of one."""
        together, parts = self.trainer.world_size, self.trainer.accumulate_grad_batches
        if together > 1:
            message = "training on %d devices: each step has %d tokens of either side at most, %d from each device"
            budget = self.datamodule.max_tokens * parts
            logger.info(message, together, budget * together, budget)

    def _say_when_it_validates(self) -> None:
        """Lightning counts batches between validations, where all else here counts optimizer steps."""
        interval, parts = self.trainer.val_check_interval, self.trainer.accumulate_grad_batches
        if (
            not isinstance(interval, int)
            or self.config[self.subcommand].trainer.fast_dev_run
            or not self.datamodule.corpora["val"]
        ):
            return
        if self.trainer.check_val_every_n_epoch is not None:
            message = "val_check_interval=%d counts batches within an epoch, since check_val_every_n_epoch is set: for "
            message += "a validation at the end of each epoch set trainer.val_check_interval to 1.0"
            logger.info(message, interval)
            return
        if parts > 1:
            message = "validation comes every %g optimizer steps: val_check_interval=%d counts batches, %d to a step"
            logger.info(message, interval / parts, interval, parts)
        if 0 < self.trainer.max_steps < interval / parts:
            message = "no validation comes before the last step, %d: set trainer.val_check_interval to at most %d"
            logger.info(message, self.trainer.max_steps, self.trainer.max_steps * parts)

    def _meet_teachers(self, config: Any, folder: RunFolder) -> None:
        """Reads the teachers of a student before an earlier run is deleted, and refuses to delete them."""
        if not isinstance(self.model, DistilledTransformer):
            return
        if not config.ckpt_path:
            folder.check_teachers(self.model.teachers)
        self.model.check_memory(self.datamodule)
        self.model.read_teachers()

    def before_validate(self) -> None:
        """Looks at the text first."""
        self._look_at_text("val")

    def before_test(self) -> None:
        """Looks at the text first, and lets the file of scores tell the configuration."""
        self._look_at_text("test")
        given = self._parser("test").dump(self.config["test"], skip_none=False)
        config = {key: value for key, value in yaml.safe_load(given).items() if key in SCORED_CONFIG}
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, BLEUEvaluation):
                callback.config = config
                callback.folder = None if self._beginning is None else self._beginning.name

    def before_predict(self) -> None:
        """Looks at the text first."""
        self._look_at_text("predict")

    def _look_at_text(self, part: str, *others: str) -> None:
        """Reads the first rows of each corpus, so that mistakes show before anything is trained or written."""
        if not self.datamodule.corpora[part]:
            raise InputError(
                f"{self.subcommand} needs a {part} corpus: set data.{part}, as in --data.{part}.path data/{part}"
            )
        for corpus in chain.from_iterable(self.datamodule.corpora[name] for name in (part, *others)):
            rows, _ = next(corpus.rows(), ([], None))
            for row in rows[:1]:
                corpus.read_row(row)
            reads_names = type(corpus).read_row is ParallelCorpus.read_row  # else the class says what the sides are
            if corpus.src == corpus.tgt and reads_names and part != "predict":
                logger.warning("both sides of %s are %r: the network is to learn a copy", corpus, corpus.src)

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs it; what failed before there was anything to log takes its folder of logs away."""
        try:
            with sparing_memory(_LESS_MEMORY if subcommand == "fit" else _LESS_MEMORY_OF_SEARCH):
                super()._run_subcommand(subcommand)
        except (InputError, MisconfigurationException):
            log = self.trainer.logger
            if isinstance(log, CSVLogger) and self.trainer.is_global_zero and not list(Path(log.log_dir).glob("*.csv")):
                shutil.rmtree(log.log_dir, ignore_errors=True)
                _remove_if_empty(Path(log.log_dir).parent)
            raise
        except SIGTERMException:  # by itself it would end in exit status 0, as if the training were finished
            logger.info(self._stopped("SIGTERM"))
            sys.exit(128 + signal.SIGTERM)
        except SystemExit as error:
            if not isinstance(error.__context__, KeyboardInterrupt) or not self.trainer.is_global_zero:
                raise  # else it is Lightning's answer to Ctrl-C, once all is closed
            raise KeyboardInterrupt(self._stopped("the keyboard")) from None

    def _stopped(self, by: str) -> str:
        """By what, and how to go on if a checkpoint is there."""
        is_kept = self.subcommand == "fit" and any(self._checkpoints.glob("*.ckpt"))
        command = f"lit-transformer fit --config {self._root / 'config.yaml'} --ckpt_path last"
        return f"stopped by {by}" + (f"; continue with {command}" if is_kept else "")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "return_predictions": False} if subcommand == "predict" else kwargs

    def after_fit(self) -> None:
        """Says where everything is and what comes next."""
        if not self.trainer.is_global_zero or self._get(self.config, "trainer").fast_dev_run:
            return
        left = [name for name in ("config.yaml", "checkpoints", "logs") if (self._root / name).exists()]
        logger.info("\nThe run is in %s: %s.", self._root, ", ".join(left))
        if any(self._checkpoints.glob("*.ckpt")):
            logger.info(
                "Score it:   lit-transformer test --config %s%s\n"
                "Translate:  lit-transformer translate %s 'a sentence'%s",
                self._root / "config.yaml",
                self._fewer_to_average(),
                self._root if "checkpoints" in left else self._checkpoints,
                self._search_of_scores(),
            )

    def _search_of_scores(self) -> str:
        """The options with which translate searches as test does, where they are not its defaults.

        Nothing for a search of the user's own, which translate does not know.
        """
        search = self.model.search if getattr(self.model, "has_own_search", False) else self._scored_search()
        if type(search) not in (BeamSearch, GreedySearch):
            return ""
        scored, usual = {"beam_size": 1, **vars(search)}, vars(BeamSearch())  # a greedy search has no beam_size
        other = {
            name: scored[name] for name in usual if name != "n_best" and scored.get(name, usual[name]) != usual[name]
        }
        flags = {"stop_early": " --stop_early", "allow_unknown": " --no_unknown"}
        return "".join(flags.get(name, f" --{name} {value}") for name, value in other.items())

    def _fewer_to_average(self) -> str:
        """The option that test needs where a short run left fewer checkpoints than it averages, or nothing."""
        averaging = self._get(self.config, "averaging")
        there = len(by_step(checkpoints_in(self._checkpoints)))
        return f" --averaging.num_checkpoints {there}" if 0 < there < averaging.num_checkpoints else ""


def _seed_of_data(seed: bool | int) -> int:
    """The seed of the text: that of everything else; Lightning takes the environment's, or 0, where none is given."""
    if isinstance(seed, bool):
        given = os.environ.get("PL_GLOBAL_SEED", "")
        return int(given) if given.isdecimal() else 0
    return seed


def _rivals(kind: type[Callback]) -> type[Callback]:
    """What a user's callback must be to take the place of a default one."""
    return ModelCheckpoint if issubclass(kind, ModelCheckpoint) else kind


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def run(arguments: list[str]) -> None:
    """Runs ``fit``, ``validate``, ``test`` or ``predict`` with the rest of the command line."""
    quieten_lightning()
    try:
        TranslationCLI(arguments)
    except MisconfigurationException as error:
        raise InputError(str(error)) from error
    except (RuntimeError, ValueError) as error:
        if not str(error).startswith(("Early stopping conditioned on metric", "`val_check_interval` ")):
            raise
        raise InputError(plain_message(str(error))) from error
