#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A whole quantization job through `nibble serve`, on a device: prints one JSON object with the sha256 of the weights, what the
report says of them, and how long it took. Standard library only."""

import argparse
import contextlib
import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile

DEMO = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "demo-model"


@contextlib.contextmanager
def server(nibble, directory, *arguments, env=None):
    """A `nibble serve` on loopback: (process, its address)."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "serve.log").open("a") as log:
        process = subprocess.Popen([nibble, "serve", "--data-dir", str(directory / "data"), "--address", "127.0.0.1:0",
                                    "--metrics-address", "", *arguments],
                                   stdout=subprocess.PIPE, stderr=log, text=True, env=env)
    try:
        line = process.stdout.readline()
        address = re.search(r"\baddress=(\S+)", line)
        assert line.startswith("ready") and address, \
            "the server is not ready: " + (directory / "serve.log").read_text()[-2000:]
        yield process, address.group(1)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
        process.kill()
        process.wait()
        process.stdout.close()


def synthetic(nibble, shape, device, place):
    """A model of that shape with random weights and the demo model's tokenizer, as a directory to quantize."""
    subprocess.run([nibble, "bench", "--synthetic", shape, "--scheme", "bf16", "--keep", str(place), "--device", device,
                    "-p", "16", "-n", "1", "--batch", "1", "--repeat", "1", "--no-ceilings", "--json"],
                   check=True, stdout=subprocess.DEVNULL)
    (place / "nibble.json").unlink(missing_ok=True)  # it is no artifact but a source
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(DEMO / "model" / name, place / name)


def text(place, tokens):
    """Text for calibration, of at least so many tokens: the demo model's, as often as it takes."""
    lines = (DEMO / "calibration.jsonl").read_text()
    characters = 8 * tokens  # more than a token has
    path = place / "calibration.jsonl"
    path.write_text(lines * (characters // len(lines) + 1))
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nibble", required=True, help="the program")
    parser.add_argument("--device", required=True, help="what the worker calibrates and evaluates on: cpu or cuda:N")
    parser.add_argument("--recipe", default="gptq")
    parser.add_argument("--scheme", default="int4-g128")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--synthetic", help="a shape with random weights (110m, 1b, 8b) instead of the demo model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="nibble-job-") as directory:
        work = pathlib.Path(directory)
        root, model = DEMO, "model"
        if options.synthetic:
            root, model = work, "source"
            synthetic(options.nibble, options.synthetic, options.device, work / model)
        with server(options.nibble, work, "--roles", "quantization", "--device", "cpu", "--worker-device", options.device,
                    "--model-root", str(root)) as (_, address):
            job = subprocess.run(
                [options.nibble, "quantize", "--server", address, "--model", model, "--recipe", options.recipe, "--scheme",
                 options.scheme, "--calibration", str(text(work, options.samples * options.length)), "--samples",
                 str(options.samples), "--length", str(options.length), "--eval", str(DEMO / "heldout.jsonl"),
                 "--eval-tokens", "4096", "--watch", "--json"], capture_output=True, text=True)
            assert job.returncode == 0, f"the job ended with {job.returncode}: {job.stdout[-1500:]}{job.stderr[-1500:]}"
            artifact = work / "data" / "artifacts" / json.loads(job.stdout)["artifact_digest"]
            report = json.loads((artifact / "report.json").read_text())
            seconds = json.loads((artifact / "run.json").read_text())["seconds"]
            files = json.loads((artifact / "nibble.json").read_text())["files"]
    print(json.dumps({
        "backend": report["backend"], "recipe": options.recipe, "scheme": options.scheme,
        "weights": {name: file["sha256"] for name, file in files.items() if name.endswith(".safetensors")},
        "kl": report["evaluation"]["exact"]["kl"], "bits_per_weight": report["bits_per_weight"], "seconds": seconds,
        "from_first_block_to_published_s": sum(value for phase, value in seconds.items() if phase != "digest")}))


if __name__ == "__main__":
    sys.exit(main())
