#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Is one model nearer to the original than another? Paired bootstrap over documents.

    nibble eval --model A --against ORIGINAL --text heldout.jsonl --per-document --json > a.json
    nibble eval --model B --against ORIGINAL --text heldout.jsonl --per-document --json > b.json
    tests/paired_bootstrap.py a.json b.json

Prints the difference KL(A) - KL(B) in nats per token with its 95 % interval from 10,000 resamples of the documents; exits 0
if the interval lies above zero (B is nearer), 1 otherwise. Needs the standard library only.
"""
import json
import random
import sys

RESAMPLES = 10_000


def main():
    first, second = (json.load(open(path))["per_document"] for path in sys.argv[1:3])
    if len(first) != len(second) or any(a["predictions"] != b["predictions"] for a, b in zip(first, second)):
        sys.exit("the two evaluations are not of the same documents")
    rows = [(a["kl"] - b["kl"], a["predictions"]) for a, b in zip(first, second)]

    def difference(sample):
        return sum(kl for kl, _ in sample) / sum(count for _, count in sample)

    draw = random.Random(1)
    resampled = sorted(difference(draw.choices(rows, k=len(rows))) for _ in range(RESAMPLES))
    low, high = resampled[int(RESAMPLES * 0.025)], resampled[int(RESAMPLES * 0.975)]
    print(f"KL(A) - KL(B) = {difference(rows):.3e} nats per token, 95 % interval {low:.3e} .. {high:.3e}, {len(rows)} documents")
    return 0 if low > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
