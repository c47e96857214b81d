"""Many processes and workers inside one process, for tests of the training stream."""

import threading
from types import SimpleNamespace
from unittest.mock import patch

from lit_transformer.data import pools
from lit_transformer.data.corpus import CorpusError, ParallelCorpus
from lit_transformer.data.cursor import start_of
from lit_transformer.data.stream import TrainingBatches


class Letters:
    """Stands in for a tokenizer: one id for each letter; counts the sentences that it is asked for."""

    vocab_size = src_vocab_size = 400
    fingerprint = "letters"

    def __init__(self):
        self.sentences = 0

    def encode_src(self, texts):
        self.sentences += len(texts)
        return [[*map(ord, text), 3] for text in texts]

    def encode_tgt(self, texts):
        return [[2, *map(ord, text), 3] for text in texts]


class Numbers(ParallelCorpus):
    """Sentences that are numbers, unique over all corpora, made when they are read."""

    def __init__(self, count, name="n", broken_at=None):
        super().__init__("numbers")
        self.count, self.prefix, self.broken_at = count, name, broken_at

    def open(self):
        return self

    def lane(self, lane, num_lanes):
        return None

    def chunks(self, state, size):
        for start in range(state or 0, self.count, size):
            end = min(start + size, self.count)
            if self.broken_at is not None and start <= self.broken_at < end:
                raise CorpusError("the connection is down")
            rows = [f"{self.prefix}{n}" + "x" * (n * 7919 % 11) for n in range(start, end)]
            yield [{"en": row, "de": row} for row in rows], end

    def approximate_rows(self):
        return self.count

    def fingerprint(self):
        return f"{self.prefix}{self.count}"

    def texts(self):
        return [row["de"] for rows, _ in self.chunks(None, 1000) for row in rows]


class Together:
    """Stands in for the collective operation of the processes: threads that wait for one another."""

    def __init__(self, world):
        self.barrier, self.brought = threading.Barrier(world, timeout=60), {}

    def __call__(self, rank, flags):
        self.brought[rank] = flags
        self.barrier.wait()
        largest = [max(column) for column in zip(*self.brought.values(), strict=True)]
        self.barrier.wait()
        return largest


class SimulatedWorkers(TrainingBatches):
    """Lets some workers make the pools in turn, as a ``DataLoader`` would, all of them inside this process."""

    def _loader(self):
        if not self.num_workers:
            yield from self.pools
            return
        shares = [_share(self.pools, worker, self.num_workers) for worker in range(self.num_workers)]
        while shares:
            for share in list(shares):
                try:
                    yield next(share)
                except StopIteration:
                    shares.remove(share)


def _share(dataset, worker, num_workers):
    """What one worker gives; the dataset asks for its number at the first item."""
    _worker.info = SimpleNamespace(num_workers=num_workers, id=worker)
    items = iter(dataset)
    first = next(items, None)
    _worker.info = None
    return _after(first, items)


def _after(first, items):
    if first is not None:
        yield first
        yield from items


_worker = threading.local()


def ranks(make_pools, world, start=None, steps=None, workers=0):
    """What each of ``world`` processes gets, all of them run as threads: a list of batches, or an error."""
    together = Together(world)
    results = [None] * world

    def work(rank):
        dataset = make_pools(rank)
        dataset.repeat = steps is not None
        loader = SimulatedWorkers(
            dataset,
            lambda: start or start_of(0, dataset.num_lanes),
            rank,
            world,
            workers,
            agree=lambda flags: together(rank, flags),
        )
        try:
            found = []
            for batch in loader:
                found.append(batch)
                if len(found) == steps:
                    break
            results[rank] = found
        except CorpusError as error:
            results[rank] = error

    def info():
        return getattr(_worker, "info", None)

    with patch.object(pools, "get_worker_info", info):
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return results


def texts(batch):
    """The sentences of a batch."""
    return tuple("".join(map(chr, row[1 : row.index(3)])) for row in batch.tgt.tolist() if any(row))


def sequence(results):
    """The batches of all processes in the one order that they share, without the empty ones."""
    return [texts(batch) for step in zip(*results, strict=True) for batch in step if texts(batch)]
