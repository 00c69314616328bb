"""load: from a name, folder or file to a model that is ready to use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from boostr import backends, dtypes, env
from boostr.backends.base import Backend
from boostr.engine.answers import AnswerReranker, Answers, QuestionReranker
from boostr.engine.classifier import ClassificationModel, Labels, TokenClassificationModel
from boostr.engine.embedder import EmbeddingModel
from boostr.engine.inputs import of_types
from boostr.engine.model import LanguageModel
from boostr.engine.modules import read_modules, transformer_folder
from boostr.engine.reranker import Pairing
from boostr.engine.sentence import Sentence
from boostr.engine.static import load_static
from boostr.engine.text_model import Parts
from boostr.engine.vocabulary import check_vocabulary
from boostr.errors import DTypeError, ModelFileError, OptionError, OutOfMemoryError
from boostr.io.gguf_split import GGUFSource, open_gguf
from boostr.io.hub import ResolvedModel, resolve
from boostr.io.peft import Adapter, read_adapter
from boostr.io.safetensors import open_safetensors
from boostr.io.settings import read_object, read_settings
from boostr.io.tokenizer import Tokenizer
from boostr.io.tokenizer_files import tokenizer_file
from boostr.io.tokenizer_gguf import has_tokenizer
from boostr.models import family_of
from boostr.models.adapters import apply_adapter
from boostr.models.base import GENERATES, Model
from boostr.models.config import RawConfig
from boostr.models.gguf import architecture_of, gguf_plan, gguf_weights, layer_numbers
from boostr.models.gguf_config import hf_config
from boostr.models.gguf_heads import as_matrix, behind_pooling, gguf_classifier, gguf_labels
from boostr.models.heads import Classifier, ClassifierSpec, classifier_spec
from boostr.models.lazy import LazyWeight
from boostr.models.quantized import method_in, quantized_plan
from boostr.models.weights import CheckpointWeights, load_parameters, stored_weights
from boostr.nn.module import Module
from boostr.quant.kv import KVForm, parse_kv_form
from boostr.quant.scheme import embedding_scheme, parse_scheme

AnyModel = (
    LanguageModel | EmbeddingModel | ClassificationModel | TokenClassificationModel
    | AnswerReranker
)  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    "model": (str, Path, type(None)), "backend": (str, Backend, type(None)),
    "quantize": (str, type(None)), "quantize_embeddings": (str, bool, type(None)),
    "kv_dtype": (str, type(None)), "kv_memory": (str, int, type(None)),
    "adapter": (str, Path, type(None)), "revision": (str, type(None)),
    "offline": (bool, type(None)), "progress": (bool,), "trainable": (bool,),
}  # fmt: skip


def load(
    model: str | Path | None = None,
    *,
    backend: str | Backend | None = None,
    dtype: Any = None,
    quantize: str | None = None,
    quantize_embeddings: str | bool | None = None,
    kv_dtype: str | None = None,
    kv_memory: str | int | None = None,
    adapter: str | Path | None = None,
    revision: str | None = None,
    offline: bool | None = None,
    progress: bool = False,
    trainable: bool = False,
) -> AnyModel:
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
        kv_memory: the most memory for these, as "4G" or in bytes; default BOOSTR_KV_MEMORY.
        adapter: a folder with a low-rank adapter as peft's, put over weights of any form.
        offline: never reach for the network; default HF_HUB_OFFLINE.
        progress: show a bar while downloading.
        trainable: weights are the model's own floats and require gradients; with an adapter it does
            so alone, over a base of any form. See `boostr.train`.
    Returns:
        A `LanguageModel` for decoders, an `EmbeddingModel` for encoders and for folders of
        sentence-transformers; a `ClassificationModel` or `TokenClassificationModel` where the
        config names such a head, an `AnswerReranker` where modules.json has a LogitScore.
        Without a tokenizer (a folder's files, or a GGUF's) token ids work and text is refused.
    Raises:
        DownloadError, ModelFileError, TokenizerError, OptionError, BackendError.
    """
    of_types("load", _TYPES, locals())
    wanted = weight_dtype(dtype)
    kv_form = parse_kv_form(name) if (name := kv_dtype or env.KV_DTYPE.text()) else None
    _check_schemes(quantize, quantize_embeddings)
    over = None if adapter is None else read_adapter(adapter)
    chosen = backends.get(backend)
    found = resolve(model, revision=revision, offline=offline, progress=progress)
    options = {"dtype": wanted, "quantize": quantize, "quantize_embeddings": quantize_embeddings}
    read = _load_gguf if found.kind == "gguf" else _load_folder
    try:
        made = _under(over, read(found, chosen, options, kv_form), chosen, trainable)
        _set_kv_memory(made, kv_memory, kv_dtype)
        made.files = found.path
        return made
    except OutOfMemoryError as error:
        failure = str(error)
    chosen.release_memory()  # what was loaded is free now that the error's frames are gone
    raise OutOfMemoryError(f"loading {found.source}: {failure}")


def _check_schemes(quantize: str | None, embeddings: str | bool | None) -> None:
    if quantize is not None:
        parse_scheme(quantize)
    embedding_scheme(quantize, embeddings)


def _under(adapter: Adapter | None, made: AnyModel, backend: Backend, trainable: bool) -> AnyModel:
    """A model with an adapter over its weights, if any, which may be trained."""
    if adapter is not None:
        apply_adapter(made.module, adapter, backend, made.classifier, trainable)
    elif trainable:
        made.make_trainable()
    return made


def _set_kv_memory(made: AnyModel, kv_memory: str | int | None, kv_dtype: str | None) -> None:
    """Give a text generator its budget; refuse both options for what is none."""
    for name, value in (("kv_dtype", kv_dtype), ("kv_memory", kv_memory)):
        if value is not None and not isinstance(made, LanguageModel):
            raise OptionError(f"{name}: {made.source} is no text generator: it keeps no keys")
    if isinstance(made, LanguageModel) and kv_memory is not None:
        made.engine.kv_memory = env.parse_bytes(str(kv_memory), "kv_memory")


def load_module(
    path: str | Path, *, backend: str | Backend | None = None, dtype: Any = None,
    quantize: str | None = None, quantize_embeddings: str | bool | None = None,
) -> Module:  # fmt: skip
    """The model of a Hugging Face folder or GGUF file, no tokenizer; options as in `load`."""
    path = Path(path)
    options = {
        "dtype": weight_dtype(dtype),
        "quantize": quantize,
        "quantize_embeddings": quantize_embeddings,
    }
    if path.is_dir():
        return _folder_module(folder_config(path), path, backends.get(backend), options)[0]
    with open_gguf(path) as file:
        return _gguf_module(file, backends.get(backend), options)[0]


def folder_config(folder: Path) -> RawConfig:
    path = folder / "config.json"
    return RawConfig(read_object(path, required=True), str(path))


def _folder_module(
    config: RawConfig, folder: Path, backend: Backend, options: dict, headless: bool = False,
    spec: ClassifierSpec | None = None,
) -> tuple[Model, Classifier | None]:  # fmt: skip
    """The model of a folder, without its language head if `headless`; and the classifier of `spec`,
    which stays as it is stored."""
    stored_as = quantized_plan(method_in(folder, config.raw))
    module, path = empty_module(config, headless), str(folder)
    classifier = None
    with open_safetensors(folder) as files:
        stored = stored_weights(files, path)
        if spec is not None:
            labels = Labels.from_config(config).names
            classifier = Classifier(module.config.hidden_size, len(labels), spec)
            _load_head(classifier, stored_as.load(stored).weights, path, backend, options)
            stored = {name: weight for name, weight in stored.items() if not spec.owns(name)}
        plan = stored_as + module.load_plan(module.config)
        load_parameters(module, CheckpointWeights(stored, path, plan), backend, **options)
    return module, classifier


def _load_head(
    head: Classifier, stored: Mapping[str, LazyWeight], path: str, backend: Backend, options: dict
) -> None:
    """The weights of a classifier from those of the whole checkpoint; they stay as stored."""
    own = {name: weight for name, weight in stored.items() if head.spec.owns(name)}
    source = CheckpointWeights(own, path, head.spec.load_plan())
    load_parameters(head, source, backend, dtype=options["dtype"])


def _gguf_module(
    file: GGUFSource, backend: Backend, options: dict
) -> tuple[Model, Classifier | None]:
    """The model of a file, and the classifier that it has in place of a language head."""
    path, raw, classifier = str(file.path), RawConfig(hf_config(file), str(file.path)), None
    spec = gguf_classifier(file, family_of(raw).read_config(raw))
    module = empty_module(raw, headless=spec is not None)
    row, layers = architecture_of(file)[1], len(module.config.layers)
    weights = gguf_weights(file) | layer_numbers(file, row, layers)
    weights = {name: w for name, w in weights.items() if name not in behind_pooling(file)}
    if spec is not None:
        weights = as_matrix(weights)
        classifier = Classifier(module.config.hidden_size, len(gguf_labels(file)), spec)
        _load_head(classifier, weights, path, backend, options)
        weights = {name: weight for name, weight in weights.items() if not spec.owns(name)}
    source = CheckpointWeights(weights, path, gguf_plan(module.config, row))
    load_parameters(module, source, backend, **options)
    return module, classifier


def weight_dtype(dtype: Any):
    """The float dtype that weights are to have, by argument or BOOSTR_DTYPE; None as stored."""
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
) -> AnyModel:
    with open_gguf(found.path) as file:
        module, classifier = _gguf_module(file, backend, options)
        tokenizer = None
        if has_tokenizer(file.metadata):
            tokenizer = Tokenizer.from_gguf(file.metadata, str(found.path))
        check_vocabulary(module, tokenizer)
        parts = Parts(module, tokenizer, backend, found.source)
        generates = GENERATES in module.capabilities
        if classifier is not None:
            labels = gguf_labels(file)
            if labels == ("yes", "no") and generates:
                return QuestionReranker.from_gguf(parts, classifier)
            return ClassificationModel(parts, classifier, Labels(labels), Pairing())
        if not generates:
            return EmbeddingModel(parts, Sentence.from_gguf(file))
    eos = module.config.eos_token_ids
    return LanguageModel(module, tokenizer, backend, found.source, eos, kv_form)


def _load_folder(
    found: ResolvedModel, backend: Backend, options: dict, kv_form: KVForm | None
) -> AnyModel:
    modules = read_modules(found.path)
    kinds = [module.kind for module in modules]
    if "StaticEmbedding" in kinds:
        return load_static(found.path, found.source, backend, options)
    folder = transformer_folder(found.path)
    config = folder_config(folder)
    generates = GENERATES in family_of(config).capabilities
    embeds, asks = "Pooling" in kinds, "LogitScore" in kinds
    headless, spec = heads_of(found.path, config)
    if (asks and not generates) or (kinds == ["Transformer"] and spec is None):
        raise ModelFileError(
            f"{found.path}/modules.json: expected a Transformer, a Pooling and what follows; "
            f"{kinds} alone need a classifier or a decoder, which this model is not"
        )
    module, classifier = _folder_module(config, folder, backend, options, headless, spec)
    tokenizer = Tokenizer.from_folder(folder) if tokenizer_file(folder) else None
    check_vocabulary(module, tokenizer)
    parts = Parts(module, tokenizer, backend, found.source)
    if classifier is not None and spec is not None:
        labels = Labels.from_config(config)
        if spec.pooling == "each":
            return TokenClassificationModel(parts, classifier, labels)
        pairing = Pairing.from_folder(found.path, config)
        return ClassificationModel(parts, classifier, labels, pairing)
    if asks:
        answers = Answers.from_folder(found.path / modules[1].path, module.config.vocab_size)
        return AnswerReranker(parts, Pairing.from_folder(found.path, config), answers)
    if embeds or not generates:
        return _embedder(found.path, parts)
    eos = end_ids(folder, config)
    return LanguageModel(module, tokenizer, backend, found.source, eos, kv_form)


def _embedder(folder: Path, parts: Parts) -> EmbeddingModel:
    sentence = Sentence.from_folder(folder)
    if sentence.lower_case and parts.tokenizer is not None:
        parts.tokenizer.lower_case()
    return EmbeddingModel(parts, sentence)


def end_ids(folder: Path, config: RawConfig) -> tuple[int, ...]:
    """The ids that end a generation: as generation_config.json says, else config.json."""
    generation = read_settings(folder / "generation_config.json")
    ends = RawConfig({"eos_token_id": generation.get("eos_token_id")}, generation.source)
    return ends.ids("eos_token_id") or config.ids("eos_token_id")


def heads_of(folder: Path, config: RawConfig) -> tuple[bool, ClassifierSpec | None]:
    """Whether a folder's decoder is to have no language head, as it embeds or classifies; and the
    classifier of its model."""
    kinds = {module.kind for module in read_modules(folder)}
    embeds = "Pooling" in kinds
    spec = None if embeds or "LogitScore" in kinds else classifier_spec(config)
    generates = GENERATES in family_of(config).capabilities
    return generates and (embeds or spec is not None), spec


def empty_module(config: RawConfig, headless: bool = False) -> Model:
    """The module that a config describes, its weights still to be loaded; a decoder may be made
    without its head."""
    made = family_of(config)
    read = made.read_config(config)
    if headless:
        read = replace(read, head=None)
    return made(read)  # type: ignore[call-arg]
