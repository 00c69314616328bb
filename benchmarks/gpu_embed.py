"""Sentence embeddings on a GPU, an encoder of bge-m3's size: boostr beside sentence-transformers.

    python benchmarks/gpu_embed.py [--backend cupy] [--sentences 8192] [--layers 24]

Random bf16 weights of XLM-RoBERTa-large's shape, [CLS] pooling, the sentences of cpu_embed.py:
texts in, vectors out. The peer is sentence-transformers in bf16 with SDPA, in the same process, its
own order and batches (32); the figures are the best of three.
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


def best(run: Any, count: int) -> float:
    """Sentences a second, the best of three after one that compiles."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return count / min(seconds[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", default="cupy")
    parser.add_argument("--sentences", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--no-peer", action="store_true")
    options = parser.parse_args()
    texts = sentences(options.sentences)
    with tempfile.TemporaryDirectory() as place:
        make_folder(Path(place), options.layers)
        import boostr

        model: Any = boostr.load(place, backend=options.backend)
        mine = best(lambda: model.embed(texts), len(texts))
        vectors = model.embed(texts[:64])
        print(f"boostr {options.backend}: {mine:.0f} sentences/s", flush=True)
        if options.no_peer:
            return
        import torch
        from sentence_transformers import SentenceTransformer

        settings = {"dtype": torch.bfloat16, "attn_implementation": "sdpa"}
        peer: Any = SentenceTransformer(place, device="cuda", model_kwargs=settings)
        theirs = best(lambda: peer.encode(texts), len(texts))
        other = np.asarray(peer.encode(texts[:64]), np.float32)
    apart = (
        (vectors * other).sum(1) / np.linalg.norm(vectors, axis=1) / np.linalg.norm(other, axis=1)
    )
    print(f"sentence-transformers: {theirs:.0f} sentences/s; {mine / theirs:.2f}x; "
          f"least cosine between them {apart.min():.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
