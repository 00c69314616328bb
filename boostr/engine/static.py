"""The module StaticEmbedding of sentence-transformers: a table of vectors and a tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from boostr.backends.base import Backend
from boostr.engine.embedder import EmbeddingModel
from boostr.engine.modules import transformer_folder
from boostr.engine.sentence import Sentence
from boostr.engine.text_model import Parts
from boostr.engine.vocabulary import check_vocabulary
from boostr.errors import ModelFileError
from boostr.io.safetensors import open_safetensors
from boostr.io.tokenizer import Tokenizer
from boostr.models.lazy import Held, LazyWeight
from boostr.models.static import Model, StaticConfig
from boostr.models.weights import CheckpointWeights, load_parameters, stored_weights

_TABLES = ("embedding.weight", "embeddings")


def load_static(folder: Path, source: str, backend: Backend, options: dict) -> EmbeddingModel:
    """The embedder of a folder whose first module is a StaticEmbedding.

    Raises:
        ModelFileError: no table, or one that its mapping or its weights do not fit.
    """
    inner = transformer_folder(folder)
    with open_safetensors(inner) as files:
        stored = stored_weights(files, str(inner))
        name = next((name for name in _TABLES if name in stored), None)
        if name is None or len(stored[name].shape) != 2:
            raise ModelFileError(f"{inner}: expected a table of embeddings, got {list(stored)}")
        if len(stored) > 1:
            arrays = {n: np.asarray(files.tensor(n)) for n in files.names}
            stored = {name: _one_row_a_token(arrays, name, str(inner))}
        rows, features = stored[name].shape
        module = Model(StaticConfig(rows, features))
        weights = CheckpointWeights(stored, str(inner), module.load_plan(module.config))
        load_parameters(module, weights, backend, **options)
    sentence, tokenizer = Sentence.from_folder(folder), Tokenizer.from_folder(inner)
    check_vocabulary(module, tokenizer)
    return EmbeddingModel(Parts(module, tokenizer, backend, source), sentence)


def _one_row_a_token(arrays: dict[str, np.ndarray], name: str, path: str) -> LazyWeight:
    """model2vec's smaller tables: `mapping` from tokens to rows, `weights` of tokens."""
    unknown = arrays.keys() - {name, "mapping", "weights"}
    table, mapping, weights = arrays[name], arrays.get("mapping"), arrays.get("weights")
    if unknown:
        raise ModelFileError(f"{path}: unexpected beside {name}: {sorted(unknown)}")
    if mapping is not None and not ((mapping >= 0) & (mapping < len(table))).all():
        raise ModelFileError(f"{path}: mapping must be rows of a table of {len(table)}")
    rows = table if mapping is None else table[mapping]
    if weights is not None and weights.shape != rows.shape[:1]:
        raise ModelFileError(f"{path}: weights must be {len(rows)}, got {list(weights.shape)}")
    if weights is not None:
        rows = rows.astype(np.float32) * weights.astype(np.float32)[:, None]
    return Held(name, rows)
