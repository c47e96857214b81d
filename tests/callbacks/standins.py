"""Small stand-ins for the module and the data module, so that the callbacks are tested on their own."""

from collections.abc import Iterator

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lit_transformer.interfaces import Hypothesis, Search, TranslationBatch
from lit_transformer.vocabulary import EOS_ID, PAD_ID

SENTENCES = [
    ("the cat sat on the mat", "die Katze saß auf der Matte"),
    ("a dog runs in the park", "ein Hund läuft im Park"),
    ("two men are talking", "zwei Männer reden"),
    ("the sun is shining today", "die Sonne scheint heute"),
    ("she reads a [b]book[/b]", "sie liest ein Buch"),
    ("we drink tea in the morning", "wir trinken morgens Tee"),
    ("he did not see the sea", "er hat das Meer nicht gesehen"),
]
# What the stand-in module "translates": close to the references, but not equal, and one of them empty.
TRANSLATIONS = [
    "die Katze saß auf einer Matte",
    "ein Hund läuft in dem Park",
    "zwei Männer reden",
    "die Sonne scheint",
    "sie liest ein Buch .",
    "",
    "er hat den See nicht gesehen",
]


class Words:
    """A tokenizer of whole words."""

    def __init__(self) -> None:
        words = {word for line in [*TRANSLATIONS, *(src for src, _ in SENTENCES)] for word in line.split()}
        self.words = ["<pad>", "<unk>", "<s>", "</s>", *sorted(words)]

    def encode(self, text: str) -> list[int]:
        return [self.words.index(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(self.words[i] for i in ids)


class Batches(IterableDataset[TranslationBatch]):
    """Batches of sentences, dealt over the processes in turn, longest sentences first."""

    def __init__(self, batch_size: int, rank: int, world_size: int) -> None:
        order = sorted(range(len(SENTENCES)), key=lambda i: -len(SENTENCES[i][0]))
        self.cuts = [order[i : i + batch_size] for i in range(0, len(order), batch_size)][rank::world_size]

    def __iter__(self) -> Iterator[TranslationBatch]:
        words = Words()
        for cut in self.cuts:
            rows = [torch.tensor([*words.encode(SENTENCES[i][0]), EOS_ID]) for i in cut]
            src = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD_ID)
            sources, references = ([SENTENCES[i][side] for i in cut] for side in (0, 1))
            yield TranslationBatch(src, src[:, :0], sources, references, indices=list(cut))


class Data(L.LightningDataModule):
    def __init__(self, batch_size: int = 3, num_train_batches: int = 12) -> None:
        super().__init__()
        self.batch_size, self.num_train_batches = batch_size, num_train_batches
        self.tokenizer = Words()

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.ones(self.num_train_batches, 1), batch_size=1)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[TranslationBatch]:
        assert self.trainer is not None
        batches = Batches(self.batch_size, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(batches, batch_size=None)

    test_dataloader = predict_dataloader = val_dataloader


class Module(L.LightningModule):
    """Trains one number and translates by heart."""

    def __init__(self, lr: float = 0.5, num_groups: int = 1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(2)) for _ in range(num_groups))
        self.generated: list[int] = []
        self.rates: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return sum((weight - batch).square().sum() for weight in self.weights)  # type: ignore[return-value]

    def validation_step(self, batch: TranslationBatch, batch_idx: int) -> None: ...

    def test_step(self, batch: TranslationBatch, batch_idx: int) -> None: ...

    def predict_step(self, batch: TranslationBatch, batch_idx: int) -> list[list[Hypothesis]]:
        return self.generate(batch.src)

    def generate(self, src: Tensor, search: Search | None = None) -> list[list[Hypothesis]]:
        self.generated.append(len(src))
        words = Words()
        known = {source: text for (source, _), text in zip(SENTENCES, TRANSLATIONS, strict=True)}
        texts = [known[words.decode([i for i in row if i > EOS_ID])] for row in src.tolist()]
        return [[Hypothesis(words.encode(t), -1.5, -0.5), Hypothesis([4], -9.0, -3.0)] for t in texts]

    def optimizer_step(self, *args: object, **kwargs: object) -> None:
        optimizer = self.optimizers()
        assert isinstance(optimizer, torch.optim.Optimizer | L.pytorch.core.optimizer.LightningOptimizer)
        self.rates.append(float(optimizer.param_groups[0]["lr"]))
        super().optimizer_step(*args, **kwargs)  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [{"params": [w], "lr": self.hparams["lr"] / 2**i} for i, w in enumerate(self.weights)]
        return torch.optim.Adam(groups, lr=self.hparams["lr"])


def trainer(*callbacks: L.Callback, **options: object) -> L.Trainer:
    """A quiet trainer on one CPU process."""
    quiet = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False}
    quiet |= {"enable_checkpointing": False, "enable_model_summary": False}
    return L.Trainer(callbacks=list(callbacks), **(quiet | options))  # type: ignore[arg-type]
