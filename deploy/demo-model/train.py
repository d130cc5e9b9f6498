# SPDX-License-Identifier: Apache-2.0
"""Trains the demo model, on the CPU or a GPU, in as many sittings as are given to it.

A sitting is one warm-up and one cosine to zero, and ends at a count of tokens (--until) or, where
the machine is shared and its speed cannot be foretold, after a time (--minutes). The checkpoint
(weights and moments in fp32, token count, sitting) is written every few minutes and on SIGTERM;
started again with the same options, a run that was stopped goes on where it was. Other values of
--until, --minutes or --peak begin a new sitting from the checkpoint: to train further, or to bring a
run to its end sooner.

Without a checkpoint, --start takes the weights and the token count from an exported model, and fresh
moments; so training can go on from what the repository holds.

    train.py --data BOOKS --model model --work DIR --until 60000000
"""

import argparse
import math
import pathlib
import signal
import time

import numpy
import torch
import torch.nn.functional as F
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

CONTEXT = 1024
BOS = 1
EOS = 2
NEWLINE = 3 + ord("\n")
CONFIG = dict(
    vocab_size=4096, hidden_size=256, intermediate_size=768, num_hidden_layers=8,
    num_attention_heads=4, num_key_value_heads=2, head_dim=64, max_position_embeddings=CONTEXT,
    rope_theta=10000.0, rms_norm_eps=1e-5, tie_word_embeddings=True, bos_token_id=BOS, eos_token_id=EOS)

ROWS_PER_STEP = 4
ROWS_PER_PASS = 2
LEFT_OUT_EVERY = 500_000  # tokens
SAVE_EVERY = 240  # seconds


def training_rows(folder, tokenizer):
    """[rows, CONTEXT + 1] token ids: BOS, then a book's text from the start of a paragraph on.

    The next row starts at the last paragraph that begins inside this one, or, where a paragraph is
    too long for that, where this one ends. A book's last row ends with EOS.
    """
    rows = []
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="utf-8").rstrip("\n")
        paragraphs = text.split("\n\n")
        ids = tokenizer.encode(text, add_special_tokens=False).ids + [EOS]
        starts = [0] + [i for i in range(2, len(ids)) if ids[i - 1] == NEWLINE == ids[i - 2]]
        assert len(starts) == len(paragraphs), path
        number = {start: k for k, start in enumerate(starts)}
        at = 0
        while at + CONTEXT <= len(ids):
            head, rest = [], at
            if at in number:
                # As at the beginning of any text, a space stands before the first word.
                head = tokenizer.encode(paragraphs[number[at]], add_special_tokens=False).ids
                following = number[at] + 1
                rest = starts[following] - 2 if following < len(starts) else len(ids)
            row = ([BOS] + head + ids[rest:rest + CONTEXT])[:CONTEXT + 1]
            if len(row) < CONTEXT + 1:
                break
            rows.append(row)
            inside = [s for s in starts if at + CONTEXT // 2 < s <= at + CONTEXT - 8]
            at = inside[-1] if inside else at + CONTEXT
        rows.append([BOS] + ids[-CONTEXT:])
    return torch.tensor(numpy.array(rows, dtype=numpy.int64))


def left_out_windows(folder, tokenizer):
    """[windows, CONTEXT] token ids (BOS first) that cover the left-out books once, and their bytes per token."""
    windows, size, count = [], 0, 0
    for path in sorted(folder.glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        size += len(text.encode())
        count += len(ids)
        for at in range(0, len(ids) - CONTEXT + 2, CONTEXT - 1):
            windows.append([BOS] + ids[at:at + CONTEXT - 1])
    return torch.tensor(windows), size / count


def loss_of(model, tokens):
    """Mean cross-entropy, in nats, of each token of `tokens` [batch, length + 1] after the first."""
    with torch.autocast(tokens.device.type, dtype=torch.bfloat16):
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def pieces(rows, context):
    """Rows [n, CONTEXT + 1] as [n * CONTEXT / context, context + 1]; neighbours share one token."""
    return rows.unfold(1, context + 1, context).flatten(0, 1)


@torch.no_grad()
def left_out_loss(loss, windows, device):
    return sum(loss(windows[i:i + 2].to(device)).item() for i in range(0, len(windows) - 1, 2)) / (len(windows) // 2)


def part_done(state):
    """How much of the sitting is over, 0 .. 1."""
    sitting = state["sitting"]
    if sitting["minutes"]:
        return min(1.0, state["seconds"] / (60 * sitting["minutes"]))
    return min(1.0, (state["tokens"] - sitting["begin"]) / (sitting["until"] - sitting["begin"]))


def learning_rate(state):
    sitting = state["sitting"]
    warm = min(1.0, (state["tokens"] - sitting["begin"] + 1) / sitting["warmup"])
    return sitting["peak"] * warm * 0.5 * (1 + math.cos(math.pi * part_done(state)))


def context_at(part, contexts):
    return contexts[min(len(contexts) - 1, int(part * len(contexts)))]


def row_numbers(first, count, rows, seed):
    """The rows of training positions first .. first + count - 1: a new order for every epoch."""
    numbers = []
    for position in range(first, first + count):
        epoch, place = divmod(position, rows)
        if not numbers or place == 0:
            order = numpy.random.default_rng((seed, epoch)).permutation(rows)
        numbers.append(int(order[place]))
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="what data.py wrote")
    parser.add_argument("--model", type=pathlib.Path, required=True, help="directory with tokenizer.json")
    parser.add_argument("--work", type=pathlib.Path, required=True, help="checkpoint and loss.csv are kept here")
    end = parser.add_mutually_exclusive_group(required=True)
    end.add_argument("--until", type=int, help="tokens, counted from the very first, at which the sitting ends")
    end.add_argument("--minutes", type=float, help="length of the sitting")
    parser.add_argument("--start", type=pathlib.Path, help="exported model to begin with, where there is no checkpoint")
    parser.add_argument("--peak", type=float, default=1.5e-3, help="learning rate after the warm-up")
    parser.add_argument("--warmup", type=int, default=600_000, help="tokens")
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 256, 512, CONTEXT],
                        help="contexts of the equal parts of the sitting: short ones are cheaper")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)

    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    prepared = options.work / "rows.pt"
    if not prepared.exists():
        torch.save((training_rows(options.data / "train", tokenizer),
                    left_out_windows(options.data / "left-out", tokenizer)), prepared)
    rows, (windows, bytes_per_token) = torch.load(prepared)
    print(f"{len(rows)} rows of {CONTEXT} tokens, {len(windows)} left-out windows, "
          f"{bytes_per_token:.3f} bytes per left-out token", flush=True)

    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).to(options.device)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=options.peak, betas=(0.9, 0.95), fused=True)
    state = dict(tokens=0, seconds=0.0, sitting=None)
    checkpoint = options.work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=options.device)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = saved["state"]
    elif options.start:
        with safe_open(options.start / "model.safetensors", "pt") as exported:
            model.load_state_dict({name: exported.get_tensor(name).float() for name in exported.keys()}, strict=False)
            state["tokens"] = int(exported.metadata()["tokens"])
    asked = dict(until=options.until, minutes=options.minutes, peak=options.peak, warmup=options.warmup)
    if state["sitting"] != asked | dict(begin=(state["sitting"] or asked).get("begin")):
        state["sitting"] = asked | dict(begin=state["tokens"])
        state["seconds"] = 0.0

    def save():
        unfinished = checkpoint.with_suffix(".tmp")
        torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict(), state=state), unfinished)
        unfinished.replace(checkpoint)

    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    loss = torch.compile(lambda tokens: loss_of(model, tokens), dynamic=False)
    curve = options.work / "loss.csv"
    lines = curve.read_text().splitlines() if curve.exists() else [
        "tokens,context,learning_rate,train_loss,left_out_loss"]
    # What a killed run wrote after its last checkpoint is trained again.
    lines = lines[:1] + [line for line in lines[1:] if int(line.split(",")[0]) <= state["tokens"]]
    curve.write_text("\n".join(lines) + "\n")

    saved_at = clock = time.monotonic()
    total, counted, tokens_at_line, clock_at_line = 0.0, 0, state["tokens"], clock
    while part_done(state) < 1.0:
        tokens = state["tokens"]
        context = context_at(part_done(state), options.contexts)
        rate = learning_rate(state)
        for group in optimizer.param_groups:
            group["lr"] = rate
        chosen = row_numbers(tokens // CONTEXT, ROWS_PER_STEP, len(rows), options.seed)
        for at in range(0, ROWS_PER_STEP, ROWS_PER_PASS):
            batch = pieces(rows[chosen[at:at + ROWS_PER_PASS]], context).contiguous()
            value = loss(batch.to(options.device))
            (value * ROWS_PER_PASS / ROWS_PER_STEP).backward()
            total, counted = total + value.item(), counted + 1
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now = time.monotonic()
        state["tokens"], state["seconds"], clock = tokens + ROWS_PER_STEP * CONTEXT, state["seconds"] + now - clock, now
        ends = part_done(state) >= 1.0
        if ends or state["tokens"] // LEFT_OUT_EVERY != tokens // LEFT_OUT_EVERY:
            left_out = left_out_loss(lambda batch: loss_of(model, batch), windows if ends else windows[::6],
                                     options.device)
            with open(curve, "a", encoding="utf-8") as file:
                file.write(f"{state['tokens']},{context},{rate:.6f},{total / counted:.4f},{left_out:.4f}\n")
            speed = (state["tokens"] - tokens_at_line) / (now - clock_at_line)
            print(f"{time.strftime('%H:%M:%S')}  {state['tokens']} tokens  part {part_done(state):.3f}  "
                  f"context {context}  rate {rate:.5f}  train {total / counted:.4f}  left-out {left_out:.4f} "
                  f"({left_out / math.log(2) / bytes_per_token:.4f} bits per byte)  {speed:.0f} tokens/s", flush=True)
            total, counted, tokens_at_line, clock_at_line = 0.0, 0, state["tokens"], now
        if ends or stop or now - saved_at > SAVE_EVERY:
            save()
            saved_at = now
        if stop:
            break


if __name__ == "__main__":
    main()
