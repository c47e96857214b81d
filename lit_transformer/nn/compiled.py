"""The decoder's step compiled by the machine's C compiler: for few sentences, where starting operations costs the most.

Of a small network one step is some eighty operations of torch, each of which takes longer to start than to work. Here a
step is one call into ``decoder_step.c``, which any C compiler builds within a second or two; the result is kept in the
user's cache folder. Reference: :class:`PreparedTransformer`, which also reads the source.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_transformer.interfaces import DecoderState, InputError, TranslationNetwork
from lit_transformer.nn.decoder import SentenceRows
from lit_transformer.nn.inference import PreparedState, PreparedTransformer
from lit_transformer.nn.obstacles import (
    ACTIVATION_KINDS,
    compile_obstacle,
    decoder_layers,
    own_feed_forward,
    residuals,
    sizes_of,
)
from lit_transformer.nn.products import Precision
from lit_transformer.nn.transformer import Transformer

_SOURCE = Path(__file__).with_name("decoder_step.c")
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fopenmp-simd", "-fno-math-errno", "-shared", "-fPIC")
_PANEL = 64  # as in the source


class _Product(Structure):
    _fields_ = [
        ("weight", c_void_p), ("scale", c_void_p), ("sums", c_void_p), ("bias", c_void_p),
        ("inputs", c_int64), ("outputs", c_int64),
    ]  # fmt: skip


class _Norm(Structure):
    _fields_ = [("weight", c_void_p), ("bias", c_void_p), ("epsilon", c_double), ("is_there", c_int64)]


_PRODUCTS = ("query_key_value", "self_output", "cross_query", "cross_output", "inner", "outer")
_NORMS = ("self_norm", "cross_norm", "forward_norm")


class _Layer(Structure):
    _fields_ = [*((name, _Product) for name in _PRODUCTS), *((name, _Norm) for name in _NORMS)]


_SIZES = ("num_layers", "d_model", "d_ff", "num_heads", "d_k", "d_v", "is_pre_norm", "activation")


class _Decoder(Structure):
    _fields_ = [
        ("layers", POINTER(_Layer)), ("projection", _Product), ("final_norm", _Norm),
        *((name, c_int64) for name in _SIZES),
    ]  # fmt: skip


class _State(Structure):
    _fields_ = [
        ("past", c_void_p), ("memory", c_void_p), ("mask", c_void_p), ("owners", c_void_p),
        *((name, c_int64) for name in ("num_rows", "num_sentences", "src_length", "position")),
    ]  # fmt: skip


class CompiledTransformer(TranslationNetwork):
    """A trained :class:`Transformer` whose decoding steps are compiled code, for one thread.

    ``start`` and ``step`` give the scores that the network's own give, up to rounding. Weights that change afterwards
    do not count: see ``is_current``.

    Args:
        network: The trained network, in evaluation mode.
        precision: Of weights and arithmetic, ``float32`` or ``int8``.

    Raises:
        ValueError: If the network cannot be compiled, see :func:`compile_obstacle`.
        InputError: If there is no C compiler, or it cannot build the step.
    """

    def __init__(self, network: TranslationNetwork, precision: Precision = "float32") -> None:
        super().__init__()
        self.prepared = PreparedTransformer(network, precision)
        reason = compile_obstacle(network, precision)
        if reason is not None:
            raise ValueError(f"the network cannot be compiled: {reason}")
        assert isinstance(network, Transformer)
        self.vocab_size, self.max_length = network.vocab_size, network.max_length
        self._run = _library().decoder_step
        self._kept: list[object] = []  # what the structures point to
        self._decoder = self._fill(network, precision)
        self._width = self._decoder.num_heads * (self._decoder.d_k + self._decoder.d_v)

    def is_current(self) -> bool:
        """Whether the network still has the weights that were copied; see :meth:`PreparedTransformer.is_current`."""
        return self.prepared.is_current()

    def forward(self, src: Int[Tensor, "B S"], tgt_input: Int[Tensor, "B T"]) -> Float[Tensor, "B T V"]:
        """Scores (logits) ``(B, T, V)`` from the plain network."""
        return self.prepared(src, tgt_input)  # type: ignore[no-any-return]

    @torch.no_grad()
    def start(self, src: Int[Tensor, "B S"]) -> CompiledState:
        """Reads the source ids ``(B, S)`` once; the state has one row for each sentence."""
        with torch.autocast("cpu", enabled=False):  # the source is read as float32
            memory, mask = self.prepared.read(src)
            both = [layer.cross_key_value(memory) for layer in self.prepared.decoder_layers]
            return CompiledState(torch.stack(both).float().contiguous(), None if mask is None else mask.contiguous())

    @torch.no_grad()
    def step(self, tokens: Int[Tensor, "R"], state: DecoderState) -> tuple[Float[Tensor, "R V"], CompiledState]:
        """Scores ``(R, V)`` of the token that follows ``tokens``, and the state that remembers them.

        Args:
            tokens: The newest token of each row, ``(R,)``; BOS in the first step.
            state: From ``start`` or the step before; changed in place.

        Raises:
            TypeError: If the state comes from another kind of network.
            ValueError: If the state has another number of rows, or comes from a network of other sizes.
        """
        if not isinstance(state, CompiledState):
            raise TypeError(f"step needs the CompiledState that start returned, got {type(state).__name__}")
        self._check(tokens, state)
        with torch.autocast("cpu", enabled=False):
            x = self.prepared.embed(tokens, state.length).float().contiguous()
        x = x.view(len(tokens), self._decoder.d_model)
        past = state.past.room(self._decoder.num_layers, len(tokens), self._width, x)
        logits = x.new_empty(len(tokens), self.vocab_size)
        self._run(ctypes.byref(self._decoder), ctypes.byref(state.pointers(past)), x.data_ptr(), logits.data_ptr())
        state.length = state.past.length = state.length + 1
        return logits, state

    def _check(self, tokens: Tensor, state: CompiledState) -> None:
        """Nobody checks bounds once the compiled code runs."""
        num_rows = len(state.rows.owners)
        if tokens.shape != (num_rows,):
            raise ValueError(
                f"step needs one token for each row of the state, ({num_rows},), got {tuple(tokens.shape)}"
            )
        num_layers, width = state.memory.size(0), state.memory.size(3)
        if (num_layers, width) != (self._decoder.num_layers, self._width):
            raise ValueError(
                f"step needs a state of its own network, with {self._decoder.num_layers} layers of {self._width} "
                f"features, got {num_layers} of {width}"
            )

    def _fill(self, network: Transformer, precision: Precision) -> _Decoder:
        layers = decoder_layers(network)
        ours = (_Layer * len(layers))()
        for layer, filled in zip(layers, ours, strict=True):
            back, source, forward = layer.self_attention, layer.cross_attention, own_feed_forward(layer)
            linears = [[back.query, back.key, back.value], [back.output], [source.query], [source.output]]
            for name, parts in zip(_PRODUCTS, [*linears, [forward.inner], [forward.outer]], strict=True):
                setattr(filled, name, self._product(parts, precision))
            for name, residual in zip(_NORMS, residuals(layer), strict=True):
                setattr(filled, name, self._norm(residual.norm))
        sizes = (*sizes_of(layers[0]), ACTIVATION_KINDS.index(type(own_feed_forward(layers[0]).activation)))
        projection, final_norm = self._product([network.projection], precision), self._norm(network.decoder.final_norm)
        return _Decoder(ours, projection, final_norm, len(layers), *sizes)

    def _product(self, linears: list[nn.Linear], precision: Precision) -> _Product:
        weight = torch.cat([linear.weight.detach() for linear in linears]).float()
        outputs, inputs = weight.shape
        scale = sums = bias = None
        if any(linear.bias is not None for linear in linears):
            parts = [weight.new_zeros(n.out_features) if n.bias is None else n.bias.detach().float() for n in linears]
            bias = torch.cat(parts)
        depth = 1
        if precision == "int8":
            depth, scale = 4, weight.abs().amax(dim=1).clamp_min(1e-12) / 127
            weight = (weight / scale.unsqueeze(1)).round().to(torch.int8)
            sums = weight.sum(dim=1, dtype=torch.int32)
        room = torch.nn.functional.pad(weight, (0, -inputs % depth, 0, -outputs % _PANEL))
        panels = room.view(-1, _PANEL, room.size(1) // depth, depth).transpose(1, 2).contiguous()
        return _Product(*map(self._pointer, (panels, scale, sums, bias)), inputs, outputs)

    def _norm(self, norm: nn.Module | None) -> _Norm:
        if norm is None:
            return _Norm()
        assert isinstance(norm, nn.LayerNorm)
        return _Norm(self._pointer(norm.weight), self._pointer(norm.bias), norm.eps, 1)

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        if tensor.dtype.is_floating_point:
            tensor = tensor.detach().float().contiguous()
        self._kept.append(tensor)
        return tensor.data_ptr()


class CompiledState(PreparedState):
    """What the compiled decoder remembers between two steps; ``step`` and ``select`` change it in place.

    Args:
        memory: The source's keys and values in all layers, ``(layers, N, S, H * (d_k + d_v))``.
        mask: ``(N, 1, 1, S)``, True at real source tokens; None if all are.
    """

    def __init__(self, memory: Tensor, mask: Tensor | None) -> None:
        num_sentences = memory.size(1)
        super().__init__([], mask, SentenceRows(list(range(num_sentences)), num_sentences))
        self.memory = memory
        self._owners: tuple[SentenceRows | None, Tensor | None] = (None, None)

    def pointers(self, past: Tensor) -> _State:
        """Where everything lies in memory, the ``past`` of a :class:`PastTokens` among it."""
        rows = self.rows
        if self._owners[0] is not rows:
            self._owners = (rows, torch.tensor(rows.owners))
        mask, owners = self.mask, self._owners[1]
        assert owners is not None
        return _State(
            past.data_ptr(),
            self.memory.data_ptr(),
            None if mask is None else mask.data_ptr(),
            owners.data_ptr(),
            len(owners),
            self.memory.size(1),
            self.memory.size(2),
            self.length,
        )

    def _select_sentences(self, sentences: Int[Tensor, "N"]) -> None:
        super()._select_sentences(sentences)
        self.memory = self.memory.index_select(1, sentences)


def _library() -> ctypes.CDLL:
    """The compiled step, from the cache or built now.

    Raises:
        InputError: If there is no C compiler, it fails, or the cache cannot be used or is not the user's own.
    """
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    compiler = next((found for name in names if (found := shutil.which(name))), None)
    if compiler is None or sys.platform == "win32":
        raise InputError("compiled steps need a C compiler (gcc or clang) on Linux or macOS; install one or do without")
    machine = f"{platform.machine()} {_processor()} {compiler} {' '.join(_FLAGS)}"
    key = hashlib.sha256(_SOURCE.read_bytes() + machine.encode()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit-transformer"
    target = cache / f"decoder_step-{key}.so"
    try:
        library = _load(target) or _build(compiler, target)
    except OSError as error:
        raise InputError(f"the compiled step cannot be kept in {cache} ({error}); set XDG_CACHE_HOME") from None
    library.decoder_step.argtypes = [c_void_p, c_void_p, c_void_p, c_void_p]
    library.decoder_step.restype = None
    return library


def _load(target: Path) -> ctypes.CDLL | None:
    """What is in the cache, if it is there and whole."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    _check_owner(target.parent)
    if not target.is_file():
        return None
    _check_owner(target)
    try:
        return ctypes.CDLL(str(target))
    except OSError:  # damaged
        target.unlink(missing_ok=True)
        return None


def _check_owner(path: Path) -> None:
    """Code is loaded only from where nobody else can have put it."""
    found = path.stat()
    if found.st_uid not in (0, os.getuid()) or found.st_mode & 0o022:
        raise InputError(
            f"the compiled step is not loaded from {path}, which another user owns or others can write to; "
            "remove it or set XDG_CACHE_HOME to a folder of your own"
        )


def _build(compiler: str, target: Path) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        built = Path(folder) / target.name
        command = [compiler, *_FLAGS, "-o", str(built), str(_SOURCE), "-lm"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = next((line for line in done.stderr.splitlines() if "error" in line), "no message")
            raise InputError(f"{compiler} cannot build the compiled step: {reason}")
        built.chmod(0o700)
        built.replace(target)  # nobody meets half a file
    return ctypes.CDLL(str(target))


def _processor() -> str:
    """What tells processors with different instructions apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
