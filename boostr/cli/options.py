"""Options that several verbs share, packed into one object before the verb is called."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any

import click

from boostr.cli.types import (
    AMOUNT,
    ASSIGNMENT,
    BACKEND,
    DTYPE,
    JSON_FILE,
    KV_FORM,
    SCHEME,
    TABLE_SCHEME,
    TEXT,
)
from boostr.engine.options import SamplingOptions
from boostr.errors import BoostrError, OptionError

if TYPE_CHECKING:
    from boostr.backends import Backend
    from boostr.engine.inputs import Chat
    from boostr.engine.load import AnyModel
    from boostr.engine.model import LanguageModel

Command = Callable[..., Any]


@dataclass(frozen=True)
class ModelChoice:
    """Which model to use, and how it is loaded. None for `model` is the default model."""

    model: str | None = None
    backend: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    quantize_embeddings: str | bool | None = None
    kv_dtype: str | None = None
    kv_memory: str | None = None
    adapter: str | None = None
    revision: str | None = None
    offline: bool = False
    verbose: bool = False

    def __post_init__(self) -> None:
        if self.revision and self.model is None:
            raise click.UsageError("--revision needs a MODEL that it is a revision of")
        if self.quantize_embeddings is not None and self.quantize is None:
            raise click.UsageError("--quantize-embeddings needs --quantize")

    def load(
        self, trainable: bool = False, backend: Backend | None = None, quiet: bool = False
    ) -> tuple[AnyModel, float]:
        """The model, and the seconds that loading took.

        backend: where, in place of the one that was chosen.   quiet: nothing is said of it.
        """
        from boostr.engine.load import load

        if not quiet:
            self._say_what_tables_become()
        start = time.perf_counter()
        model = load(
            self.model,
            backend=backend or self.backend,
            dtype=self.dtype,
            quantize=self.quantize,
            quantize_embeddings=self.quantize_embeddings,
            kv_dtype=self.kv_dtype,
            kv_memory=self.kv_memory,
            adapter=self.adapter,
            revision=self.revision,
            offline=self.offline or None,
            progress=not quiet,
            trainable=trainable,
        )
        seconds = time.perf_counter() - start
        if self.verbose and not quiet:
            size = model.weight_bytes / 1e6
            click.echo(
                f"{model.source}: {model.config.model_type}, {size:.1f} MB of weights on "
                f"{model.backend.device}, loaded in {seconds:.2f} s",
                err=True,
            )
        return model, seconds

    def _say_what_tables_become(self) -> None:
        """Where that is another scheme than was asked for, and nobody asked for it."""
        from boostr.quant.scheme import embedding_scheme

        tables = embedding_scheme(self.quantize)
        if tables is not None and self.quantize_embeddings is None:
            click.echo(
                f"embedding and head become {tables} (--quantize-embeddings none keeps them)",
                err=True,
            )

    def load_decoder(self) -> tuple[LanguageModel, float]:
        """As `load`, for verbs that generate text."""
        from boostr.engine.model import LanguageModel

        model, seconds = self.load()
        if not isinstance(model, LanguageModel):
            raise OptionError(
                f"{model.source} is {model.is_a}; use: boostr embed, classify or rerank"
            )
        return model, seconds


@dataclass(frozen=True)
class TemplateChoice:
    """What the chat template is given beside the messages."""

    tools: list[Any] | None = None
    template_arg: tuple[tuple[str, Any], ...] = ()

    def chat(self, continue_final_message: bool = False) -> Chat:
        """The same as the engine takes it."""
        from boostr.engine.inputs import Chat

        return Chat(self.tools, continue_final_message, dict(self.template_arg) or None)


@contextmanager
def option_errors_are_usage() -> Iterator[None]:
    """What the library says of an option is said of the command line: exit code 2."""
    try:
        yield
    except OptionError as error:
        raise click.UsageError(str(error), click.get_current_context()) from None


def packed(name: str, kind: type, options: list[Callable[[Command], Command]]):
    """A decorator: adds `options`, passes their values to the verb as one `kind` named `name`."""
    names = [field.name for field in fields(kind)]

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def call(**values: Any) -> Any:
            own = {key: values.pop(key) for key in names if key in values}
            return command(**values, **{name: kind(**own)})

        run: Command = call
        for option in reversed(options):
            run = option(run)
        return run

    return decorate


_verbose = click.option("-v", "--verbose", is_flag=True, help="Say more, on stderr.")
_model = click.option(
    "-m", "--model", metavar="MODEL",
    help="Folder, .gguf file, org/name or org/name:file.gguf. [default: SmolLM2-135M-Instruct]",
)  # fmt: skip
_backend = click.option(
    "--backend", type=BACKEND, metavar="NAME", help="numpy, wgpu, cupy or auto. [BOOSTR_BACKEND]"
)
_dtype = click.option(
    "--dtype", type=DTYPE, metavar="NAME",
    help="Convert weights to float32, float16 or bfloat16. [default: as stored]",
)  # fmt: skip
_quantize = [
    click.option(
        "--quantize", type=SCHEME, metavar="SCHEME",
        help="For the linear layers: int8, int8-g32, -g64, -g128, w8a8, int4-g32, -g64, -g128, nf4 "
        "or fp8.",
    ),
    click.option(
        "--quantize-embeddings", type=TABLE_SCHEME, metavar="SCHEME",
        help="For embedding and head; none keeps them, same is that of the others. [default: none, "
        "with 4 bits int8-g32]",
    ),
]  # fmt: skip
_kv_dtype = click.option(
    "--kv-dtype", type=KV_FORM, metavar="NAME",
    help="Keep keys and values as int8 or int4. [default: floats]",
)  # fmt: skip
_kv_memory = click.option(
    "--kv-memory", type=AMOUNT, metavar="AMOUNT",
    help="The most memory for keys and values, such as 4G. [default: a quarter of what is free]",
)  # fmt: skip
_adapter = click.option(
    "--adapter", metavar="DIR", help="A low-rank adapter over the weights, a folder as peft's."
)
_source = [
    click.option("--revision", metavar="REV", help="Branch, tag or commit on the hub."),
    click.option("--offline", is_flag=True, help="Use the cache only, never the network."),
]

as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
_loading = [_backend, _dtype, *_quantize, _adapter, *_source, _verbose]
encoder_choice = packed(
    "choice",
    ModelChoice,
    [
        click.option("-m", "--model", metavar="MODEL", required=True,
                     help="An encoder: a folder, such as sentence-transformers', or org/name."),
        *_loading,
    ],
)  # fmt: skip
model_argument = packed(  # for verbs whose subject is the model, not a prompt
    "choice",
    ModelChoice,
    [click.argument("model", required=False), _kv_dtype, _kv_memory, *_loading],
)
trained_model = packed("choice", ModelChoice, [click.argument("model", required=False), *_loading])
task_model = packed(  # for verbs of which the default model knows nothing
    "choice", ModelChoice, [click.argument("model"), *_loading]
)
decoder_choice = packed("choice", ModelChoice, [_model, _kv_dtype, _kv_memory, *_loading])
template_choice = packed(
    "template",
    TemplateChoice,
    [
        click.option("--tools", type=JSON_FILE, metavar="FILE",
                     help="JSON list of functions for the chat template."),
        click.option("--template-arg", type=ASSIGNMENT, metavar="NAME=VALUE", multiple=True,
                     help="Variable of the chat template, as enable_thinking=false; repeatable."),
    ],
)  # fmt: skip
source_choice = packed("choice", ModelChoice, [*_source, _verbose])


def _sampling(flag: str, kind: Any, text: str, **more: Any) -> Callable[[Command], Command]:
    """An option for a field of SamplingOptions, which checks it and knows its default."""
    name = flag.removeprefix("--").replace("-", "_")
    field = next(f for f in fields(SamplingOptions) if f.name == name)

    def check(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            SamplingOptions(**{name: value})
        except BoostrError as error:
            raise click.BadParameter(str(error), ctx, param) from None
        return value

    default = None if field.default is MISSING else field.default
    return click.option(
        flag, name, type=kind, default=default, callback=check, help=text,
        show_default=isinstance(default, int | float), **more,
    )  # fmt: skip


sampling_options = packed(
    "options",
    SamplingOptions,
    [
        _sampling("--max-tokens", int, "Most tokens to generate.", metavar="N"),
        _sampling("--temperature", float, "0 takes the likeliest token.", metavar="T"),
        _sampling("--top-k", int, "Keep the K likeliest tokens; 0 keeps all.", metavar="K"),
        _sampling("--top-p", float, "Keep the likeliest tokens up to P together.", metavar="P"),
        _sampling("--min-p", float, "Keep tokens P times as likely as the first.", metavar="P"),
        _sampling("--repetition-penalty", float, "Divide repeated logits; 1 is off.", metavar="X"),
        _sampling("--presence-penalty", float, "Subtract from used tokens.", metavar="X"),
        _sampling("--frequency-penalty", float, "Subtract for each use.", metavar="X"),
        _sampling("--seed", int, "Of the draws. [default: a fresh one]", metavar="N"),
        _sampling("--stop", TEXT, "End before this text; repeatable.", metavar="TEXT",
                  multiple=True),
    ],
)  # fmt: skip
