"""Make the folders in tests/models/data/heads and what transformers and sentence-transformers say.

    python tests/models/make_golden_heads.py    needs torch, transformers 5, sentence-transformers 6

Run by hand; tests import neither this nor torch. Each folder has a small model with a tokenizer, as
the libraries write them, and golden.json; whole.json has logits of classifiers of texts and tokens
with every kind of head. Weights are drawn from a seed (seeded.py): of a model.safetensors only the
shapes are kept, which head_folders.py makes one of again.
"""

import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import seeded
import torch
import transformers as hf
from safetensors.numpy import load_file, save_file
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

DATA = Path(__file__).parent / "data" / "heads"
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "on",
    "mat",
    "##s",
    "##ing",
    "run",
    "what",
    "who",
    "is",
    "anna",
    "in",
    "paris",
    "?",
    ".",
    ",",
    "good",
    "bad",
]
TEXTS = ["the cat sat on a mat .", "who is anna ?", "bad dogs , in paris", "a"]
LONG = " ".join(["the dog is good , the cat is bad ."] * 8)
PAIRS = [("what is a cat ?", text) for text in (*TEXTS, LONG)]
PAIRS += [(LONG, "a mat"), (LONG, LONG), ("who ?", "anna")]
BYTES = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
TEMPLATE = (
    "{% set ns = namespace(task='Find what answers.') %}{% for m in messages %}{% if m.role =="
    " 'system' %}{% set ns.task = m.content %}{% endif %}{% endfor %}<|im_start|>user\n"
    "{{ ns.task }}{% for m in messages %}{% if m.role == 'query' %}\nQuery: {{ m.content }}"
    "{% elif m.role == 'document' %}\nDocument: {{ m.content }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = SMALL | {"vocab_size": len(WORDS), "intermediate_size": 20, "max_position_embeddings": 40}
DECODER = SMALL | {
    "hidden_size": 8,
    "vocab_size": 262, "intermediate_size": 20, "num_key_value_heads": 1, "head_dim": 8,
    "max_position_embeddings": 160, "tie_word_embeddings": False, "pad_token_id": 261,
}  # fmt: skip
ALL = {
    "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4,
    "vocab_size": 20, "max_position_embeddings": 16, "embedding_size": 4, "pad_token_id": 0,
    "num_key_value_heads": 1, "head_dim": 4, "num_labels": 3,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}
HEADS = {
    "albert": ("Albert", {}), "bert": ("Bert", {}),
    "distilbert": ("DistilBert", {"dim": 4, "n_heads": 1, "hidden_dim": 4, "n_layers": 1}),
    "electra": ("Electra", {}), "gte": ("Gte", {}), "mpnet": ("MPNet", {}),
    "eurobert": ("EuroBert", {}),
    "eurobert/bos": ("EuroBert", {"classifier_pooling": "bos"}),
    "modernbert": ("ModernBert", {"classifier_pooling": "cls"}),
    "modernbert/mean": ("ModernBert", {"classifier_pooling": "mean", "classifier_bias": True,
                                       "norm_bias": True, "norm_eps": 1e-3}),
    "nomic_bert": ("NomicBert", {}), "roberta": ("Roberta", {}), "llama": ("Llama", {}),
    "gpt_neox": ("GPTNeoX", {"rope_parameters": ROPE}),
}  # fmt: skip


def drawn(model, folder, seed):
    """The model with weights that are drawn, as it is read from the folder that it is saved in."""
    model.save_pretrained(folder)
    draw(folder, seed)
    return type(model).from_pretrained(folder).eval()


def draw(folder, seed):
    file = Path(folder) / "model.safetensors"
    save_file(seeded.weights(seed, shapes(file), {}), file, {"format": "pt"})


def shapes(file):
    return {name: [*array.shape] for name, array in load_file(file).items()}


def fresh(name):
    shutil.rmtree(DATA / name, ignore_errors=True)
    (DATA / name).mkdir(parents=True)
    return DATA / name


def finish(folder, seed, golden):
    for path in folder.glob("README.md"):
        path.unlink()
    file = folder / "model.safetensors"
    golden["weights"] = {"seed": seed, "shapes": shapes(file)}
    again = seeded.weights(seed, golden["weights"]["shapes"], {})
    assert all(np.array_equal(again[name], array) for name, array in load_file(file).items())
    file.unlink()
    (folder / "golden.json").write_text(json.dumps(rounded(golden)) + "\n")
    print(folder.name, sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()))


def rounded(value):
    """Numbers with seven digits, about those of a float32."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value if isinstance(value, str | int | None) else float(f"{float(value):.7g}")


def bert_tokenizer(folder, **more):
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = hf.BertTokenizer(vocab=str(folder / "vocab.txt"), **more)
    (folder / "vocab.txt").unlink()
    return tokenizer


def byte_tokenizer(template=None, ends=False, side="left"):
    vocab = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocab |= {"ye": 256, "yes": 257, "no": 258}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[("y", "e"), ("ye", "s"), ("n", "o")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(text, normalized=False) for text in BYTES])
    if ends:
        inner.post_processor = processors.TemplateProcessing(
            single=f"$A {BYTES[2]}", pair=f"$A {BYTES[2]} $B:1 {BYTES[2]}:1",
            special_tokens=[(BYTES[2], 261)],
        )  # fmt: skip
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=BYTES[2], eos_token=BYTES[1], chat_template=template,
        padding_side=side,
    )  # fmt: skip


def bert_reranker():
    folder = fresh("bert_reranker")
    drawn(hf.BertForSequenceClassification(hf.BertConfig(**BERT, num_labels=1)), folder, 0)
    bert_tokenizer(folder).save_pretrained(folder)
    model = CrossEncoder(str(folder), prompts={"ask": "who , "}, device="cpu")
    golden = {"pairs": PAIRS, "scores": model.predict(PAIRS).tolist()}
    golden["prompted"] = model.predict(PAIRS, prompt_name="ask").tolist()
    golden["logits"] = model.predict(PAIRS, activation_fn=torch.nn.Identity()).tolist()
    golden["rank"] = model.rank("what is a cat ?", TEXTS)
    model.save_pretrained(str(folder))
    finish(folder, 0, golden)


def bert_labels():
    folder = fresh("bert_labels")
    labels = {0: "good", 1: "bad", 2: "neither"}
    config = hf.BertConfig(**BERT, num_labels=3, id2label=labels)
    drawn(hf.BertForSequenceClassification(config), folder, 1)
    tokenizer = bert_tokenizer(folder, model_max_length=24)
    tokenizer.save_pretrained(folder)
    golden = {"texts": [*TEXTS, LONG], "pairs": PAIRS}
    for problem in (None, "multi_label_classification", "regression"):
        config.problem_type = problem
        model = hf.AutoModelForSequenceClassification.from_pretrained(folder, config=config)
        pipe = hf.pipeline(
            "text-classification", model=model, tokenizer=tokenizer, top_k=None, device="cpu"
        )
        key = problem or "softmax"
        golden[key] = [pipe({"text": t}, truncation=True) for t in golden["texts"]]
        golden[f"{key} of pairs"] = [
            pipe({"text": a, "text_pair": b}, truncation=True) for a, b in PAIRS
        ]
    finish(folder, 1, golden)


def bert_tokens():
    folder = fresh("bert_tokens")
    labels = dict(enumerate(("O", "B-PER", "I-PER", "B-LOC", "I-LOC")))
    tokenizer = bert_tokenizer(folder)
    tokenizer.save_pretrained(folder)
    for seed in range(100):  # one that tells things apart
        made = hf.BertForTokenClassification(hf.BertConfig(**BERT, id2label=labels))
        model = drawn(made, folder, seed)
        logits = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS]
        if len(set(torch.cat(logits).argmax(1).tolist())) == len(labels):
            break
    golden = {
        "texts": ["the Cats sat on a mat .", "who  is anna , in\nparis ?", "bad dogs in paris", "a"]
    }
    for strategy, left_out in (("none", []), ("simple", ["O"])):
        pipe = hf.pipeline(
            "token-classification", model=model, tokenizer=tokenizer, device="cpu",
            aggregation_strategy=strategy, ignore_labels=left_out,
        )  # fmt: skip
        golden[strategy] = [pipe(text) for text in golden["texts"]]
    finish(folder, seed, golden)


def llama_labels():
    folder = fresh("llama_labels")
    config = hf.LlamaConfig(**DECODER, num_labels=2, id2label={0: "no", 1: "yes"})
    model = drawn(hf.LlamaForSequenceClassification(config), folder, 4)
    tokenizer = byte_tokenizer(side="right")
    tokenizer.save_pretrained(folder)
    texts = [*TEXTS, "ends in pads<|endoftext|><|endoftext|>", "<|endoftext|>"]
    with torch.no_grad():
        logits = model(
            **tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
        ).logits
    finish(folder, 4, {"texts": texts, "logits": logits.tolist()})


def qwen3_reranker():
    folder = fresh("qwen3_reranker")
    config = hf.Qwen3Config(**DECODER)
    drawn(hf.Qwen3ForCausalLM(config), folder, 5)
    byte_tokenizer(TEMPLATE).save_pretrained(folder)
    model = CrossEncoder(str(folder), device="cpu")
    model[0].processing_kwargs = {"chat_template": {"add_generation_prompt": True}}
    short = [(a[:20], b[:40]) for a, b in PAIRS]
    golden = {"pairs": [*short, PAIRS[4]]}
    golden["scores"] = model.predict(golden["pairs"]).tolist()
    golden["logits"] = model.predict(golden["pairs"], activation_fn=torch.nn.Identity()).tolist()
    golden["prompted"] = model.predict(golden["pairs"], prompt="Other task.").tolist()
    model.save_pretrained(str(folder))
    finish(folder, 5, golden)


def qwen3_embedding():
    folder = fresh("qwen3_embedding")
    drawn(hf.Qwen3Model(hf.Qwen3Config(**DECODER)), folder, 6)
    byte_tokenizer(ends=True).save_pretrained(folder)
    modules = [Transformer(str(folder)), Pooling(8, pooling_mode="lasttoken"), Normalize()]
    model = SentenceTransformer(
        modules=modules, prompts={"query": "Query: ", "document": ""}, device="cpu"
    )
    model.save_pretrained(str(folder))
    texts = [*TEXTS, LONG]
    golden = {"texts": texts, "vectors": model.encode(texts).tolist()}
    golden["queries"] = model.encode(texts, prompt_name="query").tolist()
    finish(folder, 6, golden)


def static_embedding():
    folder = fresh("static_embedding")
    inner = bert_tokenizer(folder).backend_tokenizer
    name = "embedding.weight"
    table = seeded.weights(7, {name: (len(WORDS), 12)}, {})[name]
    model = SentenceTransformer(
        modules=[StaticEmbedding(inner, embedding_weights=table), Normalize()], device="cpu"
    )
    model.save_pretrained(str(folder))
    texts = [*TEXTS, LONG]
    finish(folder, 7, {"texts": texts, "vectors": model.encode(texts).tolist()})


def whole():
    """Classifiers with all their layers; pairs where the model tells segments apart."""
    ids = [[11, 5, 9, 13, 7], [11, 6, 8, 12, 4, 15, 3]]
    found = {}
    for name, (kind, changes) in HEADS.items():
        config = getattr(hf, f"{kind}Config")(**ALL | {"max_position_embeddings": 12} | changes)
        types = None
        if getattr(config, "type_vocab_size", 0) > 1:
            types = [[int(at > 2) for at in range(len(row))] for row in ids]
        row = found[name] = {"config": config.to_diff_dict(), "ids": ids, "types": types}
        row["config"] |= {
            "model_type": config.model_type,
            "id2label": {i: f"L{i}" for i in range(3)},
        }
        for task in ("Sequence", "Token"):
            made = getattr(hf, f"{kind}For{task}Classification")
            with tempfile.TemporaryDirectory() as folder:  # under the names that files have
                model = drawn(made(config), folder, 1)
                named = shapes(Path(folder) / "model.safetensors")
            row[task] = {"architecture": made.__name__, "logits": logits(model, ids, types)}
            body = row.setdefault("shapes", named)
            row[task] |= {"has": {n: s for n, s in named.items() if body.get(n) != s}}
            row[task] |= {"lacks": [n for n in body if n not in named]}
    text = json.dumps(rounded(found)).replace('}, "', '},\n"')
    (DATA / "whole.json").write_text(text + "\n")
    print("whole.json", len(text))


def logits(model, ids, types):
    """Of each text, or of each of all tokens."""
    rows = []
    for i, row in enumerate(ids):
        more = {} if types is None else {"token_type_ids": torch.tensor([types[i]])}
        with torch.no_grad():
            rows.append(model(torch.tensor([row]), **more).logits.reshape(-1, 3))
    return torch.cat(rows).tolist()


def main():
    hf.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for make in (bert_reranker, bert_labels, bert_tokens, llama_labels, qwen3_reranker,
                 qwen3_embedding, static_embedding, whole):  # fmt: skip
        make()


if __name__ == "__main__":
    main()
