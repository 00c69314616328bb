"""How the byte-level BPE tokenizers cut a text before merging: what `tokenizer.ggml.pre` names.

A GGUF file names its pre-tokenizer without describing it. The regexes are those of the models' own
tokenizer.json, which llama.cpp follows more or less closely: it never composes to NFC, and writes
some of them without marks. A name that is not here is refused, since a wrong pre-tokenizer gives
plausible text from wrong tokens; so are names that stand for several pre-tokenizers (falcon-h1).
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class PreTokenizer:
    """Regexes applied one after another; what they match and what lies between are pieces.

    `of_bytes` are further ones, for pieces whose bytes are written as letters already. `nfc`
    composes the text first; `whole_words` takes a piece that is a token as it is, without merging;
    `add_bos` holds unless the file says otherwise.
    """

    patterns: tuple[str, ...]
    of_bytes: tuple[str, ...] = ()
    nfc: bool = False
    whole_words: bool = False
    add_bos: bool = False


def _any(*alternatives: str) -> str:
    return "|".join(alternatives)


# What tokenizers' ByteLevel, Digits and Punctuation cut, as regexes.
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGIT, DIGITS = r"\p{N}", r"\p{N}+"
MARK, MARKS = r"[\p{P}$+<=>^`|~]", r"[\p{P}$+<=>^`|~]+"

_SUFFIX, _WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+"
_OTHER, _LINES, _SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+", r"\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LATIN = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""


def _cased(suffix: str = "", upper: str = _UPPER, lower: str = _LOWER) -> str:
    """A word of capitals and then small letters, either of which may be missing."""
    first = r"[^\r\n\p{L}\p{N}]?"
    return _any(f"{first}{upper}*{lower}+{suffix}", f"{first}{upper}+{lower}*{suffix}")


def _without_han(letters: str) -> str:
    return rf"{letters[:-1]}&&[^\p{{Han}}]]"


def _cl100k(digits: str, lines: str = _LINES) -> str:
    return _any(_SUFFIX, _WORD, digits, _OTHER, lines, _SPACES)


def _o200k(digits: str, suffix: str = "") -> str:
    return _any(_cased(suffix), digits, r" ?[^\s\p{L}\p{N}]+[\r\n/]*", _LINES, _SPACES)


_O200K = _o200k(r"\p{N}{1,3}", f"{_SUFFIX}?")
_QWEN35 = _any(
    _SUFFIX, r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+", DIGIT, r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    _LINES, _SPACES,
)  # fmt: skip
_DEEPSEEK3 = _any(
    _LATIN, r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+", r" ?[\p{P}\p{S}]+[\r\n]*", _LINES, _SPACES
)
_KANA, _CJK = "[一-龥\u3040-ゟ゠-ヿ]+", "[一-龥ࠀ-一가-\ud7ff]+"
# Letters with a case mapping, as the Unicode of its day had them.
_CASED_LETTERS = (
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕ"
    "Ἐ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbeῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126"
    "ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟"
    "𞤀-𞥃]"
)
_LLM_MARKS = "[!-/:-~！-／：-～‘-‟\u3000-。]"
_YOUTU = (
    "[가-힣ㄱ-\u318e]+|[！…“”‘’—：；，、-〿︰-\ufe4f]+|[ㄅ-ㄯ]+|" + _KANA,
    _o200k(DIGIT, f"{_SUFFIX}?"),
)
_KIMI = _any(
    r"[\p{Han}]+", _cased(f"{_SUFFIX}?", _without_han(_UPPER), _without_han(_LOWER)),
    r"\p{N}{1,3}", _OTHER, _LINES, _SPACES,
)  # fmt: skip
_LING = _any(
    r"'(?i:[sdmt]|ll|ve|re)", r"[^\r\n\p{L}\p{N}]?+\p{L}+", DIGIT, r" ?[^\s\p{L}\p{N}]++[\r\n]*",
    r"\s*[\r\n]", _SPACES,
)  # fmt: skip
_EXAONE_MOE = _any(
    _SUFFIX, r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+", DIGIT,
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?", r"\s*[\r\n]", _SPACES,
)  # fmt: skip
_SEED = _any(_SUFFIX, _WORD, DIGIT, r" ?[^\s\p{L}\p{N}\r\n]+", _LINES, _SPACES)
_RUNS_OF_SPACES = "|".join(rf"\s{{{2**n}}}(?!\S)" for n in range(9, 1, -1))
_JAIS2 = _any(
    _SUFFIX, _WORD, r"\p{N}{1,3}", _OTHER, _LINES, _RUNS_OF_SPACES, r"\s{1,2}(?!\S)|\s{1}"
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"

_PLAIN = PreTokenizer((GPT2,))
_BY_DIGIT = PreTokenizer((DIGIT, GPT2))
_LLAMA3 = PreTokenizer((_cl100k(r"\p{N}{1,3}"),), whole_words=True, add_bos=True)
_QWEN2 = PreTokenizer((_cl100k(DIGIT),))
_OPENAI = PreTokenizer((_O200K,), whole_words=True)
_TABLE = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, DIGITS, "[0-9][0-9][0-9]")),
    "gpt-2 phi-2 jais trillion granite-docling roberta-bpe jina-v1-en jina-v2-code jina-v2-es"
    " jina-v2-de jina-es jina-de mellum exaone4 gigachat a.x-4.0": _PLAIN,
    "mpt olmo modern-bert": replace(_PLAIN, nfc=True),  # GPT-NeoX's
    "starcoder refact smollm codeshell exaone minerva-7b mellum2": _BY_DIGIT,
    "command-r": replace(_BY_DIGIT, nfc=True),
    "llama-bpe llama3 llama-v3 pixtral midm-2.0 lfm2 jina-v5-nano": _LLAMA3,
    "glm4 glm5": replace(_LLAMA3, add_bos=False),
    "dbrx smaug-bpe chatglm-bpe": replace(_LLAMA3, add_bos=False, whole_words=False),
    "falcon3": PreTokenizer((MARK, GPT2), (DIGIT,)),
    "qwen2 deepseek-r1-qwen f2llmv2 stablelm2": replace(_QWEN2, nfc=True),
    "hunyuan megrez kormo solar-open": _QWEN2,
    "qwen35": PreTokenizer((_QWEN35,), nfc=True),
    "gpt-4o llama4 kanana2 granite-embed-multi-97m": _OPENAI,
    "minimax-m2": replace(_OPENAI, nfc=True),
    "tiny_aya cohere2moe": PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _O200K)),
    "tekken": PreTokenizer((_o200k(DIGIT),), whole_words=True, add_bos=True),
    "deepseek-v3 hunyuan-dense joyai-llm hy_v4": PreTokenizer((r"\p{N}{1,3}", _KANA, _DEEPSEEK3)),
    "deepseek-llm": PreTokenizer(
        (r"[\r\n]", rf"\s?{_CASED_LETTERS}+", rf"\s?{_LLM_MARKS}+", r"\s+$", _CJK, DIGIT)
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, DIGIT)),
    "falcon": PreTokenizer((MARKS, GPT2), (DIGITS, "[0-9][0-9][0-9]")),
    "bloom poro-chat gpt3-finnish": PreTokenizer((_BLOOM,)),
    "viking": PreTokenizer((_BLOOM, DIGIT)),
    "bailingmoe bailingmoe2 llada-moe": PreTokenizer((_LING,)),
    "seed-coder": PreTokenizer((_SEED,)),
    "youtu": PreTokenizer(_YOUTU, whole_words=True),
    "kimi-k2": PreTokenizer((_KIMI,), whole_words=True),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _cl100k(DIGITS)), whole_words=True),
    "exaone-moe": PreTokenizer((_EXAONE_MOE,)),
    "superbpe": PreTokenizer((DIGITS, r"(?=(\d{3})+(?!\d))")),
    "jais-2": PreTokenizer((_JAIS2,)),
}
PRE_TOKENIZERS = {name: pre for names, pre in _TABLE.items() for name in names.split()}
