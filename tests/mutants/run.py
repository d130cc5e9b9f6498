#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tests the tests: applies each fault of mutants.tsv to a copy of the tree, and the test that it names must fail.

A row of mutants.tsv: name, file, text as it is, text with the fault, build target, pattern of the ctest names (tab-separated;
\\n in a text is a line break). The text must occur exactly once in the file. Run through `tests/run --mutants`.
"""
import argparse
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
COPY = ROOT / "build" / "mutants" / "tree"


def rows():
    for line in (ROOT / "tests/mutants/mutants.tsv").read_text().splitlines():
        if line and not line.startswith("#"):
            name, file, old, new, target, test = line.split("\t")
            yield name, file, old.replace("\\n", "\n"), new.replace("\\n", "\n"), target, test


def sync():
    """Brings the copy to the state of the tree's tracked files without touching what is the same (so nothing rebuilds)."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True).stdout.decode().split("\0")
    for name in filter(None, tracked):
        source, target = ROOT / name, COPY / name
        if not source.exists():
            continue
        if not target.exists() or source.read_bytes() != target.read_bytes():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def run(command, **options):
    return subprocess.run(command, cwd=COPY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", default="all")
    parser.add_argument("--name", help="only the mutant of this name")
    options = parser.parse_args()
    mutants = [m for m in rows() if options.name in (None, m[0])]
    if options.count != "all":
        wanted = max(1, min(int(options.count), len(mutants)))
        mutants = [mutants[i * len(mutants) // wanted] for i in range(wanted)]
    sync()
    os.environ["CCACHE_BASEDIR"] = str(COPY)
    jobs = str(os.cpu_count() or 2)
    configured = run(["cmake", "--preset", "release"])
    if configured.returncode:
        sys.exit(configured.stdout)
    survivors = []
    for name, file, old, new, target, test in mutants:
        path = COPY / file
        text = path.read_text()
        if text.count(old) != 1:
            print(f"broken    {name}: the text occurs {text.count(old)} times in {file}")
            survivors.append(name)
            continue
        path.write_text(text.replace(old, new))
        try:
            built = run(["cmake", "--build", "--preset", "release", "-j", jobs, "--target", *target.split(",")])
            if built.returncode:
                print(f"broken    {name}: does not compile\n{built.stdout[-2000:]}")
                survivors.append(name)
                continue
            tested = run(["ctest", "--test-dir", "build/release", "-j", jobs, "--no-tests=error", "-R", test])
            ran = "tests failed" in tested.stdout or "tests passed" in tested.stdout
            killed = tested.returncode != 0 and ran
            print(f"{'killed   ' if killed else 'SURVIVED '} {name} ({test})", flush=True)
            if not killed:
                print(tested.stdout[-2000:])
                survivors.append(name)
        finally:
            path.write_text(text)
    print(f"{len(mutants) - len(survivors)} passed, {len(survivors)} failed, 0 skipped")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
