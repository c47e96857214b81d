"""The public surface: names that exist, load late, and are documented down to the last argument."""

from __future__ import annotations

import ast
import importlib
import inspect
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import docstring_parser
import pytest

import lit_transformer
from lit_transformer.cli import COMMANDS

PACKAGES = (
    "lit_transformer.callbacks",
    "lit_transformer.data",
    "lit_transformer.decoding",
    "lit_transformer.exchange",
    "lit_transformer.metrics",
    "lit_transformer.nn",
)
SEAMS = {  # the table of section 6 of the design, and of the README: what others override or pass
    "TranslationNetwork": ("forward", "start", "step"),
    "DecoderState": ("select",),
    "Search": ("__call__",),
    "Transformer": (
        "build_attention",
        "build_decoder_layer",
        "build_embedding",
        "build_encoder_layer",
        "build_feed_forward",
        "build_positions",
        "init_weights",
    ),
    "LitTransformer": ("compute_loss", "configure_optimizers", "generate"),
    "InverseSqrtWarmup": ("scale",),
    "BeamSearch": ("penalty", "score", "is_finished"),
    "ParallelCorpus": ("read_row", "open"),
    "TranslationDataModule": ("build_batches",),
}


def public_objects() -> dict[str, Any]:
    """Everything that ``__all__`` of the package and of its sub-packages names, by its full name."""
    found = {f"lit_transformer.{name}": getattr(lit_transformer, name) for name in lit_transformer.__all__}
    for package in PACKAGES:
        module = importlib.import_module(package)
        found |= {f"{package}.{name}": getattr(module, name) for name in module.__all__}
    return {name: value for name, value in found.items() if callable(value)}


def test_all_the_lazy_table_and_the_imports_for_type_checkers_agree() -> None:
    tree = ast.parse(Path(inspect.getfile(lit_transformer)).read_text(encoding="utf-8"))
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imports = {
        alias.asname: (node.module or "").removeprefix("lit_transformer.")
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name  # "import X as X" is what makes a name public to a type checker
    }
    assert imports == lit_transformer._HOMES
    assert set(lit_transformer.__all__) == {"__version__", *imports}
    assert len(lit_transformer.__all__) == len(set(lit_transformer.__all__))


@pytest.mark.parametrize("name", lit_transformer.__all__)
def test_every_public_name_exists_and_is_listed(name: str) -> None:
    assert hasattr(lit_transformer, name)
    assert name in dir(lit_transformer)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Transfomer'"):
        lit_transformer.Transfomer  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_sub_packages_say_what_is_public(package: str) -> None:
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert hasattr(module, name)


@pytest.mark.parametrize(("name", "value"), public_objects().items(), ids=public_objects())
def test_docstrings_explain_every_argument(name: str, value: Any) -> None:
    documented = docstring_parser.parse(inspect.getdoc(value) or "")
    assert documented.short_description, f"{name} says not what it is for"
    assert documented.short_description.endswith("."), name
    described = {parameter.arg_name: parameter.description for parameter in documented.params}
    for parameter in parameters_of(value):
        assert described.get(parameter), f"{name} does not explain its argument {parameter}"


def parameters_of(value: Callable[..., Any]) -> list[str]:
    if inspect.isabstract(value) or (inspect.isclass(value) and issubclass(value, Exception)):
        return []
    names = list(inspect.signature(value).parameters)
    if inspect.isclass(value) and value.__init__ is object.__init__:  # type: ignore[misc]
        return []
    if inspect.isfunction(value) and len(names) == 1:
        return []  # one sentence can explain a function of one argument
    return [name for name in names if name not in ("args", "kwargs")]


@pytest.mark.parametrize(("name", "value"), public_objects().items(), ids=public_objects())
def test_docstrings_say_what_is_raised(name: str, value: Any) -> None:
    body = value.__init__ if inspect.isclass(value) else value
    if not getattr(body, "__module__", "").startswith("lit_transformer"):
        return
    raised = {
        node.exc.func.id
        for node in ast.walk(source_tree(body))
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)
    }
    documented = docstring_parser.parse(inspect.getdoc(value) or "")
    assert raised <= {entry.type_name for entry in documented.raises}, name


def source_tree(function: Any) -> ast.AST:
    try:
        return ast.parse(inspect.cleandoc("\n" + inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):  # no source: generated, or of another language
        return ast.Module([], [])


@pytest.mark.parametrize(("name", "methods"), SEAMS.items(), ids=SEAMS)
def test_the_seams_are_there_and_documented(name: str, methods: tuple[str, ...]) -> None:
    owner = getattr(lit_transformer, name)
    for method in methods:
        assert inspect.getdoc(getattr(owner, method)), f"{name}.{method}"
        assert method in vars(owner), f"{name}.{method} is inherited"


def run_python(code: str) -> tuple[str, float]:
    """What a fresh Python prints, and the processor seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert not done.stderr
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_importing_the_package_starts_nothing() -> None:
    printed, seconds = run_python(
        "import logging, os, random, sys, threading\n"
        "before = dict(os.environ), list(sys.path), random.getstate()\n"
        "import lit_transformer, lit_transformer.cli\n"
        "assert before == (dict(os.environ), list(sys.path), random.getstate())\n"
        "assert not logging.getLogger().handlers and not logging.getLogger('lit_transformer').handlers\n"
        "assert threading.active_count() == 1\n"
        "print(sorted({'torch', 'lightning', 'datasets', 'tokenizers', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert printed == "[]\n"
    assert seconds < 2


@pytest.mark.slow
def test_importing_every_module_prints_and_changes_nothing() -> None:
    printed, _ = run_python(
        "import importlib, logging, os, pkgutil\n"
        "import lightning, datasets  # what they do themselves is not ours\n"
        "before = dict(os.environ)\n"
        "import lit_transformer\n"
        "for module in pkgutil.walk_packages(lit_transformer.__path__, 'lit_transformer.'):\n"
        "    if not module.name.endswith('__main__'):\n"
        "        importlib.import_module(module.name)\n"
        "assert before == dict(os.environ)\n"
        "assert not logging.getLogger('lit_transformer').handlers"
    )
    assert printed == ""


def test_help_pages_come_at_once() -> None:
    """All but those that Lightning writes."""
    names = sorted(COMMANDS.keys() - {"fit", "validate", "test", "predict"})
    pages = "".join(f"try: main([{name!r}, '--help'])\nexcept SystemExit: pass\n" for name in names)
    code = f"import sys\nfrom lit_transformer.cli import main\nmain(['--help'])\n{pages}print('torch' in sys.modules)"
    printed, seconds = run_python(code)
    assert printed.startswith("usage: lit-transformer COMMAND")
    assert all(f"usage: lit-transformer {name} " in printed for name in names)
    assert printed.endswith("False\n")
    assert seconds < 2


def test_a_translator_loads_what_it_needs_and_no_more() -> None:
    printed, _ = run_python(
        "import sys\nimport lit_transformer.exchange.engine\n"
        "print([name for name in ('lightning', 'transformers', 'torch._dynamo', 'lit_transformer.exchange.programs') "
        "if name in sys.modules])"
    )
    assert printed == "[]\n"
