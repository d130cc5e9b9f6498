#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes tests/data/tokenizer/: tiny tokenizers trained on the text below, and what the packages
`tokenizers` 0.23 and `sentencepiece` 0.2 make of the strings below with them.

    python tests/engine/tokenizer/make_golden.py

Each NAME.golden.json is {"cases": [{"text", "plain", "special", "decoded", "decoded_all"}]}:
`plain` are the ids where special tokens are text and nothing is added, `special` those where
special tokens are parsed and the model's own are added (tokenizer.json only), `decoded` and
`decoded_all` are `special` decoded without and with special tokens.
"""

import json
import pathlib

import sentencepiece
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers,
                        pre_tokenizers, processors, trainers)

OUT = pathlib.Path(__file__).resolve().parents[2] / "data" / "tokenizer"

CORPUS = """
The harbour wakes before the town does. At five the first boats come in, their lamps still lit,
and the gulls that slept on the breakwater lift off all at once, as if somebody had shaken a cloth.
There's ice to be shovelled, there are crates to be stacked; nobody talks much, because there is
nothing to say that the day before hasn't said already. By seven the fish are gone, and the
harbour belongs to people who've come to look at it.

In winter it is different. Storms keep the boats inside for weeks: 12 days in 1998, 17 in 2003,
31 in 2010. The old men play cards in the ticket office and argue about which storm was worst.
It's never the same one twice. "You weren't there," they tell each other, "so you can't know."
They're right, of course; we'd all been somewhere else, and I'll admit that I don't miss it.

def count_words(text, limit=100):
    counts = {}
    for word in text.split():
        counts[word] = counts.get(word, 0) + 1
    return sorted(counts.items(), key=lambda item: -item[1])[:limit]

int main(int argc, char** argv) {
    for (int i = 0; i < argc; ++i) {
        printf("%d: %s\\n", i, argv[i]);
    }
    return 0;
}

Das Schiff fährt über die Förde, während die Möwen schreien. Größe und Maß stimmen überein.
L'été dernier, la mer était calme; où êtes-vous allés? Ça va très bien, merci.
Корабль уходит в море, и чайки кричат над водой. Сегодня ветер слабый.
船は港を出て、海へ向かう。海鳥が鳴いている。今日は風が弱い。
""" * 3

STRINGS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\n", " \n ", "a", " a", "a ", "  a  ",
    "The harbour wakes before the town does.", " The harbour", "the  harbour   of    spaces",
    "There's ice; they're here, we'd know, I'll go, I'm in, you've seen, he can't.",
    "THERE'S ICE, THEY'RE HERE, I'LL GO", "it\u017f'\u017f long \u017f 'S",
    "12 345 6789 12345678901234567890 3.14159 1,000,000",
    "x=1;y=2\n\tif (x<y) {\r\n\t\treturn x+y;\r\n\t}\n",
    "    indented\n        twice\n\n\n    back  \n",
    "Die Größe fährt über Förde", "e\u0301te\u0301 vs \u00e9t\u00e9", "\u212b \ufb01 \u2460 \u00bd",
    "Корабль уходит", "船は港を出て", "\U0001F680 rocket \U0001F469\u200d\U0001F680\U0001F3FD x",
    "\u00a0nbsp\u2003em\u3000ideographic\u2028line\u180emvs\u200bzwsp\u0085nel",
    "\u0e01\u0e32\u0e23 \u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "\u2581already\u2581marked \u2581 mark", "<0x41> <0x0A> byte-like", "<unk> <s> </s> as text",
    "<|begin|>user<|end|>", "a<|begin|>b <|end|> c", "<|begin|><|begin|>", "<|begin", "|end|>",
    "keep <mask> space", "keep   <mask>   space", "<mask>", " <mask> <mask> ",
    "word[tool]word", " [tool] ", "xtool tool toolx tool_x", "harbourtool",
    "\x00\x01\x7f control", "a\ufeffb\ufffdc", "!!!??? ... --- ''' \"\"\" ``` ~~~ ((())) [[]] {{}}",
    "camelCaseWord snake_case_word SCREAMING_CASE kebab-case-word",
    "http://example.org/a/b?c=d&e=f#g user@example.org",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "harbourharbourharbourharbourharbourharbourharbourharbourharbourharbourharbourharbour",
    " zyzzyx", "yzzyx zyzzyx", " " * 70 + "x" + "\n" * 40 + "\t" * 9 + "y",
]

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
          r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")


def train(tokenizer, vocab, alphabet, specials=(), limit=10_000):
    trainer = trainers.BpeTrainer(vocab_size=vocab, show_progress=False, initial_alphabet=alphabet,
                                  special_tokens=list(specials), limit_alphabet=limit)
    tokenizer.train_from_iterator(CORPUS.split("\n"), trainer)
    return tokenizer


def byte_level(pre_tokenizer, normalizer=None, limit=10_000):
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    return train(tokenizer, 560, pre_tokenizers.ByteLevel.alphabet(), limit=limit)


def gpt2():
    tokenizer = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=True)])
    return tokenizer


def llama3():
    tokenizer = byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))
    document = json.loads(tokenizer.to_str())
    document["model"]["ignore_merges"] = True
    for word in ("\u0120zyzzyx", "yzzyx"):  # words that no merge builds
        document["model"]["vocab"][word] = len(document["model"]["vocab"])
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.add_special_tokens([AddedToken("<|begin|>", normalized=False),
                                  AddedToken("<|end|>", normalized=False)])
    begin = tokenizer.token_to_id("<|begin|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", begin)])])
    return tokenizer


def qwen2():
    tokenizer = byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN2), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), normalizers.NFC())
    tokenizer.add_special_tokens([AddedToken("<|begin|>", normalized=False),
                                  AddedToken("<|end|>", normalized=False),
                                  AddedToken("<mask>", lstrip=True, normalized=False)])
    tokenizer.add_tokens([AddedToken("[tool]", rstrip=True, normalized=False),
                          AddedToken("tool", single_word=True, normalized=True)])
    return tokenizer


def digits():
    return byte_level(pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.ByteLevel(add_prefix_space=True)]),
        limit=160)  # so that some bytes have no token


def llama2(pre_tokenizer, normalizer, decoder_steps, unknown_only=False):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True,
                                     byte_fallback=not unknown_only))
    # Trained in words, used on whole texts, as converted SentencePiece models are.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    specials = [AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")]
    specials += [] if unknown_only else [f"<0x{byte:02X}>" for byte in range(256)]
    train(tokenizer, 620, [], specials, limit=100)
    document = json.loads(tokenizer.to_str())
    document["added_tokens"] = document["added_tokens"][:3]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.Sequence(decoder_steps)
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def llama2_normalizer(unknown_only=False):
    return llama2(None, normalizers.Sequence([normalizers.Prepend("\u2581"),
                                              normalizers.Replace(" ", "\u2581")]),
                  [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                   decoders.Strip(" ", 1, 0)], unknown_only)


def mistral_metaspace():
    return llama2(pre_tokenizers.Metaspace(prepend_scheme="first", split=False), None,
                  [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                   decoders.Strip(" ", 1, 0)])


def write(name, document):
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    (OUT / name).write_text(text + "\n", encoding="utf-8")


def golden(name, tokenizer, string_merges=False):
    document = json.loads(tokenizer.to_str())
    if string_merges:
        document["model"]["merges"] = [" ".join(m) for m in document["model"]["merges"]]
    write(f"{name}.json", document)
    cases = []
    for text in STRINGS:
        tokenizer.encode_special_tokens = True
        plain = tokenizer.encode(text, add_special_tokens=False).ids
        tokenizer.encode_special_tokens = False
        special = tokenizer.encode(text).ids
        cases.append({"text": text, "plain": plain, "special": special,
                      "decoded": tokenizer.decode(special, skip_special_tokens=True),
                      "decoded_all": tokenizer.decode(special, skip_special_tokens=False)})
    write(f"{name}.golden.json", {"cases": cases})


def golden_sentencepiece(name, **options):
    model = OUT / f"{name}.model"
    with model.open("wb") as stream:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(CORPUS.split("\n")), model_writer=stream, model_type="bpe",
            vocab_size=620, character_coverage=0.98, num_threads=1, minloglevel=2,
            normalization_rule_name="identity", **options)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    cases = [{"text": t, "plain": processor.encode(t)} for t in STRINGS]
    write(f"{name}.golden.json", {"cases": cases})


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    golden("gpt2_style", gpt2(), string_merges=True)
    golden("llama3_style", llama3())
    golden("qwen2_style", qwen2())
    golden("digits_style", digits())
    golden("llama2_style", llama2_normalizer())
    golden("unknown_style", llama2_normalizer(unknown_only=True))
    golden("mistral_style", mistral_metaspace())
    golden_sentencepiece("spm_llama_style", byte_fallback=True, remove_extra_whitespaces=False)
    golden_sentencepiece("spm_plain_style", add_dummy_prefix=False,
                         user_defined_symbols=["<mask>", "harbour", "\u2581\u2581", "[tool]"])
    golden_sentencepiece("spm_default_style")


if __name__ == "__main__":
    main()
