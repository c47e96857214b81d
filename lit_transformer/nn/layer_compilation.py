"""What goes wrong in the compilation of layers, in words for the user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lit_transformer.errors import InputError


@contextmanager
def explaining_compilation() -> Iterator[None]:
    """Says in one sentence that, and why, ``torch.compile`` cannot compile what is called inside.

    Raises:
        InputError: If it cannot, as where there is no C++ compiler or no Triton.
    """
    try:
        yield
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed
        from torch._inductor import exc  # with the whole compiler behind it, which nobody else should wait for

        kinds = BackendCompilerFailed, exc.InvalidCxxCompiler, exc.CppCompileError, exc.TritonMissing
        if not isinstance(error, (*kinds, exc.GPUTooOldForTriton)):
            raise
        cause = getattr(error, "inner_exception", error)
        reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no reason given")
        raise InputError(
            f"model.compile_layers is on, but torch.compile failed ({type(cause).__name__}: {reason.rstrip('.')}): "
            "install what it needs, a C++ compiler and on a GPU Triton, or leave model.compile_layers out"
        ) from error
