"""load: from a name, folder or file to a model that is ready to use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from boostr import backends, dtypes, env
from boostr.backends.base import Backend
from boostr.engine.embedder import EmbeddingModel
from boostr.engine.inputs import of_types
from boostr.engine.model import LanguageModel
from boostr.engine.sentence import Sentence, transformer_folder
from boostr.errors import DTypeError, ModelFileError, OptionError, OutOfMemoryError
from boostr.io.gguf_split import GGUFSource, open_gguf
from boostr.io.hub import ResolvedModel, resolve, resolve_default
from boostr.io.safetensors import open_safetensors
from boostr.io.settings import read_object, read_settings
from boostr.io.tokenizer import Tokenizer
from boostr.io.tokenizer_files import has_tokenizer_files
from boostr.io.tokenizer_gguf import has_tokenizer
from boostr.models import family_of
from boostr.models.base import GENERATES, Model
from boostr.models.config import RawConfig
from boostr.models.gguf import architecture_of, gguf_plan, gguf_weights
from boostr.models.gguf_config import hf_config
from boostr.models.quantized import method_in, quantized_plan
from boostr.models.weights import CheckpointWeights, load_parameters, stored_weights
from boostr.nn.module import Module
from boostr.quant.kv import KVForm, parse_kv_form
from boostr.quant.scheme import embedding_scheme, parse_scheme

_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str, Path, type(None)), "backend": (str, Backend, type(None)),
    "quantize": (str, type(None)), "quantize_embeddings": (str, bool, type(None)),
    "kv_dtype": (str, type(None)),
    "revision": (str, type(None)), "offline": (bool, type(None)), "progress": (bool,),
}  # fmt: skip


def load(
    model: str | Path | None = None,
    *,
    backend: str | Backend | None = None,
    dtype: Any = None,
    quantize: str | None = None,
    quantize_embeddings: str | bool | None = None,
    kv_dtype: str | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    progress: bool = False,
) -> LanguageModel | EmbeddingModel:
    """Load a model.

    Args:
        model: a Hugging Face folder, a `.gguf` file, `org/name`, `hf://org/name@revision`; None is
            the default model, SmolLM2-135M-Instruct.
        backend: "numpy", "wgpu", "cupy", "auto"; default BOOSTR_BACKEND.
        dtype: convert weights to "float32", "float16" or "bfloat16"; default as stored.
        quantize: a scheme for the linear layers: "int8", "int8-g32|g64|g128", "w8a8",
            "int4-g32|g64|g128", "nf4" or "fp8" (see `ops.quantize`).
        quantize_embeddings: a scheme for embedding and head, True for that of the linear layers,
            False to keep them; None keeps them with 8 bits and makes them int8-g32 with 4.
        kv_dtype: "int8" or "int4": how keys and values are kept; default BOOSTR_KV_DTYPE, else as
            floats.
        offline: never reach for the network; default HF_HUB_OFFLINE.
        progress: show a bar while downloading.
    Returns:
        A `LanguageModel` for decoders, an `EmbeddingModel` for encoders and for folders of
        sentence-transformers.
        Without a tokenizer (a folder's files, or a GGUF's) token ids work and text is refused.
    Raises:
        DownloadError, ModelFileError, TokenizerError, OptionError, BackendError.
    """
    of_types("load", _TYPES, locals())
    wanted = _weight_dtype(dtype)
    kv_name = kv_dtype or env.KV_DTYPE.text() or None
    kv_form = None if kv_name is None else parse_kv_form(kv_name)
    if quantize is not None:
        parse_scheme(quantize)
    embedding_scheme(quantize, quantize_embeddings)
    chosen = backends.get(backend)
    found = (
        resolve_default(offline=offline, progress=progress)
        if model is None
        else resolve(model, revision=revision, offline=offline, progress=progress)
    )
    options = {"dtype": wanted, "quantize": quantize, "quantize_embeddings": quantize_embeddings}
    read = _load_gguf if found.kind == "gguf" else _load_folder
    try:
        made = read(found, chosen, options, kv_form)
        if kv_dtype is not None and not isinstance(made, LanguageModel):
            raise OptionError(
                f"kv_dtype: {found.source} is an encoder, which keeps no keys and values"
            )
        return made
    except OutOfMemoryError as error:
        failure = str(error)
    chosen.release_memory()  # what was loaded is free now that the error's frames are gone
    raise OutOfMemoryError(f"loading {found.source}: {failure}")


def load_module(
    path: str | Path, *, backend: str | Backend | None = None, dtype: Any = None,
    quantize: str | None = None, quantize_embeddings: str | bool | None = None,
) -> Module:  # fmt: skip
    """The model of a Hugging Face folder or GGUF file, no tokenizer; options as in `load`."""
    path = Path(path)
    options = {
        "dtype": _weight_dtype(dtype),
        "quantize": quantize,
        "quantize_embeddings": quantize_embeddings,
    }
    if path.is_dir():
        return _folder_module(folder_config(path), path, backends.get(backend), options)
    with open_gguf(path) as file:
        return _gguf_module(file, backends.get(backend), options)


def folder_config(folder: Path) -> RawConfig:
    path = folder / "config.json"
    return RawConfig(read_object(path, required=True), str(path))


def _folder_module(config: RawConfig, weights: Path, backend: Backend, options: dict) -> Model:
    method = method_in(weights, config.raw)
    module = empty_module(config)
    plan = quantized_plan(method) + module.load_plan(module.config)
    with open_safetensors(weights) as files:
        stored = stored_weights(files, str(weights))
        load_parameters(module, CheckpointWeights(stored, str(weights), plan), backend, **options)
    return module


def _gguf_module(file: GGUFSource, backend: Backend, options: dict) -> Model:
    path = str(file.path)
    module = empty_module(RawConfig(hf_config(file), path))
    plan = gguf_plan(module.config, architecture_of(file)[1])
    load_parameters(module, CheckpointWeights(gguf_weights(file), path, plan), backend, **options)
    return module


def _weight_dtype(dtype: Any):
    text = dtype if dtype is not None else env.DTYPE.text() or None
    if text is None:
        return None
    wanted = dtypes.parse(text)
    if wanted not in dtypes.MODEL_FLOATS:
        names = ", ".join(str(d) for d in dtypes.MODEL_FLOATS)
        raise DTypeError(f"load: dtype must be one of {names}, got {wanted}")
    return wanted


def _load_gguf(
    found: ResolvedModel, backend: Backend, options: dict, kv_form: KVForm | None
) -> LanguageModel:
    with open_gguf(found.path) as file:
        module = _gguf_module(file, backend, options)
        tokenizer = None
        if has_tokenizer(file.metadata):
            tokenizer = Tokenizer.from_gguf(file.metadata, str(found.path))
    _check_vocabulary(module, tokenizer)
    eos = module.config.eos_token_ids
    return LanguageModel(module, tokenizer, backend, found.source, eos, kv_form)


def _load_folder(
    found: ResolvedModel, backend: Backend, options: dict, kv_form: KVForm | None
) -> LanguageModel | EmbeddingModel:
    folder = transformer_folder(found.path)
    config = folder_config(folder)
    module = _folder_module(config, folder, backend, options)
    tokenizer = Tokenizer.from_folder(folder) if has_tokenizer_files(folder) else None
    _check_vocabulary(module, tokenizer)
    if GENERATES not in module.capabilities or (found.path / "modules.json").is_file():
        sentence = Sentence.from_folder(found.path)
        if sentence.lower_case and tokenizer is not None:
            tokenizer.lower_case()
        return EmbeddingModel(module, tokenizer, backend, found.source, sentence)
    eos = end_ids(folder, config)
    return LanguageModel(module, tokenizer, backend, found.source, eos, kv_form)


def end_ids(folder: Path, config: RawConfig) -> tuple[int, ...]:
    """The ids that end a generation: as generation_config.json says, else config.json."""
    generation = read_settings(folder / "generation_config.json")
    ends = RawConfig({"eos_token_id": generation.get("eos_token_id")}, generation.source)
    return ends.ids("eos_token_id") or config.ids("eos_token_id")


def empty_module(config: RawConfig) -> Model:
    """The module that a config describes, its weights still to be loaded."""
    made = family_of(config)
    return made(made.read_config(config))  # type: ignore[call-arg]


def _check_vocabulary(module: Model, tokenizer: Tokenizer | None) -> None:
    """Every id that the tokenizer makes of ordinary text must have a row in the embedding.

    Added tokens may lie beyond it (a pad token, say, that a fine-tune never used): only a text that
    spells one out has its id, and is then refused.
    """
    rows = module.config.vocab_size
    if tokenizer is None or tokenizer.vocab_size <= rows:
        return
    spare = tokenizer.inner.get_added_tokens_decoder()
    beyond = [i for i in tokenizer.inner.get_vocab().values() if i >= rows and i not in spare]
    if beyond:
        raise ModelFileError(
            f"{tokenizer.source}: the tokenizer has {tokenizer.vocab_size} tokens, the model's "
            f"embedding only {rows}; the files do not belong together"
        )
