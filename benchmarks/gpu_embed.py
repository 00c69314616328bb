"""Sentence embeddings on a GPU, an encoder of bge-m3's size: boostr beside transformers on torch.

    python benchmarks/gpu_embed.py [--backends cupy,wgpu] [--sentences 8192] [--layers 24]

Random bf16 weights of XLM-RoBERTa-large's shape, [CLS] pooling, the sentences of cpu_embed.py:
texts in, vectors out. The peer, in the same process, is what sentence-transformers' `encode` runs:
transformers in bf16 with SDPA over padded batches, the longest texts first; its default of 32 texts
a batch and larger ones, of which the best counts. The figures are the best of three.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from cpu_embed import WORDS, sentences


def make_folder(folder: Path, layers: int) -> None:
    """A sentence-transformers folder of random weights and a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XLMRobertaConfig, XLMRobertaModel

    config = XLMRobertaConfig(
        vocab_size=250002, hidden_size=1024, intermediate_size=4096, num_hidden_layers=layers,
        num_attention_heads=16, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        XLMRobertaModel(config).to(torch.bfloat16).save_pretrained(folder)
    special = ("<s>", "<pad>", "</s>", "<unk>")
    vocab = {word: i for i, word in enumerate((*special, *WORDS))}
    made = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    made.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="<s>", sep_token="</s>", model_max_length=512, **names
    ).save_pretrained(folder)
    kinds = ("Transformer", "Pooling")
    listed = [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}",
         "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 1024, "pooling_mode_cls_token": True,
               "pooling_mode_mean_tokens": False}  # fmt: skip
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


class Peer:
    """`SentenceTransformer.encode` with [CLS] pooling, without its package."""

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._torch, self._tokenizer = torch, AutoTokenizer.from_pretrained(folder)
        settings = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        self._model: Any = AutoModel.from_pretrained(folder, **settings).to("cuda").eval()

    def embed(self, texts: list[str], batch: int) -> np.ndarray:
        order = np.argsort([-len(text) for text in texts])
        vectors = np.zeros((len(texts), self._model.config.hidden_size), np.float32)
        with self._torch.inference_mode():
            for start in range(0, len(texts), batch):
                chosen = order[start : start + batch]
                given = self._tokenizer(
                    [texts[i] for i in chosen], padding=True, truncation=True, return_tensors="pt"
                ).to("cuda")
                found = self._model(**given).last_hidden_state[:, 0]
                vectors[chosen] = found.float().cpu().numpy()
        return vectors


def best(run: Any, count: int) -> float:
    """Sentences a second, the best of three after one that compiles."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return count / min(seconds[1:])


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def measured(peer: Peer, texts: list[str], batches: list[int]) -> tuple[float, np.ndarray]:
    """The peer's best rate over sizes of batches, and the vectors of the first texts."""
    rates = []
    for batch in batches:
        rates.append(best(lambda batch=batch: peer.embed(texts, batch), len(texts)))
        print(f"transformers, batches of {batch}: {rates[-1]:.0f} sentences/s", flush=True)
    return max(rates), peer.embed(texts[:64], batches[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backends", default="cupy,wgpu")
    parser.add_argument("--sentences", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--batches", default="32,128,512", help="of the peer; '' for no peer")
    options = parser.parse_args()
    texts = sentences(options.sentences)
    with tempfile.TemporaryDirectory() as place:
        make_folder(Path(place), options.layers)
        import boostr

        theirs, vectors = 0.0, None
        batches = [int(batch) for batch in options.batches.split(",") if batch]
        if batches:
            theirs, vectors = measured(Peer(place), texts, batches)
        for backend in options.backends.split(","):
            model: Any = boostr.load(place, backend=backend)
            rate = best(lambda model=model: model.embed(texts), len(texts))
            beside = ""
            if vectors is not None:
                apart = least_cosine(model.embed(texts[:64]), vectors)
                beside = f"; {rate / theirs:.2f}x; least cosine between them {apart:.4f}"
            print(f"boostr {backend}: {rate:.0f} sentences/s{beside}", flush=True)


if __name__ == "__main__":
    main()
