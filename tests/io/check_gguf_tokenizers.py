"""Compare our tokenizers of GGUF vocabularies with the ids of Hugging Face's.

    python tests/io/check_gguf_tokenizers.py FOLDER

FOLDER holds vocabularies as llama.cpp has them in `models/`: NAME.gguf, NAME.gguf.inp with texts
and NAME.gguf.out with the ids that the model's own tokenizer gives, without BOS and EOS. Prints a
line for each and exits with 1 if a text has other ids, or is another text when decoded. Texts that
a tokenizer composes to NFC are left out: llama.cpp does not, and some lists are made with it.
"""

import sys
import time
import unicodedata
from pathlib import Path

from tokenizers.normalizers import NFC

from boostr.errors import TokenizerError
from boostr.io.gguf import GGUFFile
from boostr.io.tokenizer import Tokenizer

BETWEEN = "\n__ggml_vocab_test__\n"
LOSES = ("bert",)  # kinds that do not keep case and spaces


def check(path: Path) -> bool:
    """Whether all texts beside a vocabulary have the ids beside it."""
    with GGUFFile(path) as file:
        kind = file.metadata["tokenizer.ggml.model"]
        pre = file.metadata.get("tokenizer.ggml.pre")
        start = time.perf_counter()
        try:
            ours = Tokenizer.from_gguf(file.metadata)
        except TokenizerError as error:
            print(f"{path.name:32} {kind}/{pre}: refused: {error!s:.90}")
            return True
    seconds = time.perf_counter() - start
    told = path.with_name(path.name + ".inp")
    texts = told.read_bytes().decode().removesuffix(BETWEEN).split(BETWEEN) if told.exists() else []
    lines = path.with_name(path.name + ".out").read_text().splitlines() if texts else []
    wrong, composes = [], isinstance(ours.inner.normalizer, NFC)
    for text, line in zip(texts, lines, strict=True):
        if composes and not unicodedata.is_normalized("NFC", text):
            continue
        ids = [int(id_) for id_ in line.split()]
        got = ours.encode(text, add_special_tokens=False)
        if got != ids:
            wrong.append(f"{text!r:.60}: {got} instead of {ids}")
        back = ours.decode(ids, skip_special_tokens=False)
        if kind not in LOSES and back != text:
            wrong.append(f"{text!r:.60}: decoded to {back!r:.60}")
    print(f"{path.name:32} {kind}/{pre}: {len(texts)} texts, {len(wrong)} wrong, {seconds:.2f} s")
    for problem in wrong:
        print(f"    {problem}")
    return not wrong


if __name__ == "__main__":
    right = [check(path) for path in sorted(Path(sys.argv[1]).glob("*.gguf"))]
    sys.exit(not all(right))
