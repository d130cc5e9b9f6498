# SPDX-License-Identifier: Apache-2.0
"""Draws the calibration set from the demo model itself: 256 samples of 512 tokens, BOS included.

Each sample is sampled at temperature 1 from BOS on (special tokens barred) and kept as text. Text is
not always encoded into the very tokens that were drawn, so a little more is drawn, encoded again and
cut to 512 tokens; a sample whose cut text does not encode into exactly these is left out for a spare.

    draw_calibration.py --model model --out calibration.jsonl
"""

import argparse
import json
import pathlib

import torch

from evaluate import load

SAMPLES = 256
LENGTH = 512
EXTRA = 48
BATCH = 144
SPECIAL = [0, 1, 2]


@torch.no_grad()
def draw(model, count, length, generator):
    """Token ids [count, length] that follow BOS."""
    token, cache, drawn = torch.ones(count, 1, dtype=torch.long), None, []
    for _ in range(length):
        output = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits = output.logits[:, -1]
        logits[:, SPECIAL] = -float("inf")
        token = torch.multinomial(torch.softmax(logits, -1), 1, generator=generator)
        drawn.append(token)
    return torch.cat(drawn, 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(2)
    model, tokenizer = load(options.model)
    generator = torch.Generator().manual_seed(options.seed)
    texts = []
    while len(texts) < SAMPLES:
        for ids in draw(model, BATCH, LENGTH + EXTRA, generator).tolist():
            kept = tokenizer(tokenizer.decode(ids)).input_ids[:LENGTH]
            text = tokenizer.decode(kept[1:])
            if len(kept) == LENGTH and tokenizer(text).input_ids == kept:
                texts.append(text)
    with open(options.out, "w", encoding="utf-8") as out:
        for number, text in enumerate(texts[:SAMPLES]):
            out.write(json.dumps({"id": f"drawn-{number:03d}", "text": text}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
