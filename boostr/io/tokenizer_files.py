"""The tokenizer of a folder without tokenizer.json, from the files that training left there.

The files are a vocabulary: vocab.json and merges.txt, vocab.txt, or a SentencePiece model. What is
done with it, the Python class that tokenizer_config.json names knows. `CLASSES` says that of each
class as transformers 5 has it; another is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from boostr.errors import TokenizerError
from boostr.io.pre_tokenizers import PRE_TOKENIZERS
from boostr.io.sentencepiece_model import build_gemma, build_llama, build_t5, build_xlm_roberta
from boostr.io.settings import Settings, read_json_file
from boostr.io.special_tokens import surround
from boostr.io.text_file import read_text
from boostr.io.tokenizer_byte_bpe import build_byte_bpe

if TYPE_CHECKING:
    import tokenizers

_END = "<|endoftext|>"
_OF_GPT2 = {"bos_token": _END, "eos_token": _END, "unk_token": _END}
_OF_QWEN = {"eos_token": _END, "pad_token": _END}
_OF_ROBERTA = {
    "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>",
    "unk_token": "<unk>", "pad_token": "<pad>", "mask_token": "<mask>",
}  # fmt: skip
_OF_BERT = {
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}  # fmt: skip
_OF_LLAMA = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_OF_CLIP = {
    "bos_token": "<|startoftext|>", "eos_token": _END, "unk_token": _END, "pad_token": _END,
}  # fmt: skip
_OF_T5 = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
_OF_GEMMA = {
    "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>",
    "mask_token": "<mask>",
}  # fmt: skip
_CLIP = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclass(frozen=True)
class FromFiles:
    """How a class makes a tokenizer: `build` reads the files of a folder.

    `names` are its special tokens unless the config has others; `around` names the tokens before
    and behind a text, `pair` is the template of two texts, with CLS and SEP for these tokens.
    """

    build: Callable[[Path, Settings], tokenizers.Tokenizer]
    names: dict[str, str] = field(default_factory=dict)
    around: tuple[str | None, str] | None = None
    pair: str = "CLS $A SEP SEP $B SEP"

    def usual(self, inner: tokenizers.Tokenizer) -> dict[str, str]:
        """The class's special tokens, those that the vocabulary has."""
        return {n: text for n, text in self.names.items() if inner.token_to_id(text) is not None}

    def surround(self, inner: tokenizers.Tokenizer, names: dict[str, str], source: str) -> None:
        """Puts the tokens of the class around a text.

        Raises:
            TokenizerError: the vocabulary does not have one of them.
        """
        if self.around is None:
            return
        ends: list[tuple[str, int] | None] = []
        for name in self.around:
            text = None if name is None else names.get(name)
            id_ = None if text is None else inner.token_to_id(text)
            if name is not None and id_ is None:
                raise TokenizerError(f"{source}: no {name} in the vocabulary")
            ends.append(None if text is None or id_ is None else (text, id_))
        cls, sep = ("" if end is None else end[0] for end in ends)
        pair = self.pair.replace("CLS", cls).replace("SEP", sep)
        surround(inner, ends[0], ends[1], pair.split())


def _bytes(pre: str) -> Callable[[Path, Settings], tokenizers.Tokenizer]:
    def build(folder: Path, config: Settings) -> tokenizers.Tokenizer:
        if config.get("add_prefix_space"):
            raise TokenizerError(f"{config.source}: add_prefix_space = True is not supported")
        vocab, merges = _vocab_and_merges(folder)
        return build_byte_bpe(vocab, merges, PRE_TOKENIZERS[pre], str(folder))

    return build


def _clip(folder: Path, config: Settings) -> tokenizers.Tokenizer:
    """BPE of lower-cased words whose last letters are marked with </w>."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    vocab, merges = _vocab_and_merges(folder)
    end = "</w>"
    model = models.BPE(
        vocab=vocab, merges=merges, end_of_word_suffix=end, unk_token=_unknown(config, _OF_CLIP)
    )
    inner = Tokenizer(model)
    one_space = normalizers.Replace(Regex(r"\s+"), " ")
    inner.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.NFC(), one_space, normalizers.Lowercase()]
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(_CLIP), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = decoders.Sequence(  # type: ignore[assignment]
        [decoders.ByteLevel(), decoders.Replace(Regex(rf"{end}\z"), ""), decoders.Replace(end, " ")]
    )
    return inner


def _unknown(config: Settings, usual: dict[str, str]) -> str:
    value = config.get("unk_token", usual["unk_token"])
    return value["content"] if isinstance(value, dict) else value


def _words(folder: Path, config: Settings) -> tokenizers.Tokenizer:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    lines = (read_text(folder / "vocab.txt") or "").rstrip("\n").split("\n")
    vocab = {token.rstrip("\r"): id_ for id_, token in enumerate(lines)}
    unknown = _unknown(config, _OF_BERT)
    if unknown not in vocab:
        raise TokenizerError(f"{folder / 'vocab.txt'}: has no unk_token {unknown!r:.80}")
    inner = Tokenizer(models.WordPiece(vocab=vocab, unk_token=unknown))
    inner.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    inner.decoder = decoders.WordPiece()  # type: ignore[assignment]
    return inner


def _vocab_and_merges(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    vocab = read_json_file(folder / "vocab.json", TokenizerError)
    lines = (read_text(folder / "merges.txt") or "").split("\n")
    rows = [line.split(" ") for line in lines if line.strip() and not line.startswith("#version")]
    if not isinstance(vocab, dict) or not all(type(id_) is int for id_ in vocab.values()):
        raise TokenizerError(f"{folder / 'vocab.json'}: must map tokens to ids")
    bad = next((row for row in rows if len(row) != 2), None)
    if bad is not None or not rows:
        what = "no merges" if bad is None else f"{' '.join(bad)!r:.80} is no merge of two tokens"
        raise TokenizerError(f"{folder / 'merges.txt'}: {what}")
    return vocab, [(left, right) for left, right in rows]


_CLS_SEP = ("cls_token", "sep_token")
_GPT2 = FromFiles(_bytes("gpt-2"), _OF_GPT2)
_ROBERTA = FromFiles(_bytes("gpt-2"), _OF_ROBERTA, _CLS_SEP)
_BERT = FromFiles(_words, _OF_BERT, _CLS_SEP, "CLS $A SEP $B:1 SEP:1")
CLASSES = {
    "GPT2Tokenizer": _GPT2,
    "CodeGenTokenizer": _GPT2,
    "GPTNeoXTokenizer": FromFiles(_bytes("mpt"), _OF_GPT2 | {"pad_token": "<|padding|>"}),
    "Qwen2Tokenizer": FromFiles(_bytes("qwen2"), _OF_QWEN),
    "RobertaTokenizer": _ROBERTA,
    "BartTokenizer": _ROBERTA,
    "LongformerTokenizer": _ROBERTA,
    "CLIPTokenizer": FromFiles(_clip, _OF_CLIP, ("bos_token", "eos_token")),
    "BertTokenizer": _BERT,
    "DistilBertTokenizer": _BERT,
    "ElectraTokenizer": _BERT,
    "MPNetTokenizer": FromFiles(_words, _OF_ROBERTA | {"unk_token": "[UNK]"}, _CLS_SEP),
    "LlamaTokenizer": FromFiles(build_llama, _OF_LLAMA),
    "GemmaTokenizer": FromFiles(build_gemma, _OF_GEMMA),
    "T5Tokenizer": FromFiles(build_t5, _OF_T5, (None, "eos_token"), "$A SEP $B SEP"),
    "XLMRobertaTokenizer": FromFiles(build_xlm_roberta, _OF_ROBERTA, ("bos_token", "eos_token")),
}
# Where tokenizer_config.json names no class, by the model_type of config.json.
_OF_MODEL = {
    "GPT2Tokenizer": "gpt2 gpt_neo gptj opt phi codegen starcoder2",
    "GPTNeoXTokenizer": "gpt_neox olmo", "Qwen2Tokenizer": "qwen2 qwen3",
    "RobertaTokenizer": "roberta bart longformer", "MPNetTokenizer": "mpnet",
    "BertTokenizer": "bert distilbert electra nomic_bert", "LlamaTokenizer": "llama mistral",
    "GemmaTokenizer": "gemma gemma2 gemma3", "T5Tokenizer": "t5 mt5",
    "XLMRobertaTokenizer": "xlm-roberta", "CLIPTokenizer": "clip",
}  # fmt: skip
_FILES = (
    "tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model",
    "sentencepiece.bpe.model",
)  # fmt: skip


def tokenizer_file(folder: Path) -> str | None:
    """The name of the file that a model folder's tokenizer is in, None if it has none."""
    return next((name for name in _FILES if (folder / name).is_file()), None)


def class_of(folder: Path, config: Settings) -> FromFiles:
    """What makes the tokenizer of a folder without tokenizer.json.

    Raises:
        TokenizerError: there are no files of one, or its class is not known.
    """
    if tokenizer_file(folder) is None:
        raise TokenizerError(
            f"{folder / 'tokenizer.json'}: no such file, nor {', '.join(_FILES[1:])}; transformers "
            "writes it with AutoTokenizer.from_pretrained(...).save_pretrained(folder)"
        )
    name = config.get("tokenizer_class")
    if name is None:
        model = read_json_file(folder / "config.json", TokenizerError)
        kind = model.get("model_type") if isinstance(model, dict) else None
        name = next((name for name, kinds in _OF_MODEL.items() if kind in kinds.split()), None)
    known = CLASSES.get(str(name).removesuffix("Fast"))
    if known is None:
        raise TokenizerError(
            f"{config.source}: without a tokenizer.json the tokenizer is what its tokenizer_class "
            f"makes of the files, and {name!r} is not known; known are {', '.join(CLASSES)}. "
            "transformers writes tokenizer.json with AutoTokenizer.from_pretrained(...)"
            ".save_pretrained(folder)"
        )
    return known
