"""Make data/tokenizer_files.json: folders without tokenizer.json and the ids transformers gives.

    python tests/io/make_golden_tokenizer_files.py      needs transformers, sentencepiece, protobuf

`files` maps names to texts (or, for SentencePiece models, base64), `folders` a name to `files`
(which of them lie there, and as what), `config` (its tokenizer_config.json), `ids` of each of
`texts`, `pair` (of two texts, with the types of tokens), `decoded` (without special tokens), `eos`.
"""

import base64
import io
import json
import tempfile
from pathlib import Path

import sentencepiece
import transformers
from make_golden_sentencepiece import CORPUS, RULES
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

OUT = Path(__file__).parent / "data" / "tokenizer_files.json"
TEXTS = [
    "", " ", "  two  spaces and\n\n lines\t", "The lighthouse keeper's LAMP, isn't 123!",
    "Der Leuchtturmwärter größer É e\u0301 ﬁ ½", "灯台守は毎晩 Смотритель 🙂",
    "<s>a</s> [CLS] b<|endoftext|>c <mask> d", " x", "def f(lamp):",
]  # fmt: skip
END = "<|endoftext|>"


def byte_bpe(special: list[str]) -> dict[str, str]:
    """vocab.json and merges.txt of a byte-level BPE trained on the corpus."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340 + len(special), special_tokens=special, initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    inner.train_from_iterator(CORPUS.splitlines(), trainer)
    model = json.loads(inner.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    vocab = json.dumps(model["vocab"], ensure_ascii=False, separators=(",", ":"))
    return {"vocab.json": vocab, "merges.txt": "\n".join(["#version: 0.2", *merges, ""])}


def words(special: list[str]) -> str:
    letters = sorted(set(CORPUS.lower() + CORPUS) - set(" \n\t"))[:110]
    whole = ["the", "keep", "##er", "lamp", "light", "##house", "hello", "world", "##s", "two"]
    return "\n".join([*special, *letters, *(f"##{c}" for c in letters[:90]), *whole, ""])


def clip() -> dict[str, str]:
    """As CLIP's, of few letters: those that end a word are tokens of their own."""
    letters = "abcdefghiklmnoprstuwxy0123456789.,!'():#ä"
    merges = ["t h", "th e</w>", "l a", "m p</w>", "la mp</w>", "k e", "e p", "e r</w>", "' s</w>"]
    alphabet = dict(zip("ä", ["Ã¤"], strict=True))
    plain = [c for letter in letters for c in alphabet.get(letter, letter)]
    tokens = [*plain, *(f"{c}</w>" for c in plain), *(m.replace(" ", "") for m in merges)]
    tokens += ["<|startoftext|>", END]
    vocab = json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False)
    return {"vocab.json": vocab, "merges.txt": "\n".join(["#version: 0.2", *merges, ""])}


def pieces(lines: int, **options: object) -> str:
    """A SentencePiece model trained on the first lines of the corpus."""
    model = io.BytesIO()
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as table:
        for left, right in RULES.items():
            sides = (" ".join(f"{ord(c):X}" for c in side) for side in (left, right))
            table.write("\t".join(sides) + "\n")
        table.flush()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS.splitlines()[:lines]), model_writer=model, minloglevel=2,
            hard_vocab_limit=False, character_coverage=0.98,
            **({"normalization_rule_tsv": table.name} if options["model_type"] == "unigram" else
               {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}),
            **options,
        )  # fmt: skip
    return base64.b64encode(model.getvalue()).decode()


ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
MPNET = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def made() -> dict[str, str]:
    llama = {"model_type": "bpe", "vocab_size": 450, "byte_fallback": True, "split_digits": True}
    unigram = {"model_type": "unigram", "vocab_size": 150}
    gpt, roberta, of_clip = byte_bpe([END]), byte_bpe(ROBERTA), clip()
    return {
        "gpt.vocab": gpt["vocab.json"], "gpt.merges": gpt["merges.txt"],
        "roberta.vocab": roberta["vocab.json"], "roberta.merges": roberta["merges.txt"],
        "clip.vocab": of_clip["vocab.json"], "clip.merges": of_clip["merges.txt"],
        "bert.vocab": words(BERT), "mpnet.vocab": words(MPNET),
        "llama.model": pieces(4, **llama), "xlmr.model": pieces(4, **unigram),
        "t5.model": pieces(4, **unigram, pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    }  # fmt: skip


def folders() -> dict[str, dict]:
    """(class, files, more of tokenizer_config.json) of each folder."""
    gpt = {"vocab.json": "gpt.vocab", "merges.txt": "gpt.merges"}
    roberta = {"vocab.json": "roberta.vocab", "merges.txt": "roberta.merges"}
    bert, llama = {"vocab.txt": "bert.vocab"}, {"tokenizer.model": "llama.model"}
    opt = {"add_bos_token": True, "bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>"}
    rows = {
        "gpt2": ("GPT2Tokenizer", gpt, {}), "opt": ("GPT2Tokenizer", roberta, opt),
        "gpt_neox": ("GPTNeoXTokenizerFast", gpt, {}), "qwen2": ("Qwen2Tokenizer", gpt, {}),
        "clip": ("CLIPTokenizer", {"vocab.json": "clip.vocab", "merges.txt": "clip.merges"}, {}),
        "roberta": ("RobertaTokenizer", roberta, {}), "bert": ("BertTokenizer", bert, {}),
        "bert cased": ("BertTokenizerFast", bert, {"do_lower_case": False}),
        "distilbert": ("DistilBertTokenizer", bert,
                       {"strip_accents": False, "tokenize_chinese_chars": False}),
        "mpnet": ("MPNetTokenizer", {"vocab.txt": "mpnet.vocab"}, {}),
        "llama": ("LlamaTokenizer", llama, {"add_bos_token": True}),
        "llama legacy": ("LlamaTokenizer", llama, {"legacy": True}),
        "llama no prefix": ("LlamaTokenizer", llama, {"add_prefix_space": False}),
        "gemma": ("GemmaTokenizer", llama,
                  {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<unk>",
                   "mask_token": "<unk>"}),
        "t5": ("T5Tokenizer", {"spiece.model": "t5.model"}, {"extra_ids": 3}),
        "xlm-roberta": ("XLMRobertaTokenizer", {"sentencepiece.bpe.model": "xlmr.model"}, {}),
    }  # fmt: skip
    return {
        name: {"files": files, "config": {"tokenizer_class": kind, **more}}
        for name, (kind, files, more) in rows.items()
    }


def write(folder: Path, row: dict, files: dict[str, str]) -> None:
    for name, key in row["files"].items():
        text = files[key]
        (folder / name).write_bytes(base64.b64decode(text) if ".model" in key else text.encode())
    (folder / "tokenizer_config.json").write_text(json.dumps(row["config"]))


def main() -> None:
    files, rows = made(), folders()
    for row in rows.values():
        with tempfile.TemporaryDirectory() as place:
            write(Path(place), row, files)
            theirs = transformers.AutoTokenizer.from_pretrained(place)
        row["ids"] = [theirs(text)["input_ids"] for text in TEXTS]
        pair = theirs("a b", "c", return_token_type_ids=True)
        row["pair"] = [pair["input_ids"], pair["token_type_ids"]]
        row["decoded"] = [
            theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for ids in row["ids"]
        ]
        row["eos"] = theirs.eos_token_id
    content = {"transformers": transformers.__version__, "texts": TEXTS, "files": files,
               "folders": rows}  # fmt: skip
    OUT.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", "utf-8")


if __name__ == "__main__":
    main()
