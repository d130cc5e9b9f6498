# SPDX-License-Identifier: Apache-2.0
"""Is the model fit to tell quantizers apart? Its linear layers at 4, 3 and 2 bits, group 128.

Round-to-nearest with the clip, searched per group, that makes the squared error of the weights least.
The KL divergence from the unquantized model on the held-out passages should grow at least threefold
from 4 to 3 bits and again from 3 to 2.

    fitness.py --model model --heldout heldout.jsonl
"""

import argparse
import pathlib

import torch
import torch.nn.functional as F

from evaluate import load, passages

GROUP = 128
CLIPS = [1.0 - 0.025 * step for step in range(25)]


def symmetric(weight, bits, clip):
    top = 2 ** (bits - 1) - 1
    scale = (clip * weight.abs().amax(-1, keepdim=True) / (top + 0.5)).clamp_min(1e-8)
    return torch.clamp(torch.round(weight / scale), -top - 1, top) * scale


def asymmetric(weight, bits, clip):
    low = clip * weight.amin(-1, keepdim=True).clamp_max(0)
    high = clip * weight.amax(-1, keepdim=True).clamp_min(0)
    scale = ((high - low) / (2 ** bits - 1)).clamp_min(1e-8)
    zero = torch.round(-low / scale)
    return (torch.clamp(torch.round(weight / scale) + zero, 0, 2 ** bits - 1) - zero) * scale


def quantize(weight, bits, grid):
    """`weight` [out, in] as `grid` would store it, with the best clip for each group of 128 inputs."""
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    best, error = groups, torch.full(groups.shape[:2], float("inf"))
    for clip in CLIPS:
        candidate = grid(groups, bits, clip)
        squared = (candidate - groups).square().sum(-1)
        better = squared < error
        best = torch.where(better[..., None], candidate, best)
        error = torch.where(better, squared, error)
    return best.reshape(weight.shape)


@torch.no_grad()
def log_probabilities(model, ids):
    return [F.log_softmax(model(input_ids=tokens[:, :-1], use_cache=False).logits[0], -1) for tokens in ids]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--heldout", type=pathlib.Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(2)
    model, tokenizer = load(options.model)
    ids, _ = passages(options.heldout, tokenizer)
    reference = log_probabilities(model, ids)
    linears = [module for layer in model.model.layers for module in layer.modules()
               if isinstance(module, torch.nn.Linear)]
    weights = [module.weight.detach().clone() for module in linears]
    for grid in (symmetric, asymmetric):
        before = None
        for bits in (8, 4, 3, 2):
            for module, weight in zip(linears, weights):
                module.weight.data = quantize(weight, bits, grid)
            kl, same, count = 0.0, 0, 0
            for expected, got in zip(reference, log_probabilities(model, ids)):
                kl += (expected.exp() * (expected - got)).sum().item()
                same += (expected.argmax(-1) == got.argmax(-1)).sum().item()
                count += len(expected)
            grown = f", {kl / count / before:.1f} times the one before" if before else ""
            print(f"{grid.__name__:10} {bits} bits: KL {kl / count:.6f}, same top token {same / count:.4f}{grown}")
            before = kl / count


if __name__ == "__main__":
    main()
