#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""stories260K against what llama2.c's own program says of it. Skipped (77) without ../shared."""

import json
import os
import pathlib
import subprocess
import sys
import unittest

import live_server
from live_server import Server, request

SHARED = pathlib.Path(os.environ.get("NIBBLE_SHARED_DIR", live_server.ROOT.parent / "shared")) / "data"
MODEL = SHARED / "models" / "stories260K"
STORIES = SHARED / "text" / "tinystories_1000.json"
NLL, TOLERANCE, PREDICTIONS = 1.58538, 0.0005, 254_669  # ORACLE.md


class Oracle(unittest.TestCase):
    def evaluate(self, path, *arguments):
        ran = subprocess.run(
            [live_server.NIBBLE, "eval", "--model", path, "--text", STORIES, "--max-tokens", "256",
             "--json", *arguments], check=True, capture_output=True, text=True)
        return json.loads(ran.stdout)

    def test_the_likelihood_of_a_thousand_stories(self):
        for path in (MODEL, MODEL / "stories260Ktok512.gguf"):
            for arguments in ((), ("--exact",)):
                with self.subTest(path=path.name, arguments=arguments):
                    result = self.evaluate(path, *arguments)
                    self.assertEqual(result["predictions"], PREDICTIONS)
                    self.assertAlmostEqual(result["nll"], NLL, delta=TOLERANCE)

    def test_the_greedy_continuation_as_it_is_served(self):
        text = (MODEL / "ORACLE.md").read_text()
        story = next(block for block in text.split("```\n") if block.startswith("Once upon a time"))
        prompt = "Once upon a time"
        with Server(load=["stories=stories260K"], model_root=MODEL.parent) as server:
            answer = server.stub.Generate(request(prompt, model="stories", max_tokens=195))
            told = prompt + answer.choices[0].text
            self.assertTrue(story.startswith(told), told)


if __name__ == "__main__":
    if not STORIES.exists():
        print("skipped: no", STORIES)
        sys.exit(77)
    unittest.main(verbosity=2)
