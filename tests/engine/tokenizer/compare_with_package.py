#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Compares this project's tokenizers with the packages `tokenizers`, `sentencepiece` and
`transformers` (which needs `protobuf` here) on real vocabularies and a few megabytes of prose,
code and text from all of Unicode. Run by hand:

    python tests/engine/tokenizer/compare_with_package.py build/release/bin/encode_file ../shared

The second argument is a directory with data/tokenizers and data/text. Exits 1 on a difference.
"""

import pathlib
import random
import subprocess
import sys
import tempfile
import unicodedata

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
DIGITS = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.Punctuation("isolated")]


def known_to_package(character):
    """Whether the package normalises and classifies a character as today's Unicode does. Its own
    tables are older (Unicode 9) than those of its regular expressions."""
    probes = [character, f"a{character}\u0327", f"a\u0345{character}", f"a\u0327{character}"]
    nfc, nfkc = normalizers.NFC(), normalizers.NFKC()
    punctuation = len(pre_tokenizers.Punctuation("isolated").pre_tokenize_str(f"x{character}x")) == 3
    is_ascii_punctuation = character in "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    return (all(nfc.normalize_str(p) == unicodedata.normalize("NFC", p) for p in probes)
            and all(nfkc.normalize_str(p) == unicodedata.normalize("NFKC", p) for p in probes)
            and punctuation == (unicodedata.category(character)[0] == "P" or is_ascii_punctuation))


def unicode_text(size):
    """Words, runs and single characters from every script, with much white space. Characters newer
    than the Unicode of either side are left out."""
    rng = random.Random(5)
    points = [c for c in range(0x20, 0x20000)
              if unicodedata.category(chr(c)) not in ("Cn", "Cs", "Co") and known_to_package(chr(c))]
    pieces = [" ", "  ", "\n", "\t", "\r\n", " \n ", "'s", "'S", "'ll ", "'\u017f", "12", "3", "\u180e", "\u0085",
              "\u00a0", "\u3000", "\u200b", "\u2581", "e\u0301", "\u0041\u030a", "!", "...", "\U0001F680", "\u1E9E"]
    out = []
    length = 0
    while length < size:
        kind = rng.random()
        if kind < 0.35:
            piece = rng.choice(pieces)
        elif kind < 0.7:
            start = rng.randrange(len(points) - 40)
            piece = "".join(chr(points[start + rng.randrange(40)]) for _ in range(rng.randrange(1, 9)))
        elif kind < 0.9:
            piece = "".join(rng.choice("etaoinshrdlu ETAOIN'0123456789.,;(){}=_") for _ in range(rng.randrange(1, 12)))
        else:
            piece = chr(rng.choice(points))
        out.append(piece)
        length += len(piece.encode())
    return "".join(out)


def code_text(size):
    """The interpreter's own library."""
    root = pathlib.Path(unicodedata.__file__ or random.__file__).parent
    if not list(root.glob("*.py")):
        root = pathlib.Path(random.__file__).parent
    text = ""
    for path in sorted(root.glob("*.py")):
        text += path.read_text(encoding="utf-8", errors="replace")
        if len(text) > size:
            break
    return text[:size]


def corpora(shared):
    texts = {"prose": "", "code": code_text(1_200_000), "unicode": unicode_text(1_200_000)}
    for path in sorted((shared / "data/text").rglob("*.txt"))[:12]:
        texts["prose"] += path.read_text(encoding="utf-8", errors="replace")[:150_000]
    rng = random.Random(7)
    chunks = [t[i:i + 700] for t in texts.values() for i in range(0, len(t), 700)]
    rng.shuffle(chunks)
    texts["mixed"] = "".join(chunks)
    return texts


def byte_level(model, steps, normalizer=None):
    tokenizer = Tokenizer(model)
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def llama2_fast(directory):
    """The Llama 2 vocabulary as `transformers` turns it into a tokenizer.json, in both its forms."""
    from transformers import LlamaTokenizer
    tokenizer = LlamaTokenizer.from_pretrained(directory)
    return tokenizer.backend_tokenizer


def package_tokenizers(shared, scratch):
    root = shared / "data/tokenizers"
    found = {}
    for name in ("gpt2", "gpt-neox-20b"):
        found[name] = (root / name / "tokenizer.json", Tokenizer.from_file(str(root / name / "tokenizer.json")))
    qwen = models.BPE.from_file(str(root / "qwen2.5/vocab.json"), str(root / "qwen2.5/merges.txt"))
    split = [pre_tokenizers.Split(Regex(QWEN2), "isolated")]
    found["qwen2.5"] = (root / "qwen2.5", byte_level(qwen, split, normalizers.NFC()))
    for name, tokenizer in (
            ("llama3-split", byte_level(qwen, [pre_tokenizers.Split(Regex(LLAMA3), "isolated")])),
            ("digits-split", byte_level(qwen, DIGITS, normalizers.NFKC())),
            ("llama2-json", llama2_fast(str(root / "llama2")))):
        path = scratch / f"{name}.json"
        tokenizer.save(str(path))
        found[name] = (path, tokenizer)
    for tokenizer in (t for _, t in found.values()):
        tokenizer.encode_special_tokens = True
    return found


def compare(encoder, name, path, expected, file):
    ours = subprocess.run([encoder, str(path), str(file)], capture_output=True, text=True, check=False)
    if ours.returncode:
        print(f"{name:14} FAILED {ours.stderr.strip()}")
        return False
    ids = [int(line) for line in ours.stdout.split()]
    where = next((i for i, (a, b) in enumerate(zip(ids, expected)) if a != b), min(len(ids), len(expected)))
    verdict = "equal" if ids == expected else f"DIFFERS at {where}: {ids[where:where + 6]} for {expected[where:where + 6]}"
    print(f"{name:14} {file.stem:8} {len(expected):8} ids {verdict} ({ours.stderr.strip()})", flush=True)
    return ids == expected


def main():
    encoder, shared = sys.argv[1], pathlib.Path(sys.argv[2])
    equal = True
    with tempfile.TemporaryDirectory() as directory:
        scratch = pathlib.Path(directory)
        files = {}
        for name, text in corpora(shared).items():
            files[name] = scratch / f"{name}.txt"
            files[name].write_bytes(text.encode())
        for name, (path, tokenizer) in package_tokenizers(shared, scratch).items():
            for file in files.values():
                expected = tokenizer.encode(file.read_bytes().decode(), add_special_tokens=False).ids
                equal &= compare(encoder, name, path, expected, file)
        for name, path in (("llama2-spm", shared / "data/tokenizers/llama2/tokenizer.model"),
                           ("stories260K", shared / "data/models/stories260K/tokenizer.model")):
            processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
            for file in files.values():
                equal &= compare(encoder, name, path, processor.encode(file.read_bytes().decode()), file)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
