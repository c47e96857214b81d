"""The same JSON API under LitServe, for whoever runs LitServe servers already."""

import importlib
from dataclasses import replace
from typing import Any

import torch

from lit_transformer.decoding import BeamSearch
from lit_transformer.interfaces import InputError
from lit_transformer.serving.model import ModelSettings, ServedModel
from lit_transformer.serving.requests import Job, Limits, Reply, RequestError, error_reply, job_of

# Annotations are not put off in this file: LitServe reads those of decode_request and encode_response as they are.
LitAPI: Any = object
Request: Any = Any
Response: Any = Any
try:
    LitAPI = importlib.import_module("litserve").LitAPI
    Request, Response = (getattr(importlib.import_module("fastapi"), name) for name in ("Request", "Response"))
except ModuleNotFoundError:  # told when somebody wants a TranslationAPI
    pass


class TranslationAPI(LitAPI):
    """Translates under LitServe, with the bodies and answers of ``POST /translate``.

    LitServe spreads requests over devices and batches them. Its own server does not bound queue, body or the time of
    a translation, and goes on alone when its main process gets SIGTERM (0.2.19); put a proxy with bounds before it, or
    use ``lit-transformer serve``, which has them. One wrong request does not fail its batch here.

    Args:
        checkpoint: A ``.ckpt`` file, the folder of a run, or an exported folder.
        search: How to decode; None is the paper's beam search. Clients choose their ``n_best``, at most its
            ``beam_size``, may ask for less than its ``max_extra_length``, and for any ``no_repeat_ngram_size`` and
            ``allow_unknown``: what it has there is for those that do not say.
        limits: What a request may ask for beside that.
        max_batch_size: Requests that are translated together.
        batch_timeout: Seconds to wait for a batch to fill.
        api_path: The address.
        num_threads: Threads of each of LitServe's workers on a CPU; None for torch's own number, all cores.
        src_tag: Tag of texts that have none and whose request names none, for a model trained with ``src_tag``; empty
            if they need none, None to refuse them.

    Raises:
        InputError: If LitServe is not installed.

    Example:
        >>> import litserve  # doctest: +SKIP
        >>> api = TranslationAPI("runs/quickstart", max_batch_size=16)  # doctest: +SKIP
        >>> litserve.LitServer(api, accelerator="cpu").run(host="127.0.0.1")  # doctest: +SKIP
    """

    def __init__(
        self,
        checkpoint: str,
        search: BeamSearch | None = None,
        limits: Limits | None = None,
        max_batch_size: int = 16,
        batch_timeout: float = 0.005,
        api_path: str = "/translate",
        num_threads: int | None = None,
        src_tag: str | None = None,
    ) -> None:
        if LitAPI is object:
            raise InputError('TranslationAPI needs a package: pip install "lit-transformer[litserve]"')
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout, api_path=api_path)
        search = search or BeamSearch()
        self.num_threads = num_threads
        self.limits = replace(limits or Limits(), max_n_best=search.beam_size, max_extra_length=search.max_extra_length)
        self.settings = ModelSettings(str(checkpoint), search, self.limits.max_length, src_tag=src_tag)

    def setup(self, device: str) -> None:
        """Loads the model, in each of LitServe's workers."""
        self.model = ServedModel.load(replace(self.settings, device=device), self.limits)
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        self.model.try_out()

    def decode_request(self, request: Request) -> Job | RequestError:
        """The job of a body, or why there is none."""
        try:
            return job_of(request, self.limits)
        except RequestError as error:  # raised, it would fail the whole batch
            return error

    def batch(self, inputs: list[Job | RequestError]) -> list[Job | RequestError]:
        """The jobs as they are."""
        return inputs

    def predict(self, jobs: Any) -> Any:
        """The replies to a batch, or to the one job where LitServe does not batch."""
        given = jobs if isinstance(jobs, list) else [jobs]
        answered = iter(self.model.answer([job for job in given if isinstance(job, Job)]))
        replies = [next(answered) if isinstance(job, Job) else error_reply(job) for job in given]
        return replies if isinstance(jobs, list) else replies[0]

    def unbatch(self, output: list[Reply]) -> list[Reply]:
        """The replies as they are."""
        return output

    def encode_response(self, output: Reply) -> Response:
        """The reply with its status."""
        return Response(output.body, output.status, media_type=output.content_type)
