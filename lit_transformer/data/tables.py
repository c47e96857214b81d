"""Rows of whatever `datasets` can stream: Hub datasets, folders, and tables in files."""

from __future__ import annotations

import copy
import glob
import os
import re
import warnings
from collections.abc import Iterator
from typing import Any

from lit_transformer.data.network import is_address, is_passing, open_address, path_of
from lit_transformer.data.textfiles import (
    COMPRESSED,
    CorpusError,
    Row,
    State,
    approximate_lines,
    file_identity,
    first_block,
)
from lit_transformer.data.zstd_frames import check_whole

_ENOUGH_SHARDS = 64  # with fewer, a place deep in a shard would take long to come back to
_SHARDS_PER_LANE = 4  # with fewer, lanes of 1 and of 2 shards would stand side by side
_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".parquet": ("parquet", {"batch_size": 10_000}),  # rows read at once; without it a whole row group
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".ndjson": ("json", {}),
    ".csv": ("csv", {"index_col": False}),  # else a row with one field too many loses its first one to an index
    # quoting 3: quotation marks are ordinary characters; a line ends where those of text files do
    ".tsv": ("csv", {"index_col": False, "sep": "\t", "quoting": 3, "lineterminator": "\n"}),
}
_LINES = (".json", ".jsonl", ".ndjson")  # an empty one of several holds no rows, as a program of many parts leaves it
_TOO_MANY_FIELDS = "Length of header or names does not match length of data"  # pandas' warning
_MARK = "\ue000"


class DatasetRows:
    """Rows of anything that `datasets` can stream: Hub datasets, folders and tables in files.

    Args:
        path: A Hub name, optionally with ``@revision``, a folder, or the name of a builder such as ``parquet``.
        name: Configuration of the dataset.
        split: Part of the dataset.
        files: The data files, if ``path`` is a builder.
        options: Further options of the builder.
        lane: Read only every ``num_lanes``-th shard (file or parquet row group), beginning with number ``lane``.
        num_lanes: Lanes that share the shards.
        not_found: What was looked for on this machine before ``path`` was taken for a Hub name, for messages.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        files: list[str] | None = None,
        options: dict[str, Any] | None = None,
        lane: int = 0,
        num_lanes: int = 1,
        not_found: str = "",
    ) -> None:
        self.path, self.name, self.split, self.files, self.options = path, name, split, files, options or {}
        self.not_found = not_found
        self._lane = lane, num_lanes
        self._num_shards: dict[int, int] = {}  # by number of lanes
        self._loaded: dict[int, Any] = {}  # what comes from a network, by number of lanes; shared with the lanes
        self._hub_has_answered = False

    @classmethod
    def from_files(cls, pattern: str, split: str, columns: list[str]) -> DatasetRows:
        """The table files that a path or pattern names.

        Args:
            pattern: The path or pattern.
            split: What the rows are called.
            columns: Those that hold sentences: in CSV and TSV files the words "None", "nan" and "1" are text there,
                and if there is one alone, its empty lines count.

        Raises:
            CorpusError: If there are none, or their ending is not known or not the same.
        """
        local = not is_address(pattern) and glob.has_magic(pattern) and not os.path.exists(pattern)
        files = sorted(glob.glob(pattern, recursive=True)) if local else [pattern]
        if not files:
            raise CorpusError(f"no file matches {pattern}")
        return cls._of_one_kind(pattern, files, split, columns)

    @classmethod
    def from_folder(cls, path: str, name: str | None, split: str, columns: list[str]) -> DatasetRows:
        """What `datasets` finds in a folder; its CSV and TSV files are read by the same rules as if they were named.

        Args:
            path: The folder.
            name: Configuration, if a README.md in the folder describes some.
            split: Which part of the folder to read.
            columns: As of ``from_files``.

        Raises:
            CorpusError: If `datasets` finds nothing in the folder, CSV and TSV files together in one split, or a file
                that breaks off.
        """
        folder = cls(path, name, split)
        config = folder._config_of_folder()
        files = [str(file) for file in (config.data_files or {}).get(split, [])]
        for file in files:
            _check_zstandard(file)
        if not files or any(ending_of_table(file) not in (".csv", ".tsv") for file in files):
            return folder
        usual = type(config)(sep=_kind(files[0])[1].get("sep", ","))
        if config.pd_read_csv_kwargs != usual.pd_read_csv_kwargs:  # the README.md says how they are to be read
            return folder
        return cls._of_one_kind(path, files, split, columns)

    @classmethod
    def _of_one_kind(cls, place: str, files: list[str], split: str, columns: list[str]) -> DatasetRows:
        builder, options = _kind(files[0])
        for file in files[1:]:
            if _kind(file) != (builder, options):
                raise CorpusError(
                    f"{place} names tables of several kinds, such as {files[0]} and {file}: give each kind a corpus "
                    "of its own"
                )
        if builder == "csv":
            converters = dict.fromkeys([*columns, *(f"{name}\r" for name in columns)], _marked)
            options = {**options, "converters": converters, "skip_blank_lines": len(columns) > 1}
        return cls(builder, None, split, files, options)

    def chunks(self, state: State | None, size: int) -> Iterator[tuple[list[Row], State]]:
        """Rows from the place ``state`` on; ``iter(batch_size)`` keeps all rows in every worker process."""
        lane, num_lanes = self._lane
        dataset = self._finely_cut(num_lanes)
        if num_lanes > 1:
            dataset = dataset.shard(num_lanes, lane, contiguous=False)
        if state is not None:
            dataset.load_state_dict(copy.deepcopy(state))
        batches = iter(dataset.iter(batch_size=size))
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("error", _TOO_MANY_FIELDS)
                    columns = next(batches, None)
            except Exception as error:  # readers below `datasets` raise whatever they like
                raise CorpusError(f"cannot read {self._label()}: {_first_line(error)}") from error
            if columns is None:
                return
            for name in columns.keys() & self.options.get("converters", {}).keys():
                columns[name] = [cell and cell.removeprefix(_MARK).removesuffix("\r") for cell in columns[name]]
            names = [name.removesuffix("\r") for name in columns]
            rows = [dict(zip(names, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            yield rows, copy.deepcopy(dataset.state_dict())

    def lane(self, lane: int, num_lanes: int) -> DatasetRows | None:
        """The shards of a lane; None if there are too few for lanes of about the same size."""
        if num_lanes not in self._num_shards:
            self._num_shards[num_lanes] = self._finely_cut(num_lanes).num_shards
        num_shards = self._num_shards[num_lanes]
        if num_shards % num_lanes and num_shards < _SHARDS_PER_LANE * num_lanes:
            return None
        settings = (self.path, self.name, self.split, self.files, self.options)
        part = DatasetRows(*settings, lane, num_lanes, self.not_found)
        part._loaded = self._loaded
        return part

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_loaded": {}}  # other processes have connections of their own

    def _finely_cut(self, num_lanes: int) -> Any:
        """The dataset with parquet row groups as its shards, if its files are few and `datasets` can do that.

        From a network it is loaded but once: later passes ask for its files alone, and those of the same revision.
        """
        if all(map(os.path.exists, self.files or [self.path])):
            return self._cut(self._load(), num_lanes)
        if num_lanes not in self._loaded:
            self._loaded[num_lanes] = self._cut(self._load(), num_lanes)
        return self._loaded[num_lanes].shard(1, 0)  # all of it, as an object that keeps a place of its own

    def _cut(self, dataset: Any, num_lanes: int) -> Any:
        is_enough = dataset.num_shards >= max(_ENOUGH_SHARDS, _SHARDS_PER_LANE * num_lanes)
        try:
            return dataset if is_enough or not hasattr(dataset, "reshard") else dataset.reshard()
        except Exception as error:  # it reads the ends of the files, perhaps over a network
            raise CorpusError(f"cannot read {self._label()}: {_first_line(error)}") from error

    def fingerprint(self) -> list[Any]:
        """Names, sizes and ends of the files; of a Hub dataset its name and revision."""
        files = self.files or []
        if os.path.isdir(self.path):  # the files of the split alone: others may come and go, as a run's own do
            by_split = self._files_of_folder()
            files = by_split.get(self.split) or [file for found in by_split.values() for file in found]
        place = "folder" if os.path.isdir(self.path) else self.path
        return [place, self.name, self.split, *map(file_identity, files)]

    def approximate_rows(self) -> int | None:
        """From parquet's own count, the lines of a file, or what the Hub says; None if nothing of this tells it."""
        if self.files:
            return _total(self.files)
        dataset = self._load()
        splits = dataset.info.splits or {}
        known: int | None = splits[self.split].num_examples if self.split in splits else None
        return known or (_total(self._files_of_folder().get(self.split, [])) if os.path.isdir(self.path) else None)

    def _files_of_folder(self) -> dict[str, list[str]]:
        """The files in which `datasets` finds each split."""
        found = self._config_of_folder().data_files or {}
        return {split: sorted(files) for split, files in found.items()}

    def _config_of_folder(self) -> Any:
        """How `datasets` would read the folder."""
        import datasets  # type: ignore[import-untyped]

        try:
            return datasets.load_dataset_builder(self.path, self.name).config
        except Exception as error:  # of several libraries, and of no one class
            raise CorpusError(f"{self._failure(error)}: {_first_line(error)}") from error

    def _load(self) -> Any:
        import datasets

        files = self._files_with_rows()
        try:
            if files:  # load_dataset would do the same, but call home first
                reader = getattr(datasets.Dataset, f"from_{self.path}")
                return reader(files, split=self.split, streaming=True, **self.options)
            if self.not_found:
                self._ask_hub()
            path, _, revision = (self.path, "", "") if os.path.exists(self.path) else self.path.partition("@")
            return datasets.load_dataset(path, self.name, split=self.split, revision=revision or None, streaming=True)
        except Exception as error:  # the Hub client raises errors of several network libraries
            if isinstance(error, FileNotFoundError):  # what `datasets` says of any address that does not answer
                error = _unreachable(self.files or []) or error
            raise CorpusError(f"{self._failure(error)}: {_first_line(error)}") from error

    def _files_with_rows(self) -> list[str]:
        """The data files but for those without a byte; looks at each one on this machine."""
        local = [file for file in self.files or [] if not is_address(file)]
        for file in local:
            if not os.path.isfile(file):
                raise CorpusError(f"cannot open {file}: No such file or directory")
        empty = {file for file in local if not os.path.getsize(file)}
        files = [file for file in self.files or [] if file not in empty]
        for file in sorted(empty):  # of which each reader says something else
            if not (files and file.endswith(_LINES)):
                raise CorpusError(f"{file} is empty: expected a table of at least one row")
        for file in files:
            _check_zstandard(file)
        return files

    def _ask_hub(self) -> None:
        """Asks for the dataset once: `datasets` would try six times, perhaps for nothing but a misspelt path."""
        from datasets import config
        from huggingface_hub import HfApi

        name = self.path.partition("@")[0]
        is_cached = (config.HF_DATASETS_CACHE / name.replace("/", "___")).is_dir()  # then `datasets` can do without
        try:
            if not (self._hub_has_answered or is_cached or config.HF_HUB_OFFLINE):
                HfApi().dataset_info(name, timeout=30, expand=["sha"])
        except Exception as error:
            if is_passing(error):
                raise
        self._hub_has_answered = True  # what else it may say, `datasets` will say more clearly

    def _label(self) -> str:
        if self.files:
            return self.files[0] + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")
        kind = "folder" if os.path.isdir(self.path) else "Hub dataset"
        return f"the {kind} {self.path}" + (f" ({self.name})" if self.name else "") + f", split {self.split!r}"

    def _failure(self, error: Exception) -> str:
        """What could not be opened; a name that the Hub does not know may have been meant for a file."""
        is_missing = isinstance(error, OSError) or is_passing(error) or "connect" in str(error).lower()
        if self.not_found and is_missing and not self.name and "@" not in self.path:
            return f"there is {self.not_found}, and the Hub has no dataset of this name or cannot be reached"
        return f"cannot open {self._label()}"


def _marked(cell: str) -> str:
    """A cell with a mark before it, or pandas would take the word None for no value, and 007 for the number 7."""
    return _MARK + cell


def _check_zstandard(file: str) -> None:
    """Refuses a .zst file that breaks off, of which `datasets` would read what there is and say nothing."""
    if is_address(file) or not file.endswith(".zst"):
        return
    try:
        with open(file, "rb") as raw:
            check_whole(raw)
    except (OSError, EOFError, ValueError) as error:
        raise CorpusError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from error


def _kind(file: str) -> tuple[str, dict[str, Any]]:
    """How `datasets` reads a table: the name of the builder and its options."""
    ending = ending_of_table(file)
    if ending is None:
        raise CorpusError(
            f"cannot tell what {file} is: expected an ending among {', '.join(_BUILDERS)}, or for line-aligned text "
            "src_path and tgt_path"
        )
    return _BUILDERS[ending]


def ending_of_table(path: str) -> str | None:
    """The ending that tells how a table is stored, whatever it is packed into; None if there is none."""
    endings = re.findall(r"\.\w+", os.path.basename(path_of(path)))
    return next((ending for ending in reversed(endings) if ending in _BUILDERS), None)


def _total(files: list[str]) -> int | None:
    """About how many rows there are in files on this machine; None if one of them does not tell."""
    total = 0
    for file in files:
        is_table = file.endswith((*_BUILDERS, ".txt", *COMPRESSED))  # no archive of several files
        rows = None if is_address(file) or not is_table else _rows_of(file)
        if rows is None:
            return None
        total += rows
    return total or None


def _rows_of(file: str) -> int | None:
    ending = ending_of_table(file)
    if ending == ".parquet":
        return _parquet_rows(file)
    if ending == ".json":
        line = first_block(file)[0].lstrip().partition(b"\n")[0].rstrip()
        if not (line.startswith(b"{") and line.endswith(b"}")):  # one large list, whose lines are no rows
            return None
    return approximate_lines(file)


def _parquet_rows(path: str) -> int:
    from pyarrow import ArrowException  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    try:
        with ParquetFile(path) as file:
            return int(file.metadata.num_rows)
    except (OSError, ArrowException) as error:
        raise CorpusError(f"cannot read {path}: {_first_line(error)}") from error


def _unreachable(files: list[str]) -> OSError | None:
    """Why addresses cannot be read, if any are among the files."""
    addresses = [file for file in files if is_address(file)]
    try:
        for address in addresses:
            with open_address(address) as remote:
                remote.read(1)
    except OSError as error:
        return error
    return ConnectionError("no answer at the first attempt") if addresses else None


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error  # "An error occurred while generating the dataset" hides the reason
    if _TOO_MANY_FIELDS in str(cause):
        return "rows have more fields than the first line has names; quote text that holds the separator"
    found, known = (getattr(cause, f"{of}_column_names", ()) for of in ("table", "requested"))
    if late := sorted(set(found) - set(known)):  # of a CastError
        return f"{', '.join(late)} first occurs far into the text; give all rows the same keys, with null for no value"
    return (str(cause).strip() or type(cause).__name__).splitlines()[0].rstrip(".")
