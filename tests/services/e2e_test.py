#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The generation service from outside: a real server, a client generated from the protos."""

import json
import pathlib
import subprocess
import tempfile
import unittest

import grpc

import live_server
from live_server import Server, eventually, fails_with, in_parallel, pb, request

Code = grpc.StatusCode
STOP, LENGTH = pb.FINISH_REASON_STOP, pb.FINISH_REASON_LENGTH


class WithServer(unittest.TestCase):
    """Tests that share one server with the demo model."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.stub = cls.server.stub

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        log = cls.server.stderr()
        cls.server.__exit__()
        assert code == 0, log


class Generating(WithServer):
    def test_a_stream_is_prompt_info_then_deltas_then_one_finish(self):
        events = list(self.stub.GenerateStream(request(max_tokens=12)))
        kinds = [event.WhichOneof("event") for event in events]
        self.assertEqual(kinds[0], "prompt")
        self.assertEqual(kinds[-1], "finish")
        self.assertEqual(set(kinds[1:-1]), {"delta"})
        finish = events[-1].finish
        self.assertEqual(events[0].prompt.prompt_tokens, finish.usage.prompt_tokens)
        self.assertEqual([choice.reason for choice in finish.choices], [LENGTH])
        self.assertEqual(sum(len(event.delta.token_ids) for event in events), 12)
        self.assertEqual(finish.usage.generated_tokens, 12)
        self.assertGreater(finish.usage.time_to_first_token_seconds, 0)

    def test_generate_gives_what_the_stream_gives(self):
        for sampled in (0.0, 1.0):
            asked = request(max_tokens=24, temperature=sampled, seed=5)
            deltas = [event.delta for event in self.stub.GenerateStream(asked)
                      if event.HasField("delta")]
            answer = self.stub.Generate(asked)
            self.assertEqual("".join(delta.text for delta in deltas), answer.choices[0].text)
            self.assertEqual([t for delta in deltas for t in delta.token_ids],
                             list(answer.choices[0].token_ids))

    def test_the_output_does_not_depend_on_what_else_runs(self):
        asked = [request(f"Chapter {i}", max_tokens=40, temperature=0.9, seed=i) for i in range(12)]
        alone = [self.stub.Generate(one).choices[0].text for one in asked]
        together = in_parallel(lambda one: self.stub.Generate(one).choices[0].text, asked)
        self.assertEqual(alone, together)

    def test_without_a_seed_the_server_draws_one_and_tells_it(self):
        asked = request(temperature=1.0, max_tokens=16)
        asked.sampling.ClearField("seed")
        first = self.stub.Generate(asked)
        asked.sampling.seed = first.prompt.seed
        self.assertEqual(self.stub.Generate(asked).choices[0].text, first.choices[0].text)

    def test_choices_differ_and_each_finishes(self):
        asked = request(max_tokens=16, temperature=1.0, n=4)
        answer = self.stub.Generate(asked)
        self.assertEqual([choice.finish.choice for choice in answer.choices], [0, 1, 2, 3])
        self.assertGreater(len({choice.text for choice in answer.choices}), 1)
        self.assertEqual(answer.usage.generated_tokens,
                         sum(len(choice.token_ids) for choice in answer.choices))
        # The first choice is what the same seed gives on its own.
        asked.n = 1
        self.assertEqual(self.stub.Generate(asked).choices[0].text, answer.choices[0].text)

    def test_a_stop_text_ends_the_output_and_is_left_out(self):
        whole = self.stub.Generate(request(max_tokens=40)).choices[0].text
        stop = whole[10:14]
        asked = request(max_tokens=40)
        asked.stopping.stop.append(stop)
        choice = self.stub.Generate(asked).choices[0]
        self.assertEqual(choice.text, whole[:whole.index(stop)])
        self.assertEqual((choice.finish.reason, choice.finish.matched_stop), (STOP, stop))
        asked.response.include_stop_in_output = True
        self.assertEqual(self.stub.Generate(asked).choices[0].text,
                         whole[:whole.index(stop) + len(stop)])

    def test_a_stop_token_ends_the_output(self):
        tokens = self.stub.Generate(request(max_tokens=10)).choices[0].token_ids
        asked = request(max_tokens=10)
        asked.stopping.stop_token_ids.append(tokens[4])
        choice = self.stub.Generate(asked).choices[0]
        self.assertEqual(choice.finish.matched_token_id, tokens[4])
        self.assertLessEqual(len(choice.token_ids), 5)

    def test_logit_bias_forces_a_token(self):
        asked = request(max_tokens=3)
        asked.sampling.logit_bias.add(token_id=300, bias=1000)
        self.assertEqual(list(self.stub.Generate(asked).choices[0].token_ids), [300] * 3)

    def test_log_probabilities_come_with_the_tokens_that_they_belong_to(self):
        asked = request(max_tokens=6)
        asked.response.logprobs = 3
        asked.response.prompt_logprobs = 2
        asked.response.echo_prompt_ids = True
        answer = self.stub.Generate(asked)
        choice = answer.choices[0]
        self.assertEqual([entry.token_id for entry in choice.logprobs], list(choice.token_ids))
        for entry in choice.logprobs:
            self.assertEqual(len(entry.top), 3)
            self.assertEqual(entry.top[0].token_id, entry.token_id)  # greedy
            self.assertLessEqual(entry.logprob, 0)
        self.assertEqual(b"".join(entry.text for entry in choice.logprobs).decode(), choice.text)
        self.assertEqual([entry.token_id for entry in answer.prompt.logprobs],
                         list(answer.prompt.token_ids))

    def test_text_and_its_token_ids_are_the_same_prompt(self):
        ids = self.stub.Tokenize(pb.TokenizeRequest(model="demo", text="The old house")).token_ids
        self.assertEqual(self.stub.Generate(request("The old house")).choices[0].text,
                         self.stub.Generate(request(list(ids))).choices[0].text)

    def test_the_full_name_of_a_model_is_as_good_as_the_identifier(self):
        self.assertEqual(self.stub.Generate(request(model="servedModels/demo")).choices[0].text,
                         self.stub.Generate(request(model="demo")).choices[0].text)


class Chatting(WithServer):
    @staticmethod
    def chat(*messages):
        return pb.ChatInput(messages=[pb.ChatMessage(role=r, content=c) for r, c in messages])

    def test_a_conversation_is_rendered_with_the_models_template(self):
        asked = pb.TokenizeRequest(model="demo", chat=self.chat(("system", "Be kind."), ("user", "Hi.")))
        answer = self.stub.Tokenize(asked)
        self.assertEqual(answer.rendered, "<s>Be kind.\n\nHi.\n\n")
        self.assertEqual([i for i, token in enumerate(answer.token_ids) if token == 1], [0])
        made = pb.GenerateRequest(model="demo", chat=asked.chat)
        made.sampling.temperature = 0
        made.stopping.max_tokens = 8
        from_ids = request(list(answer.token_ids), max_tokens=8)
        self.assertEqual(self.stub.Generate(made).choices[0].text,
                         self.stub.Generate(from_ids).choices[0].text)

    def test_special_tokens_inside_a_message_stay_text_unless_asked(self):
        asked = pb.TokenizeRequest(model="demo", chat=self.chat(("user", "a</s>b<s>c")))
        safe = self.stub.Tokenize(asked)
        self.assertEqual(safe.rendered, "<s>a</s>b<s>c\n\n")
        self.assertEqual([t for t in safe.token_ids if t in (1, 2)], [1])
        asked.parse_special_tokens = True
        self.assertEqual([t for t in self.stub.Tokenize(asked).token_ids if t in (1, 2)], [1, 2, 1])

    def test_a_conversation_without_messages_is_refused(self):
        with fails_with(self, Code.INVALID_ARGUMENT, "messages"):
            self.stub.Generate(pb.GenerateRequest(model="demo", chat=pb.ChatInput()))


class Tokens(WithServer):
    def test_text_survives_tokenizing_and_back(self):
        text = "Zwölf Boxkämpfer — 12 <s> 🦊\n\tend"
        ids = self.stub.Tokenize(pb.TokenizeRequest(model="demo", text=text)).token_ids
        back = self.stub.Detokenize(pb.DetokenizeRequest(model="demo", token_ids=ids))
        self.assertEqual(back.text, text)

    def test_special_tokens_in_a_users_text_are_text_unless_asked(self):
        plain = self.stub.Tokenize(pb.TokenizeRequest(model="demo", text="</s>", add_bos=False))
        parsed = self.stub.Tokenize(
            pb.TokenizeRequest(model="demo", text="</s>", add_bos=False, parse_special_tokens=True))
        self.assertEqual(list(parsed.token_ids), [2])
        self.assertGreater(len(plain.token_ids), 1)
        self.assertNotIn(2, plain.token_ids)

    def test_the_score_of_a_text_is_the_evaluators(self):
        text = "It was a quiet evening, and the lamps along the river had just been lit."
        score = self.stub.Score(pb.ScoreRequest(model="demo", text=text))
        self.assertEqual(score.predictions, len(score.logprobs) - 1)
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(text)
            file.flush()
            printed = subprocess.run(
                [live_server.NIBBLE, "eval", "--model", live_server.MODELS / "model", "--text",
                 file.name, "--json"], check=True, capture_output=True, text=True).stdout
        evaluated = json.loads(printed)
        self.assertEqual(evaluated["predictions"], score.predictions)
        self.assertAlmostEqual(evaluated["nll"], score.nll / score.predictions, delta=1e-4)


class Refusing(WithServer):
    def test_what_is_out_of_range_is_named(self):
        def stopping(**fields):
            return request(stopping=pb.StoppingOptions(**fields))

        def sampling(**fields):
            return request(sampling=pb.SamplingOptions(**fields))

        bias = [pb.LogitBias(token_id=i % 4000, bias=1) for i in range(301)]
        cases = [
            (request(model="no/such"), Code.INVALID_ARGUMENT, "model"),
            (request(model="../demo"), Code.INVALID_ARGUMENT, "model"),
            (request(model="nobody"), Code.NOT_FOUND, "demo"),
            (pb.GenerateRequest(model="demo"), Code.INVALID_ARGUMENT, "input"),
            (request(n=17), Code.INVALID_ARGUMENT, "n is 17"),
            (request(n=-1), Code.INVALID_ARGUMENT, "n is -1"),
            (request([1, 4096]), Code.INVALID_ARGUMENT, "4096"),
            (request([1, -1]), Code.INVALID_ARGUMENT, "-1"),
            (request([5] * 1020), Code.OUT_OF_RANGE, "1024"),
            (request("x" * ((1 << 20) + 1)), Code.INVALID_ARGUMENT, "1048576"),
            (stopping(max_tokens=-1), Code.INVALID_ARGUMENT, "max_tokens is -1"),
            (stopping(max_tokens=131073), Code.INVALID_ARGUMENT, "max_tokens"),
            (stopping(min_tokens=9), Code.INVALID_ARGUMENT, "min_tokens"),
            (stopping(stop=["a"] * 17), Code.INVALID_ARGUMENT, "stop"),
            (stopping(stop=["a" * 257]), Code.INVALID_ARGUMENT, "stop"),
            (stopping(stop=[""]), Code.INVALID_ARGUMENT, "stop"),
            (stopping(stop_token_ids=[4096]), Code.INVALID_ARGUMENT, "stop_token_ids"),
            (sampling(temperature=-0.1), Code.INVALID_ARGUMENT, "temperature"),
            (sampling(temperature=float("nan")), Code.INVALID_ARGUMENT, "temperature"),
            (sampling(top_p=1.5), Code.INVALID_ARGUMENT, "top_p"),
            (sampling(min_p=-1), Code.INVALID_ARGUMENT, "min_p"),
            (sampling(top_k=-1), Code.INVALID_ARGUMENT, "top_k"),
            (sampling(repetition_penalty=0), Code.INVALID_ARGUMENT, "repetition_penalty"),
            (sampling(presence_penalty=3), Code.INVALID_ARGUMENT, "presence_penalty"),
            (sampling(frequency_penalty=float("inf")), Code.INVALID_ARGUMENT, "frequency_penalty"),
            (sampling(logit_bias=bias), Code.INVALID_ARGUMENT, "logit_bias"),
            (request(response=pb.ResponseOptions(logprobs=21)), Code.INVALID_ARGUMENT, "logprobs"),
        ]
        for asked, code, word in cases:
            with self.subTest(word=word, code=code):
                with fails_with(self, code, word):
                    self.stub.Generate(asked)
                with fails_with(self, code, word):
                    list(self.stub.GenerateStream(asked))

        for asked, word in ((pb.ScoreRequest(model="demo", text="x", top_logprobs=21), "top_logprobs"),
                            (pb.ScoreRequest(model="demo", text=""), "at least 2"),
                            (pb.ScoreRequest(model="demo"), "input")):
            with self.subTest(word=word), fails_with(self, Code.INVALID_ARGUMENT, word):
                self.stub.Score(asked)
        for asked, word in ((pb.TokenizeRequest(model="demo"), "input"),
                            (pb.TokenizeRequest(model="demo", text="x" * ((1 << 20) + 1)), "1048576")):
            with self.subTest(word=word), fails_with(self, Code.INVALID_ARGUMENT, word):
                self.stub.Tokenize(asked)
        for ids, word in (([4096], "4096"), ([5] * 1_000_001, "1000001")):
            with self.subTest(word=word), fails_with(self, Code.INVALID_ARGUMENT, word):
                self.stub.Detokenize(pb.DetokenizeRequest(model="demo", token_ids=ids))

    def test_a_deadline_ends_a_request_and_is_counted(self):
        before = self.server.metric("nibble_requests_finished_total", outcome="deadline")
        asked = request(max_tokens=1000, stopping=pb.StoppingOptions(ignore_eos=True), n=16,
                        temperature=1.0)
        ended = lambda: (self.server.metric("nibble_requests_finished_total", outcome="deadline") +
                         self.server.metric("nibble_requests_finished_total", outcome="cancelled"))
        for seconds in (0.15, 0.6, 2.4):  # a busy machine may need as long to begin
            with fails_with(self, Code.DEADLINE_EXCEEDED):
                self.stub.Generate(asked, timeout=seconds)
            if eventually(lambda: ended() > before, 5):
                return
        self.fail("no request that had begun was ended by its deadline")

    def test_no_prompt_is_logged(self):
        self.stub.Generate(request("a secret of the confessional"))
        self.assertNotIn("confessional", self.server.stderr())

    def test_a_message_larger_than_the_limit_is_refused(self):
        with fails_with(self, Code.RESOURCE_EXHAUSTED):
            self.stub.Generate(request("x" * (9 << 20)))


class Models(WithServer):
    def test_what_is_served_is_described(self):
        model = self.stub.GetServedModel(pb.GetServedModelRequest(name="demo"))
        self.assertEqual(model.name, "servedModels/demo")
        self.assertEqual(model.state, pb.ServedModel.SERVING)
        self.assertEqual((model.family, model.scheme, model.kv_format), ("llama", "bf16", "bf16"))
        self.assertEqual((model.vocabulary, model.max_context), (4096, 1024))
        self.assertEqual(len(model.digest), 64)
        self.assertTrue(model.has_chat_template)

    def test_models_come_in_pages(self):
        for name in ("page-1", "page-2"):
            self.stub.LoadModel(pb.LoadModelRequest(name=name, source="model"))
        names, token = [], ""
        while True:
            page = self.stub.ListServedModels(
                pb.ListServedModelsRequest(page_size=1, page_token=token))
            names += [model.name for model in page.models]
            token = page.next_page_token
            if not token:
                break
        self.assertEqual(names, sorted(names))
        self.assertLessEqual({"servedModels/page-1", "servedModels/page-2"}, set(names))
        for name in ("page-1", "page-2"):
            self.stub.UnloadModel(pb.UnloadModelRequest(name=name))

    def test_loads_of_one_name_join_and_go_on_without_their_caller(self):
        asked = pb.LoadModelRequest(name="joined", source="model", kv_format="int8")
        abandoned = self.stub.LoadModel.future(asked)
        abandoned.cancel()
        answers = in_parallel(self.stub.LoadModel, [asked] * 4)
        self.assertEqual({answer.model.digest for answer in answers}.__len__(), 1)
        self.assertEqual(answers[0].model.kv_format, "int8")
        loads = self.server.metric("nibble_model_loads_total", model_name="joined", result="ok")
        self.assertEqual(loads, 1)
        self.assertEqual(self.server.health("nibble.v1.GenerationService/joined"), "SERVING")
        self.stub.UnloadModel(pb.UnloadModelRequest(name="joined"))

    def test_a_failed_load_leaves_the_old_model_serving(self):
        before = self.stub.Generate(request()).choices[0].text
        for source, code in (("heldout.jsonl", Code.INVALID_ARGUMENT), ("nothing", Code.NOT_FOUND)):
            with fails_with(self, code):
                self.stub.LoadModel(pb.LoadModelRequest(name="demo", source=source))
        model = self.stub.GetServedModel(pb.GetServedModelRequest(name="demo"))
        self.assertEqual(model.state, pb.ServedModel.SERVING)
        self.assertTrue(model.error)
        self.assertEqual(self.stub.Generate(request()).choices[0].text, before)

    def test_a_path_cannot_leave_the_model_root(self):
        for source in ("../../README.md", "/etc/passwd", "model/../../../etc"):
            with self.subTest(source=source), fails_with(self, Code.INVALID_ARGUMENT, "root"):
                self.stub.LoadModel(pb.LoadModelRequest(name="out", source=source))

    def test_a_budget_that_is_too_small_is_named(self):
        with fails_with(self, Code.RESOURCE_EXHAUSTED, "memory_budget_bytes is 2000000"):
            self.stub.LoadModel(pb.LoadModelRequest(name="small", source="model",
                                                    memory_budget_bytes=2_000_000))
        with fails_with(self, Code.UNAVAILABLE):
            self.stub.Generate(request(model="small"))
        roomy = self.stub.LoadModel(pb.LoadModelRequest(name="small", source="model",
                                                        memory_budget_bytes=100_000_000)).model
        self.assertLessEqual(roomy.weight_bytes + roomy.kv_bytes, 100_000_000)
        self.stub.UnloadModel(pb.UnloadModelRequest(name="small"))

    def test_a_context_beyond_the_models_is_refused(self):
        with fails_with(self, Code.INVALID_ARGUMENT, "max_context is 2048", "1024"):
            self.stub.LoadModel(pb.LoadModelRequest(name="long", source="model", max_context=2048))
        self.stub.UnloadModel(pb.UnloadModelRequest(name="long"))

    def test_unload_lets_requests_finish_and_takes_no_new_ones(self):
        self.stub.LoadModel(pb.LoadModelRequest(name="leaving", source="model"))
        stream = self.stub.GenerateStream(
            request(model="leaving", max_tokens=800, stopping=pb.StoppingOptions(ignore_eos=True)))
        next(stream)
        unload = self.stub.UnloadModel.future(pb.UnloadModelRequest(name="leaving"))
        health = "nibble.v1.GenerationService/leaving"
        self.assertTrue(eventually(lambda: self.server.health(health) == "NOT_SERVING"))
        with fails_with(self, Code.UNAVAILABLE, "leaving"):
            self.stub.Generate(request(model="leaving"))
        self.assertEqual(list(stream)[-1].finish.usage.generated_tokens, 800)
        unload.result()
        with fails_with(self, Code.NOT_FOUND):
            self.stub.Generate(request(model="leaving"))
        self.assertFalse([s for s in self.server.metrics() if s.startswith("nibble_model_info")
                          and 'model_name="leaving"' in s])

    def test_replacing_a_model_does_not_disturb_its_running_requests(self):
        self.stub.LoadModel(pb.LoadModelRequest(name="swap", source="model"))
        stream = self.stub.GenerateStream(
            request(model="swap", max_tokens=600, stopping=pb.StoppingOptions(ignore_eos=True)))
        next(stream)
        new = self.stub.LoadModel(
            pb.LoadModelRequest(name="swap", source="model", kv_format="int8")).model
        self.assertEqual(new.kv_format, "int8")
        self.assertEqual(self.stub.Generate(request(model="swap", max_tokens=4))
                         .usage.generated_tokens, 4)
        self.assertEqual(list(stream)[-1].finish.usage.generated_tokens, 600)
        self.stub.UnloadModel(pb.UnloadModelRequest(name="swap"))


class Health(WithServer):
    def test_every_name_answers_for_itself(self):
        for service in ("", "nibble.v1.GenerationService", "nibble.v1.GenerationService/demo"):
            self.assertEqual(self.server.health(service), "SERVING")
        with fails_with(self, Code.NOT_FOUND):
            self.server.health("nibble.v1.GenerationService/nobody")


class Configured(unittest.TestCase):
    def test_every_limit_of_a_request_is_a_setting(self):
        limits = {"max-text-bytes": 64, "max-prompt-tokens": 8, "max-tokens": 20, "max-n": 2,
                  "max-stop-strings": 1, "max-stop-bytes": 4, "max-stop-tokens": 1,
                  "max-logit-bias": 1, "max-chat-messages": 1}
        message = pb.ChatMessage(role="user", content="x")
        bias = [pb.LogitBias(token_id=i, bias=1) for i in (5, 6)]
        cases = [
            (request("x" * 65), "64"),
            (request([5] * 9), "token_ids is 9; it must be 1..8"),
            (request("a b c d e f g h i j"), "8"),
            (request(max_tokens=21), "max_tokens is 21; it must be 0..20"),
            (request(n=3), "n is 3; it must be 0..2"),
            (request(stopping=pb.StoppingOptions(stop=["a", "b"])), "0..1"),
            (request(stopping=pb.StoppingOptions(stop=["abcde"])), "1..4"),
            (request(stopping=pb.StoppingOptions(stop_token_ids=[5, 6])), "0..1"),
            (request(sampling=pb.SamplingOptions(logit_bias=bias)), "0..1"),
            (pb.GenerateRequest(model="demo", chat=pb.ChatInput(messages=[message] * 2)), "1..1"),
        ]
        with Server(*(word for name, limit in limits.items() for word in (f"--{name}", str(limit)))) as server:
            for asked, words in cases:
                with self.subTest(words=words), fails_with(self, Code.INVALID_ARGUMENT, words):
                    server.stub.Generate(asked)
            # The default keeps the limit too.
            unsaid = request("a", stopping=pb.StoppingOptions(ignore_eos=True))
            unsaid.stopping.max_tokens = 0
            self.assertEqual(server.stub.Generate(unsaid).usage.generated_tokens, 20)


class CommandLine(WithServer):
    def nibble(self, *arguments, **options):
        return subprocess.run([live_server.NIBBLE, *arguments], capture_output=True, text=True,
                              timeout=120, **options)

    def test_generate_streams_the_text_that_the_service_gives(self):
        wanted = self.stub.Generate(request("The sea", max_tokens=12)).choices[0].text
        ran = self.nibble("generate", "--server", self.server.address, "--model", "demo",
                          "--temperature", "0", "--max-tokens", "12", "The sea")
        self.assertEqual((ran.returncode, ran.stdout), (0, wanted + "\n"), ran.stderr)
        as_json = self.nibble("generate", "--server", self.server.address, "--model", "demo",
                              "--temperature", "0", "--max-tokens", "12", "--json", "The sea")
        self.assertEqual(json.loads(as_json.stdout)["choices"][0]["text"], wanted)

    def test_a_model_is_loaded_within_a_memory_budget(self):
        load = ("models", "load", "model", "--as", "roomy", "--server", self.server.address, "--json")
        self.assertEqual(self.nibble(*load, "--memory", "2000000").returncode, 4)
        ran = self.nibble(*load, "--memory", "60000000", "--max-running", "2")
        self.assertEqual(ran.returncode, 0, ran.stderr)
        shown = json.loads(ran.stdout)
        self.assertLessEqual(int(shown["weight_bytes"]) + int(shown["kv_bytes"]), 60_000_000)
        self.nibble("models", "unload", "roomy", "--server", self.server.address)

    def test_exit_codes_mean_something(self):
        at = ("--server", self.server.address)
        self.assertEqual(self.nibble("generate", *at, "--model", "nobody", "x").returncode, 3)
        self.assertEqual(self.nibble("generate", *at, "--model", "a/b", "x").returncode, 2)
        self.assertEqual(self.nibble("generate", "--model").returncode, 2)
        nowhere = self.nibble("generate", "--server", "127.0.0.1:1", "--model", "demo", "x")
        self.assertEqual(nowhere.returncode, 4)
        self.assertIn("127.0.0.1:1", nowhere.stderr)

    def test_inspect_shows_bits_and_tensors(self):
        ran = self.nibble("inspect", live_server.MODELS / "model", "--tensors", "--json")
        shown = json.loads(ran.stdout)
        self.assertEqual((shown["scheme"], shown["bits_per_weight"]), ("bf16", 16))
        self.assertEqual(sum(t["bytes"] for t in shown["tensors"]), shown["bytes"])

    def test_bench_and_eval_agree_on_the_logits_of_a_synthetic_artifact(self):
        with tempfile.TemporaryDirectory() as directory:
            artifact = f"{directory}/artifact"
            ran = self.nibble("bench", "--synthetic", "110m", "--scheme", "int4-g128", "-p", "32",
                              "-n", "4", "--batch", "1,2", "--repeat", "1", "--no-ceilings",
                              "--keep", artifact, "--json")
            self.assertEqual(ran.returncode, 0, ran.stderr)
            bench = json.loads(ran.stdout)
            self.assertEqual([row["batch"] for row in bench["decode"]], [1, 2])
            self.assertGreater(bench["prefill_tokens_per_s"], 0)
            self.assertEqual((bench["scheme"], bench["kv"], bench["mode"]), ("int4-g128", "bf16", "fast"))
            if b"__asan_init" not in live_server.NIBBLE.read_bytes():  # it takes memory of its own
                self.assertLessEqual(bench["resident_bytes"],
                                     bench["artifact_bytes"] + bench["kv_bytes"] + 150e6)
            text = pathlib.Path(directory) / "text.txt"
            text.write_text("Some text to predict.")
            evaluated = json.loads(self.nibble("eval", "--model", artifact, "--text", str(text),
                                               "--json").stdout)
            self.assertEqual(evaluated["logits_hash"], bench["logits_hash"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
