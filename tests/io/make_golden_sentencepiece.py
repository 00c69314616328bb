"""Make data/sentencepiece.json and unigram.json: small SentencePiece models and the ids they give.

    python tests/io/make_golden_sentencepiece.py      needs the packages sentencepiece, protobuf

`texts` are random mixtures; `models` maps a name to `metadata` (what a GGUF file would say: tokens,
scores, token types and flags, without their prefix), `ids` of each text, without BOS or EOS, and
`decoded`, the text that these ids give. The models differ in what GGUF has flags or types for.
unigram.json has fewer texts, and the map of characters of each model in base64.
"""

import base64
import io
import json
import random
import tempfile
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

DATA = Path(__file__).parent / "data"
CORPUS = """\
The lighthouse keeper climbed the stairs every evening and lit the lamp before the ships came in.
She sells sea shells by the sea shore; the shells she sells are surely seashells, she said 1234567.
Der Leuchtturmwärter stieg jeden Abend die Treppe hinauf, größer als die Häuser über dem Fluss.
Le gardien du phare montait l'escalier chaque soir où l'été s'achève, déjà très loin de l'œuvre.
Смотритель маяка каждый вечер поднимался по лестнице и зажигал лампу для кораблей.
灯台守は毎晩階段を上り、船のために明かりをともした。 守塔人每天晚上爬上楼梯点灯。
등대지기는 매일 저녁 계단을 올라가 등불을 켰다. حارس المنارة يصعد الدرج كل مساء
ผู้ดูแลประภาคาร चौकीदार हर शाम दीपक जलाता था 🙂 🙂 👩‍👩‍👧 🤯
def keep(lamp, hours=12):    # four spaces
    for hour in range(hours):
        if lamp[hour] != None and lamp[hour] >= 0.5: return {"lit": [hour, lamp[hour] ** 2]}
    return <b>bold</b> <i>text</i> <table><tr><td>1</td></tr></table>
aaaa aaaaaaa abababab ababab xyxyxyx 111 2222 33333 ------- ======= ....... !!!!!
"""
ODD = [
    " ", "  ", "   ", "     ", "\n", "\n\n", "\t", "\r\n", "a", "aa", "aaa", "ab", "aba", "▲", "é",
    "e\u0301", "ﬁ", "½", "Ⅷ", "你", "ไ", "🙂", "👩\u200d👩\u200d👧", "\U0001d54f", "\u00a0",
    "\u3000", "\u200b", "\ufeff", "<", "<b>", "</b>", "<i", "0x4F", "<0x4F>", "12", "1234567890",
    "@@", "[INST]", ".",
]  # fmt: skip
# As Llama 2 (prefix), Gemma (none; tokens of its own), and the trainer's defaults for the rest.
MODELS = {
    "prefix": {"byte_fallback": True, "split_digits": True},
    "no prefix": {
        "byte_fallback": True, "add_dummy_prefix": False,
        "user_defined_symbols": ["<b>", "</b>", "\u2581" * 2, "\u2581" * 4, "[INST]", "\n\n"],
    },
    "extra whitespace removed": {"byte_fallback": True, "remove_extra_whitespaces": True},
    "no bytes": {"remove_extra_whitespaces": False, "split_by_whitespace": False},
}  # fmt: skip
# As T5 and XLM-R (spaces trimmed; their map of characters cut down), and none of it.
UNIGRAM = {
    "trimmed": {"remove_extra_whitespaces": True},
    "bytes": {"byte_fallback": True, "add_dummy_prefix": False, "user_defined_symbols": ["<b>"]},
}
SPACES = dict.fromkeys("\t\n\r\u00a0\u3000", " ")
RULES = {**SPACES, "ﬁ": "fi", "½": "1/2", "e\u0301": "é"}


def train(**options: object) -> sentencepiece.SentencePieceProcessor:
    """A model of 700 pieces; what no option says is as in Llama 2."""
    chosen: dict = {
        "remove_extra_whitespaces": False, "model_type": "bpe", "vocab_size": 700,
        "normalization_rule_name": "identity", "allow_whitespace_only_pieces": True,
    } | options  # fmt: skip
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()), model_writer=model, minloglevel=2,
        character_coverage=0.98, **chosen,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def metadata(made: sentencepiece.SentencePieceProcessor) -> dict[str, object]:
    """The fields that llama.cpp's converter writes; the enum of types is SentencePiece's own."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(made.serialized_model_proto())
    return {
        "tokens": [piece.piece for piece in proto.pieces],
        "scores": [piece.score for piece in proto.pieces],
        "token_type": [piece.type for piece in proto.pieces],
        "add_space_prefix": proto.normalizer_spec.add_dummy_prefix,
        "remove_extra_whitespaces": proto.normalizer_spec.remove_extra_whitespaces,
    }


def texts() -> list[str]:
    rng = random.Random(0)
    words = CORPUS.replace("\n", " ").split(" ")
    lines = CORPUS.splitlines()
    made = ["", " ", "  x  ", *lines]
    while len(made) < 300:
        pieces = rng.choices([*words, *ODD, *ODD], k=rng.randint(1, 12))
        made.append(rng.choice(["", " ", ""]).join(pieces))
    return made


def unigram() -> None:
    given, models = texts()[:36], {}
    rules = [("\t".join(" ".join(f"{ord(c):X}" for c in side) for side in rule))
             for rule in RULES.items()]  # fmt: skip
    with tempfile.NamedTemporaryFile("w", suffix=".tsv") as table:
        table.write("\n".join(rules) + "\n")
        table.flush()
        for name, options in UNIGRAM.items():
            made = train(
                model_type="unigram", hard_vocab_limit=False, normalization_rule_tsv=table.name,
                allow_whitespace_only_pieces=False, **options,
            )  # fmt: skip
            proto = sentencepiece_model_pb2.ModelProto.FromString(made.serialized_model_proto())
            for piece in proto.pieces:  # so that sums of them are exact in float32
                piece.score = round(piece.score * 1024) / 1024
            made = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
            charsmap = base64.b64encode(proto.normalizer_spec.precompiled_charsmap).decode()
            ids = [made.encode(text) for text in given]
            models[name] = {"metadata": metadata(made), "charsmap": charsmap, "ids": ids}
            models[name]["decoded"] = [made.decode(row) for row in ids]
    write("unigram.json", given, models)


def write(name: str, given: list[str], models: dict) -> None:
    content = {"sentencepiece": sentencepiece.__version__, "texts": given, "models": models}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    (DATA / name).write_text(text + "\n", encoding="utf-8")


def main() -> None:
    given, models = texts(), {}
    for name, options in MODELS.items():
        made = train(**options)
        ids = [made.encode(text) for text in given]
        models[name] = {
            "metadata": metadata(made), "ids": ids, "decoded": [made.decode(row) for row in ids],
        }  # fmt: skip
    write("sentencepiece.json", given, models)
    unigram()


if __name__ == "__main__":
    main()
