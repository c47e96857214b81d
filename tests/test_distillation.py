"""Knowledge distillation: the loss of its papers by definition, in value and gradients, and a run by configuration."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from command_line import lit, tiny_project
from test_gradient import CUTS, OPTIMIZERS, SIZES, Losses, Steps, batch, sentences, train, weights
from test_rdrop import TwoViews
from torch import Tensor
from torch.nn import functional as F

from lit_transformer import (
    DistilledTransformer,
    LitTransformer,
    TeachingCorpus,
    Transformer,
    TranslationDataModule,
    Translator,
)
from lit_transformer import loss as loss_module
from lit_transformer.interfaces import InputError, TranslationBatch
from lit_transformer.loss import Shortlist, Teacher, smoothed_cross_entropy
from lit_transformer.teacher_memory import TeacherMemory

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no")
N, V, D = 14, 11, 6


def by_definition(logits: Tensor, labels: Tensor, teachers: list[Tensor], weight: float) -> Tensor:
    """Two cross-entropies of torch: one against the labels, one against the mean distribution."""
    target = sum(one.softmax(-1) for one in teachers) / len(teachers)
    hard = F.cross_entropy(logits, labels, label_smoothing=0.1)
    return (1 - weight) * hard + weight * F.cross_entropy(logits, target)


@pytest.mark.parametrize("agreement", [None, 1.7])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("rows", "part"), [(2, 2), (10, 4), (200, 200)])
def test_in_chunks_it_has_the_value_and_gradients_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, rows: int, part: int, weight: float, agreement: float | None
) -> None:
    monkeypatch.setattr(loss_module, "_CPU_ROWS", 0)
    monkeypatch.setattr(loss_module, "_CPU_CHUNK", rows * V * 8)
    monkeypatch.setattr(loss_module, "_CPU_SLICE", part * V)
    tokens, copies = (N, 1) if agreement is None else (N // 2, 2)
    x, w, other, output = (torch.randn(size, D, dtype=torch.float64) for size in (N, V, tokens, V))
    x, w, labels = x.requires_grad_(), w.requires_grad_(), torch.randint(V, (N // 2,)).repeat(2)
    teachers = [Teacher(other, output), Teacher(torch.randn(tokens, V, dtype=torch.float64))]

    def chunked(x: Tensor, w: Tensor) -> Tensor:
        return smoothed_cross_entropy(x, w, labels, 0.1, agreement, teachers, weight).loss

    found = chunked(x, w)
    expected = by_definition(
        x @ w.T, labels, [one.repeat(copies, 1) for one in (other @ output.T, teachers[1].features)], weight
    )
    if agreement is not None:
        expected = expected + agreement * divergence_of_halves(x @ w.T)
    torch.testing.assert_close(found, expected)
    gradients = zip(torch.autograd.grad(3 * found, (x, w)), torch.autograd.grad(3 * expected, (x, w)), strict=True)
    for mine, reference in gradients:
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)
    assert torch.autograd.gradcheck(chunked, (x, w))


@pytest.mark.parametrize("agreement", [None, 1.7])
@pytest.mark.parametrize(("rows", "part"), [(2, 2), (10, 4), (200, 200)])
def test_a_shortlist_counts_as_what_it_stands_for(
    monkeypatch: pytest.MonkeyPatch, rows: int, part: int, agreement: float | None
) -> None:
    monkeypatch.setattr(loss_module, "_CPU_ROWS", 0)
    monkeypatch.setattr(loss_module, "_CPU_CHUNK", rows * V * 8)
    monkeypatch.setattr(loss_module, "_CPU_SLICE", part * V)
    copies = 1 if agreement is None else 2
    x = torch.randn(N * copies, D, dtype=torch.float64, requires_grad=True)
    w = torch.randn(V, D, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(V, (N,)).repeat(copies)
    few = Shortlist(torch.rand(N, V).argsort(1)[:, :3], torch.rand(N, 3, dtype=torch.float64) / 4)
    target = torch.zeros(N, V, dtype=torch.float64)
    for row in range(N):
        target[row] += (1 - few.probs[row].sum()) / V
        for token, prob in zip(few.tokens[row], few.probs[row], strict=True):
            target[row, token] += prob
    torch.testing.assert_close(few.spread(V), target)
    found = smoothed_cross_entropy(x, w, labels, 0.1, agreement, few, 0.3).loss
    expected = by_definition(x @ w.T, labels, [target.repeat(copies, 1).log()], 0.3)
    if agreement is not None:
        expected = expected + agreement * divergence_of_halves(x @ w.T)
    torch.testing.assert_close(found, expected)
    gradients = zip(torch.autograd.grad(3 * found, (x, w)), torch.autograd.grad(3 * expected, (x, w)), strict=True)
    for mine, reference in gradients:
        torch.testing.assert_close(mine, reference, rtol=1e-9, atol=1e-12)


def divergence_of_halves(logits: Tensor) -> Tensor:
    """Half of the two divergences between the rows of both passes."""
    p, q = (each.log_softmax(-1) for each in logits.chunk(2))
    both = [F.kl_div(b, a, log_target=True, reduction="batchmean") for a, b in ((p, q), (q, p))]
    return sum(both) / 2  # type: ignore[return-value]


class ByLogits(DistilledTransformer):
    """Takes the way through the logits, as networks of one's own do."""

    def forward(self, src: Tensor, tgt_input: Tensor) -> Tensor:
        return super().forward(src, tgt_input)


class OwnTeacher(Transformer):
    """A teacher of which nothing is known but its logits."""

    def forward(self, src: Tensor, tgt_input: Tensor) -> Tensor:
        return super().forward(src, tgt_input) * 2


def teachers(**changes: Any) -> list[Transformer]:
    torch.manual_seed(7)
    settings = {**SIZES, "d_ff": 24, **changes}
    made = [Transformer(**settings), OwnTeacher(**settings), Transformer(**settings, output_bias=True)]
    torch.nn.init.normal_(made[-1].projection.bias)  # the output layer of OPUS models
    return [one.eval().requires_grad_(False) for one in made]


def make(kind: type[LitTransformer] = DistilledTransformer, **settings: Any) -> Any:
    torch.manual_seed(5)
    module: Any = kind(Transformer(**SIZES), optimizer=OPTIMIZERS["sgd"], **settings)
    return module


def loss_by_hand(network: Transformer, whole: Any, weight: float) -> Tensor:
    real, both = whole.labels != 0, (whole.src, whole.tgt_input)
    taught = [one.to(network.projection.weight.dtype)(*both)[real] for one in teachers()]
    return by_definition(network.train()(*both)[real], whole.labels[real], taught, weight)


@pytest.mark.parametrize("kind", [DistilledTransformer, ByLogits])
def test_the_loss_is_that_of_the_papers(kind: type[LitTransformer]) -> None:
    module, whole = make(kind, teachers=["unread"], teacher_weight=0.7).double(), batch(sentences(9))
    module._networks = [one.double() for one in teachers()]
    found, expected = module.compute_loss(whole), loss_by_hand(module.network, whole, 0.7)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.nll, make(LitTransformer).double().compute_loss(whole).nll)
    parameters = list(module.parameters())
    for mine, reference in zip(
        torch.autograd.grad(found.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, reference)
    module.eval()
    torch.testing.assert_close(module.compute_loss(whole), LitTransformer.compute_loss(module, whole))


@pytest.mark.parametrize("kind", [DistilledTransformer, ByLogits])
def test_with_r_drop_the_student_passes_twice_and_its_teachers_once(kind: type[LitTransformer]) -> None:
    torch.manual_seed(5)
    module: Any = kind(TwoViews(**SIZES), teachers=["unread"], teacher_weight=0.7, alpha=3.0).double()
    whole, asked = batch(sentences(9)), teachers()
    real, module._networks = whole.labels != 0, [one.double() for one in asked]
    found = module.compute_loss(whole)
    said = [one(whole.src, whole.tgt_input)[real].repeat(2, 1) for one in asked]
    src, tgt_input, real, labels = (one.repeat(2, 1) for one in (whole.src, whole.tgt_input, real, whole.labels))
    logits = module.network.train()(src, tgt_input)[real]
    expected = by_definition(logits, labels[real], said, 0.7) + 3.0 / 2 * divergence_of_halves(logits)
    torch.testing.assert_close(found.loss, expected)
    assert found.loss > by_definition(logits, labels[real], said, 0.7) + 0.001
    parameters = list(module.parameters())
    for mine, reference in zip(
        torch.autograd.grad(found.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_any_cut_into_micro_batches_gives_the_same_weights(cuts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    read = iter([one.requires_grad_().train() for one in teachers(dropout=0.5)])  # as they are read
    monkeypatch.setattr(
        "lit_transformer.distillation.read_model", lambda path: (next(read), SimpleNamespace(fingerprint=""))
    )
    module, losses = make(teachers=["one", "two", "three"]), Losses()
    train(module, Steps(cuts), accumulate_grad_batches=len(cuts) + 1, callbacks=[losses])
    network = make().network
    rule, expected = OPTIMIZERS["sgd"](network.parameters()), []
    for whole in Steps([]):
        rule.zero_grad()
        loss = loss_by_hand(network, whole, 0.5)
        loss.backward()
        rule.step()
        expected.append(loss.item())
    assert torch.allclose(weights(module), weights(network), atol=3e-5)
    assert losses.logged == pytest.approx(expected, rel=1e-5)


def test_with_memory_any_cut_gives_the_same_weights_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Among the cuts are batches without a token, as a process gets them that has no text left."""
    found = []
    for cuts in ([], [0, 5, 6, 12]):
        monkeypatch.setattr(
            "lit_transformer.distillation.read_model", lambda path: (teachers()[0], SimpleNamespace(fingerprint=""))
        )
        module = make(teachers=["one"], teacher_top_k=5)
        train(module, Steps(cuts), accumulate_grad_batches=len(cuts) + 1)
        found.append(weights(module))
    assert torch.allclose(*found, atol=3e-5)
    nothing = TeacherMemory(5, lambda batch, top_k: Shortlist(torch.empty(0, top_k).long(), torch.empty(0, top_k)))
    assert len(nothing(TranslationBatch(torch.empty(0, 4).long(), torch.empty(0, 3).long())).tokens) == 0


def test_a_copy_of_the_module_has_no_memory() -> None:
    module = make(teachers=["unread"], teacher_top_k=3)
    module._networks = teachers()
    module._memory = TeacherMemory(3, module._ask_for_few)
    module._memory(batch(sentences(4)))
    assert module._memory._known
    assert not copy.deepcopy(module)._memory._known


@pytest.mark.parametrize("kind", [DistilledTransformer, ByLogits])
def test_teachers_are_asked_once_for_each_pair(kind: type[LitTransformer]) -> None:
    module, pairs = make(kind, teachers=["unread"], teacher_top_k=3), sentences(9)
    module._networks, asked = teachers(), []
    for one in module._networks:
        one.register_forward_pre_hook(lambda _, inputs: asked.append(len(inputs[0])))
    memory = TeacherMemory(3, module._ask_for_few)
    memory(batch(pairs[:5]))
    whole = batch(pairs[::-1])  # in another order, and filled up to another length
    asked.clear()
    found = memory(whole)
    assert set(asked) == {4}
    asked.clear()
    with torch.autocast("cpu", torch.bfloat16):  # as in mixed precision
        assert all(map(torch.equal, found, memory(whole)))
    assert not asked
    real = whole.labels != 0
    mean = sum(one(whole.src, whole.tgt_input)[real].softmax(-1) for one in module._networks) / len(module._networks)
    probs, tokens = mean.topk(3, dim=1)
    torch.testing.assert_close(found.probs, probs, rtol=1e-3, atol=1e-6)
    assert torch.equal(found.tokens, tokens)
    module._memory, logits = memory, module.network.train()(whole.src, whole.tgt_input)[real]
    expected = by_definition(logits, whole.labels[real], [found.spread(SIZES["vocab_size"]).log()], 0.5)
    torch.testing.assert_close(module.compute_loss(whole).loss, expected)
    module.double()
    torch.testing.assert_close(module.compute_loss(whole).loss.float(), expected)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="teacher_top_k must be 1 or more, or None, got 0"):
        make(teachers=["one"], teacher_top_k=0)
    with pytest.raises(ValueError, match=r"teacher_weight must be from 0 to 1, got 1\.5"):
        make(teachers=["one"], teacher_weight=1.5)


@pytest.fixture
def student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """How a student is trained in the current folder, which holds the run of a teacher."""
    monkeypatch.chdir(tmp_path)
    fit = "fit", f"--config={tiny_project(tmp_path)}", "--trainer.max_steps=3"
    assert lit(*fit, "--trainer.default_root_dir=teacher").status == 0
    return *fit, "--model=lit_transformer.DistilledTransformer", "--trainer.default_root_dir=student"


def test_a_student_of_a_run(tmp_path: Path, student: tuple[str, ...]) -> None:
    finished = lit(*student, "--model.teachers=[teacher]", "--model.network.d_ff=32", "--model.teacher_top_k=4")
    assert finished.status == 0, finished.err
    path = tmp_path / "student/checkpoints/step=3.ckpt"
    module = DistilledTransformer.load_from_checkpoint(path, weights_only=True)
    assert module.teachers == ["teacher"]
    alone = LitTransformer(Transformer(**module.network.init_args))
    assert torch.load(path, weights_only=True)["state_dict"].keys() == alone.state_dict().keys()
    for options, words in (
        (["--model.teachers=[teacher]", "--data.vocab_size=290"], "other tokens than the data: its vocab_size is 300"),
        (["--model.teachers=[elsewhere]"], "elsewhere"),
        (["--model.teachers=[student/checkpoints]"], "student/checkpoints lies in the folder of this run, student"),
        ([], "has no teachers: name trained models in model.teachers"),
        (
            ["--model.teachers=[teacher]", "--model.teacher_top_k=4", "--data.bpe_dropout=0.1"],
            "and data.bpe_dropout cuts them anew in each pass: leave one of the two out",
        ),
    ):
        finished = lit(*student, *options, "--overwrite=true")
        assert finished.status == 1
        assert words in finished.err
        assert "Traceback" not in finished.err
        assert path.exists()
    lower = ["--data.tokenizer=lit_transformer.SubwordTokenizer", "--data.tokenizer.lowercase=true"]
    other = lit(*student, "--model.teachers=[teacher]", *lower, "--overwrite=true")
    assert (other.status, "the teacher teacher has other tokens than the data" in other.err) == (1, True), other.err


def test_a_teacher_is_no_part_of_copies_and_bfloat16_is_near() -> None:
    module, whole = make(teachers=["unread"], teacher_weight=0.7), batch(sentences(9))
    module._networks.extend(teachers())
    expected = module.compute_loss(whole).loss
    with torch.autocast("cpu", torch.bfloat16):
        found = module.compute_loss(whole).loss
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=0.02)
    assert module._networks
    assert not copy.deepcopy(module)._networks


def test_a_teacher_that_is_too_short_is_refused(monkeypatch: pytest.MonkeyPatch, own_folder: None) -> None:
    corpus = TeachingCorpus("validation", max_rows=50)
    data = TranslationDataModule(train=corpus, vocab_size=600, max_tokens=512)
    data.prepare_data()
    sizes: dict[str, Any] = {"num_layers": 1, "d_model": 8, "d_ff": 16, "num_heads": 2}
    short = Transformer(600, positions="learned", max_length=100, **sizes)
    monkeypatch.setattr("lit_transformer.distillation.read_model", lambda path: (short, data.tokenizer))
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    with pytest.raises(InputError, match=r"the teacher it reads 100 tokens at most, and data\.max_length is 256"):
        trainer.fit(DistilledTransformer(Transformer(600, **sizes), teachers=["it"]), data)


def test_a_student_is_scored_without_its_teachers(tmp_path: Path, student: tuple[str, ...]) -> None:
    assert lit(*student, "--model.teachers=[teacher]").status == 0
    (tmp_path / "teacher").rename(tmp_path / "gone")
    assert lit("test", "--config=student/config.yaml", "--averaging.num_checkpoints=1").status == 0
    assert len(Translator.from_pretrained("student")(["one two"])) == 1
