"""The programs that are measured: each trains the same sizes on the same ids, one step at a time.

``make(name, size, precision, device)`` gives a function that takes a batch of ids and makes one optimizer step.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_transformer import InverseSqrtWarmup, LitTransformer, Transformer
from lit_transformer.interfaces import TranslationBatch
from lit_transformer.vocabulary import BOS_ID, EOS_ID, PAD_ID

Step = Callable[[TranslationBatch], Tensor]
SMOOTHING = 0.1


@dataclass(frozen=True)
class Size:
    """A network and its training: the same for every contestant."""

    num_layers: int
    d_model: int
    d_ff: int
    num_heads: int
    dropout: float
    vocab_size: int = 10_000

    def flops(self, batch: TranslationBatch) -> float:
        """Floating-point operations of a training step on real tokens: products of matrices, nothing else."""
        d, layers = self.d_model, self.num_layers
        src, tgt = ((ids != PAD_ID).sum(1).double() for ids in (batch.src, batch.labels))
        per_src = layers * (4 * d * d + 2 * d * self.d_ff) + layers * 2 * d * d  # the last: cross-attention's k and v
        per_tgt = layers * (6 * d * d + 2 * d * self.d_ff) + self.vocab_size * d
        attention = 2 * layers * d * (src * src + tgt * tgt + src * tgt)
        return float(6 * (src * per_src + tgt * per_tgt + attention).sum())


SIZES = {
    "base": Size(6, 512, 2048, 8, 0.1),
    "big": Size(6, 1024, 4096, 16, 0.3),
    "tiny": Size(4, 128, 256, 4, 0.3),
    "toy": Size(1, 16, 32, 2, 0.1),  # only to see the script run
}


def make(name: str, size: Size, precision: str, device: str, devices: int = 1) -> Step:
    """The bare training step of ``ours``, ``torch`` (``torch.nn.Transformer``) or ``hf`` (Hugging Face Marian).

    With several devices it is the step of this process among so many, each of which has its own batches.
    """
    if name == "ours":
        module = build_ours(size)
        loss_of: nn.Module = OurLoss(module).to(device).train()
        optimizer: Any = module.configure_optimizers()
    else:
        loss_of = LossOfLogits(Textbook(size) if name == "torch" else build_marian(size)).to(device).train()
        optimizer = torch.optim.Adam(loss_of.parameters(), lr=1e-4, betas=(0.9, 0.98), eps=1e-9)
    if devices > 1:
        loss_of = nn.parallel.DistributedDataParallel(loss_of)

    def step(batch: TranslationBatch) -> Tensor:
        batch = batch.to(device)
        optimizer.zero_grad()
        with _autocast(device, precision):
            loss: Tensor = loss_of(batch)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


class OurLoss(nn.Module):
    """The training step of our module, as the Trainer calls it."""

    def __init__(self, module: LitTransformer) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: TranslationBatch) -> Tensor:
        return self.module.training_step(batch, 0)


class LossOfLogits(nn.Module):
    """What others do with the logits of a network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: TranslationBatch) -> Tensor:
        logits = self.network(batch).float().flatten(0, 1)
        return F.cross_entropy(logits, batch.labels.flatten(), ignore_index=PAD_ID, label_smoothing=SMOOTHING)


def _autocast(device: str, precision: str) -> AbstractContextManager[Any]:
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


def build_ours(size: Size) -> LitTransformer:
    """The module as its users build it, at a learning rate that keeps losses falling."""
    network = Transformer(
        size.vocab_size,
        num_layers=size.num_layers,
        d_model=size.d_model,
        d_ff=size.d_ff,
        num_heads=size.num_heads,
        dropout=size.dropout,
    )
    return LitTransformer(
        network, SMOOTHING, lambda parameters: torch.optim.Adam(parameters, lr=1e-4, betas=(0.9, 0.98), eps=1e-9)
    )


def train_by_trainer(
    size: Size,
    precision: str,
    device: str,
    devices: int,
    batches: Iterator[TranslationBatch],
    after_step: Callable[[Any], None],
) -> None:
    """Our module under the Trainer as ``fit`` sets it up, with its log, progress bar and callbacks."""
    import lightning as L
    from lightning.pytorch.callbacks import LearningRateMonitor
    from lightning.pytorch.loggers import CSVLogger

    from lit_transformer.callbacks.progress import TrainingProgress
    from lit_transformer.data.position import StreamPosition

    class AfterStep(L.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            after_step(outputs["loss"])

    class Endless(torch.utils.data.IterableDataset[TranslationBatch]):
        def __iter__(self) -> Iterator[TranslationBatch]:
            return batches

    stream = SimpleNamespace(seed=1, cursor={}, dropped=Counter())
    callbacks = [StreamPosition(stream), InverseSqrtWarmup(), LearningRateMonitor("step"), TrainingProgress()]
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="gpu" if device == "cuda" else device,
            devices=devices,
            strategy="ddp" if devices > 1 else "auto",
            use_distributed_sampler=False,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            max_steps=1_000_000,
            callbacks=[*callbacks, AfterStep()],
            logger=CSVLogger(folder),
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        trainer.fit(build_ours(size), torch.utils.data.DataLoader(Endless(), batch_size=None))


def train_by_seq2seq_trainer(
    size: Size, precision: str, device: str, batches: Iterator[TranslationBatch], after_step: Callable[[Any], None]
) -> None:
    """Hugging Face Marian under the Seq2SeqTrainer of transformers, without logs and checkpoints."""
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainerCallback

    losses = []

    class Rows(torch.utils.data.IterableDataset[dict[str, Tensor]]):
        def __iter__(self) -> Iterator[dict[str, Tensor]]:
            for batch in batches:
                mask, labels = (batch.src != PAD_ID).long(), batch.labels.masked_fill(batch.labels == PAD_ID, -100)
                inputs = {"input_ids": batch.src, "attention_mask": mask, "decoder_input_ids": batch.tgt_input}
                yield {**inputs, "labels": labels}

    class Training(Seq2SeqTrainer):
        def get_train_dataloader(self) -> torch.utils.data.DataLoader[dict[str, Tensor]]:
            return torch.utils.data.DataLoader(Rows(), batch_size=None)

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            losses.append(super().training_step(*args, **kwargs))
            return losses[-1]

    class AfterStep(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            after_step(losses.pop())

    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            output_dir=folder,
            use_cpu=device == "cpu",
            bf16=precision == "bf16",
            label_smoothing_factor=SMOOTHING,
            learning_rate=1e-4,
            adam_beta2=0.98,
            adam_epsilon=1e-9,
            max_steps=1_000_000,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        network: Any = build_marian(size)
        Training(network.network, arguments, train_dataset=Rows(), callbacks=[AfterStep()]).train()


class Textbook(nn.Module):
    """``torch.nn.Transformer`` with embeddings and waves, as tutorials set it up."""

    def __init__(self, size: Size, longest: int = 512) -> None:
        super().__init__()
        d = size.d_model
        self.embedding = nn.Embedding(size.vocab_size, d, padding_idx=PAD_ID)
        nn.init.normal_(self.embedding.weight, std=d**-0.5)
        layers = size.num_layers
        self.body = nn.Transformer(d, size.num_heads, layers, layers, size.d_ff, size.dropout, batch_first=True)
        self.dropout = nn.Dropout(size.dropout)
        angles = torch.arange(longest)[:, None] * torch.exp(torch.arange(0, d, 2) * (-math.log(10_000) / d))
        self.register_buffer("waves", torch.stack((angles.sin(), angles.cos()), -1).flatten(1))

    def forward(self, batch: TranslationBatch) -> Tensor:
        length, padding = batch.tgt_input.size(1), batch.src == PAD_ID
        causal = torch.ones(length, length, dtype=torch.bool, device=batch.src.device).triu(1)
        features = self.body(
            self._embed(batch.src),
            self._embed(batch.tgt_input),
            tgt_mask=causal,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
            tgt_is_causal=True,
        )
        return features @ self.embedding.weight.T

    def _embed(self, ids: Tensor) -> Tensor:
        vectors = self.embedding(ids) * self.embedding.embedding_dim**0.5
        return self.dropout(vectors + self.waves[: ids.size(1)])


def build_marian(size: Size) -> nn.Module:
    """Hugging Face's MarianMTModel of the same size, with the fastest attention that it offers."""
    from transformers import MarianConfig, MarianMTModel

    config = MarianConfig(
        vocab_size=size.vocab_size,
        d_model=size.d_model,
        encoder_layers=size.num_layers,
        decoder_layers=size.num_layers,
        encoder_ffn_dim=size.d_ff,
        decoder_ffn_dim=size.d_ff,
        encoder_attention_heads=size.num_heads,
        decoder_attention_heads=size.num_heads,
        activation_function="relu",
        dropout=size.dropout,
        attention_dropout=0.0,
        activation_dropout=0.0,
        max_position_embeddings=512,
        scale_embedding=True,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        decoder_start_token_id=BOS_ID,
        forced_eos_token_id=None,
        init_std=size.d_model**-0.5,
        attn_implementation="sdpa",
    )

    class Marian(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = MarianMTModel(config)

        def forward(self, batch: TranslationBatch) -> Tensor:
            mask, ids = (batch.src != PAD_ID).long(), batch.tgt_input
            return self.network(batch.src, attention_mask=mask, decoder_input_ids=ids, use_cache=False).logits

    return Marian()
