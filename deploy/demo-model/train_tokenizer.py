# SPDX-License-Identifier: Apache-2.0
"""Trains the demo model's tokenizer: byte-fallback BPE of 4,096 entries in Llama's layout.

Entries 0..2 are <unk>, <s>, </s>; 3..258 are the 256 byte tokens; the rest are the alphabet and the
merges. A space is written as U+2581 and one is put before the text. Merges never cross from one
word, number, run of punctuation or line to the next, and a newline is a byte token.
"""

import argparse
import json
import pathlib

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors, trainers

VOCABULARY = 4096
SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
SPACE = "\u2581"

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ message['content'] + '\\n\\n' }}"
    "{% else %}{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
)

SPLIT = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(r"\n"), "removed"),
    pre_tokenizers.Split(
        Regex(rf"{SPACE}?\p{{L}}+|{SPACE}?\p{{N}}|{SPACE}?[^\p{{L}}\p{{N}}{SPACE}]+|{SPACE}"), "isolated"),
])


def normalizer():
    return normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])


def train(texts):
    learner = Tokenizer(models.BPE())
    learner.normalizer = normalizer()
    learner.pre_tokenizer = SPLIT
    learner.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(BYTES), special_tokens=SPECIAL, limit_alphabet=110, show_progress=False))
    learned = json.loads(learner.to_str())["model"]
    order = sorted(learned["vocab"], key=learned["vocab"].get)[len(SPECIAL):]
    vocabulary = {entry: index for index, entry in enumerate(SPECIAL + BYTES + order)}
    merges = [tuple(pair) for pair in learned["merges"]]

    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizer()
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(entry, special=True, normalized=False) for entry in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer


def save(tokenizer, folder):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {name: config[name] for name in ("bos_token", "eos_token", "unk_token")}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="what data.py wrote")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the model's directory")
    options = parser.parse_args()
    paths = sorted((options.data / "train").glob("*.txt"))
    save(train(path.read_text(encoding="utf-8") for path in paths), options.out)


if __name__ == "__main__":
    main()
