# SPDX-License-Identifier: Apache-2.0
"""Reads the books that data.tsv lists, verifies them and writes them as clean text.

A source is either "shared:FOLDER" (a file beneath the directory given with --shared) or
"OWNER/NAME@COMMIT" (a file of that public repository, read from a clone whose directory is given
with --clone). Only a file whose sha256 is the listed one is taken.

Clean text is one paragraph per blank-line separated block: lines are joined, typographic quotes and
dashes become ASCII, and everything outside the book itself (headers, licence, credits) is dropped.
"""

import argparse
import csv
import hashlib
import pathlib
import re
import subprocess
import unicodedata

HERE = pathlib.Path(__file__).resolve().parent

START = re.compile(r"\*\*\* ?START OF (?:THE|THIS) PROJECT GUTENBERG.*?\*\*\*", re.S)
END = re.compile(r"\*\*\* ?END OF (?:THE|THIS) PROJECT GUTENBERG|^End of (?:the )?Project Gutenberg", re.M)
CREDITS = re.compile(r"gutenberg|produced by|proofread|e-?text|transcrib|\[illustration", re.I)
ASCII = str.maketrans({
    "“": '"', "”": '"', "„": '"', "‘": "'", "’": "'", "—": "--", "–": "-", "…": "...",
    "\u00a0": " ", "\ufeff": "", "_": "", "\t": " ",
})


def clean(text):
    """The book's own paragraphs, separated by blank lines."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    begin = START.search(text)
    if begin:
        text = text[begin.end():]
    end = END.search(text)
    if end:
        text = text[:end.start()]
    text = unicodedata.normalize("NFC", text).translate(ASCII)
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        lines = [" ".join(line.split()) for line in block.split("\n")]
        lines = [line for line in lines if line]
        if not lines or not re.search(r"[A-Za-z]", block):
            continue
        if len(block) < 600 and CREDITS.search(block):
            continue
        # Verse and lists keep their lines; prose does not.
        is_verse = len(lines) >= 4 and sum(map(len, lines)) / len(lines) < 45
        paragraphs.append(("\n" if is_verse else " ").join(lines))
    return "\n\n".join(paragraphs) + "\n"


def read_raw(row, shared, clone):
    if row["source"].startswith("shared:"):
        return (shared / row["source"].removeprefix("shared:") / row["path"]).read_bytes()
    commit = row["source"].split("@")[1]
    command = ["git", "-C", str(clone), "show", f"{commit}:{row['path']}"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def decode(raw):
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("cp1252", "replace")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=pathlib.Path, required=True)
    parser.add_argument("--clone", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a train/ and a left-out/ folder go here")
    options = parser.parse_args()
    totals = {}
    with open(HERE / "data.tsv", newline="", encoding="utf-8") as listing:
        for row in csv.DictReader(listing, delimiter="\t", quoting=csv.QUOTE_NONE):
            raw = read_raw(row, options.shared, options.clone)
            digest = hashlib.sha256(raw).hexdigest()
            if digest != row["sha256"]:
                raise SystemExit(f"{row['path']}: sha256 is {digest}, listed is {row['sha256']}")
            text = clean(decode(raw))
            folder = options.out / row["use"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{digest[:16]}.txt").write_text(text, encoding="utf-8")
            count, size = totals.get(row["use"], (0, 0))
            totals[row["use"]] = (count + 1, size + len(text.encode()))
    for use, (count, size) in totals.items():
        print(f"{use}: {count} books, {size / 1e6:.1f} MB of clean text")


if __name__ == "__main__":
    main()
