# SPDX-License-Identifier: Apache-2.0
"""Measures the exported model in transformers, its bf16 weights computed with in fp32.

Prints nats per token and bits per byte on the left-out books (every token predicted once, in windows
of 1,024 with a BOS each), nats per token on a sample of the training rows cut to the same windows,
the gap between the two, and perplexity on heldout.jsonl (one BOS per passage).

    evaluate.py --model model --work DIR --heldout heldout.jsonl
"""

import argparse
import json
import math
import pathlib

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def passages(path, tokenizer):
    """Token ids [1, length], BOS first, of each passage, and the passages' size in bytes."""
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
    return ids, sum(len(text.encode()) for text in texts)


@torch.no_grad()
def summed_loss(model, batches):
    """Sum of the cross-entropies in nats and number of predictions."""
    total, count = 0.0, 0
    for tokens in batches:
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        total += F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="sum").item()
        count += tokens[:, 1:].numel()
    return total, count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="train.py's directory, for rows.pt")
    parser.add_argument("--heldout", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=int, default=48, help="training rows to sample")
    options = parser.parse_args()
    torch.set_num_threads(2)
    model, tokenizer = load(options.model)
    rows, (windows, bytes_per_token) = torch.load(options.work / "rows.pt")
    total, count = summed_loss(model, windows.split(2))
    left_out = total / count
    sample = torch.randperm(len(rows), generator=torch.Generator().manual_seed(7))[:options.rows]
    total, count = summed_loss(model, rows[sample][:, :windows.shape[1]].split(2))
    train = total / count
    print(f"left-out books: {left_out:.4f} nats per token, {left_out / math.log(2) / bytes_per_token:.4f} bits per byte")
    print(f"training rows:  {train:.4f} nats per token; gap {left_out - train:+.4f}")
    ids, size = passages(options.heldout, tokenizer)
    total, count = summed_loss(model, ids)
    print(f"held-out passages: {total / count:.4f} nats per token, perplexity {math.exp(total / count):.3f}, "
          f"{total / math.log(2) / size:.4f} bits per byte, {count} predictions")


if __name__ == "__main__":
    main()
