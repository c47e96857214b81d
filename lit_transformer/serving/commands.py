"""The command ``serve``."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import ipaddress
import logging
import re
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_transformer.command_options import (
    CHECKPOINT_HELP,
    CommandParser,
    add_engine_options,
    add_search_options,
    command_parser,
    device_of,
    finite,
    positive,
    search_settings,
)
from lit_transformer.errors import InputError

if TYPE_CHECKING:
    from lit_transformer.serving.app import ServingApp

logger = logging.getLogger(__name__)


def serve_parser() -> CommandParser:
    """The options of ``serve``."""
    parser = command_parser(
        "serve",
        "Serves a trained model: a web page to translate in, and a JSON API.",
        "The page is at http://HOST:PORT/. For programs (scores are log probabilities over the length penalty):\n\n"
        '  POST /translate   {"text": "I love cats"} or {"texts": [...]}; also n_best, src_tag, attention,\n'
        "                    max_extra_length, no_repeat_ngram_size, no_unknown, prefix (for texts prefixes); answers\n"
        '                    {"results": [{"source": ..., "translations": [{"text": ..., "score": ...}]}]}\n'
        "  GET  /attention   ?text=...&n_best=4, or &target=...: what every head looks at, as a page\n"
        "  GET  /health      200 once the model can translate\n"
        "  GET  /info        model, languages and limits\n\n"
        "Requests that wait together are translated together. What is refused is told in one sentence, as\n"
        '{"error": ...}: 4xx if the request is at fault, 429 if the queue is full, 503 if there was no time; the last\n'
        "two with Retry-After. Ctrl-C or SIGTERM ends the server once the requests under way are answered.\n\n"
        "examples:\n  lit-transformer serve runs/quickstart\n"
        "  lit-transformer serve runs/quickstart --port 8080 --src_lang en --tgt_lang ko --num_workers 2\n"
        "  curl -H 'Content-Type: application/json' -d '{\"text\": \"I love cats\"}' http://127.0.0.1:8000/translate",
    )
    parser.add_argument("checkpoint", help=CHECKPOINT_HELP)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument(
        "--port", type=_port, default=8000, help="port to listen on; 0 takes a free one (default: 8000)"
    )
    parser.add_argument(
        "--public_name",
        action="append",
        default=[],
        type=_host_name,
        metavar="NAME",
        help="name by which people reach a proxy before the server, such as translate.example.org; may be repeated",
    )
    parser.add_argument("--beam_size", type=positive, default=4, help="hypotheses kept; 1 is greedy (default: 4)")
    add_search_options(parser)
    parser.add_argument("--max_length", type=positive, default=512, help="longest text in tokens (default: 512)")
    parser.add_argument("--max_texts", type=positive, default=64, help="texts in one request (default: 64)")
    parser.add_argument("--max_batch_size", type=positive, default=32, help="texts translated together (default: 32)")
    parser.add_argument(
        "--batch_timeout", type=_seconds, default=0.005, help="seconds to wait for a batch to fill (default: 0.005)"
    )
    parser.add_argument("--max_queue", type=positive, default=256, help="texts that may wait (default: 256)")
    parser.add_argument("--timeout", type=_some_seconds, default=30.0, help="seconds for one request (default: 30)")
    add_engine_options(parser)
    parser.add_argument(
        "--num_workers", type=positive, default=1, help="processes that translate, each with the model (default: 1)"
    )
    parser.add_argument(
        "--src_tag",
        metavar="TAG",
        help="put before texts that have no tag and whose request names none, such as '<2de>', for a model trained "
        "with src_tag; '' leaves them as they are (default: they are refused)",
    )
    parser.add_argument("--src_lang", metavar="CODE", type=_lang, help="source language for the page, such as en")
    parser.add_argument("--tgt_lang", metavar="CODE", type=_lang, help="target language for the page, such as ko")
    return parser


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, got {text}")
    return value


def _host_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?", text):
        raise argparse.ArgumentTypeError(f"expected a name such as translate.example.org, got {text}")
    return text


def _seconds(text: str) -> float:
    value = finite(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text}")
    return value


def _some_seconds(text: str) -> float:
    value = finite(text)
    if value <= 0:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return value


def _lang(text: str) -> str:
    if not text.replace("-", "").isalnum() or not text.isascii() or len(text) > 35:
        raise argparse.ArgumentTypeError(f"expected a language code such as en or pt-BR, got {text}")
    return text


def serve(options: argparse.Namespace) -> None:
    """Serves until Ctrl-C or SIGTERM."""
    if importlib.util.find_spec("uvicorn") is None:
        raise InputError('serve needs a package: pip install "lit-transformer[serve]"')
    from lit_transformer.serving.connection import QuietServer

    with _listening(options.host, options.port) as listener:
        host, port = listener.getsockname()[:2]
        app = build_app(options)
        shown = f"[{host}]" if ":" in host else host

        def announce() -> None:
            sys.stdout.write(f"serving {options.checkpoint} at http://{shown}:{port}/ (stop with Ctrl-C)\n")
            sys.stdout.flush()

        if not _is_loopback(host):
            message = "everybody who reaches %s can use this server: there is no password and no encryption"
            logger.warning(message, shown)
        server = QuietServer(app, announce)
        with contextlib.suppress(SystemExit):  # uvicorn's way to say that it has not started
            server.run(sockets=[listener])
        if not server.started and not server.should_exit:
            raise InputError("the server could not be started; the lines above say why")
    sys.stdout.write("stopped\n")


def build_app(options: argparse.Namespace) -> ServingApp:
    """The application that the options of ``serve`` describe.

    Raises:
        CheckpointError: If there is no such file, or it is no checkpoint; the workers load the model when they start.
    """
    import torch

    from lit_transformer import __version__
    from lit_transformer.checkpoints import read_checkpoint
    from lit_transformer.decoding import BeamSearch
    from lit_transformer.model_files import weights_of
    from lit_transformer.serving.app import ServingApp
    from lit_transformer.serving.batcher import Batcher
    from lit_transformer.serving.model import ModelSettings
    from lit_transformer.serving.requests import Limits
    from lit_transformer.serving.timed import TimedSearch
    from lit_transformer.serving.workers import ProcessWorker

    if options.batch_timeout >= options.timeout:
        raise InputError(
            f"--batch_timeout {options.batch_timeout:g} lets every request wait for company until --timeout "
            f"{options.timeout:g} is over; both are seconds, so give it less"
        )
    checkpoint = weights_of(options.checkpoint)  # once, since a run may go on: all workers serve the same weights
    if not checkpoint.is_dir():
        read_checkpoint(checkpoint)  # leaves the weights on disk; what is missing or damaged is told at once
    search_class = TimedSearch if options.engine == "torch" else BeamSearch  # others cannot be interrupted
    settings = ModelSettings(
        checkpoint=str(checkpoint),
        search=search_class(options.beam_size, **search_settings(options)),
        max_length=options.max_length,
        precision=options.precision,
        device=device_of(options),
        num_threads=max(1, torch.get_num_threads() // options.num_workers),
        engine=options.engine,
        run=options.checkpoint,
        src_tag=options.src_tag,
    )
    limits = Limits(
        max_length=options.max_length,
        max_texts=options.max_texts,
        max_n_best=options.beam_size,
        max_extra_length=options.max_extra_length,
    )
    info: dict[str, Any] = {
        "model": {"name": _model_name(Path(options.checkpoint).absolute())},
        "src_lang": options.src_lang,
        "tgt_lang": options.tgt_lang,
        "version": __version__,
    }
    workers = [ProcessWorker(settings, limits) for _ in range(options.num_workers)]
    batcher = Batcher(workers, options.max_batch_size, options.batch_timeout, options.max_queue, options.timeout)
    return ServingApp(batcher, limits, info, _names(options.host), options.public_name)


def _model_name(path: Path) -> str:
    """What people call the model: its folder, or its run and step; never where on this machine it is."""
    if path.is_file() and path.parent.name == "checkpoints":
        return f"{path.parent.parent.name}, {path.stem}"
    return path.name


def _names(host: str) -> frozenset[str] | None:
    """What a server on loopback may be called; None, for anything, elsewhere."""
    return frozenset({"localhost", "127.0.0.1", "[::1]", host.lower()}) if _is_loopback(host) else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        InputError: If it cannot, because the port is taken or the address is not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # the latter for what cannot be a name
        reason = getattr(error, "strerror", None) or "not a host name"
        raise InputError(f"--host {host} is no address of this machine: {reason}") from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise InputError(f"{host}:{port} cannot be listened on: {error.strerror}; try another --port") from None
    return listener


def run(arguments: list[str]) -> None:
    """Runs the command that ``arguments`` begins with."""
    serve(serve_parser().parse_args(arguments[1:]))
