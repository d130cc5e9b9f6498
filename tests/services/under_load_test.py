#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A real server under more load than it takes, with slow and aborting callers, and at its end."""

import json
import subprocess
import unittest

import grpc

import live_server
from live_server import Server, eventually, fails_with, in_parallel, pb, request

Code = grpc.StatusCode


class UnderLoad(unittest.TestCase):
    def test_two_hundred_clients_of_which_half_abort_leave_nothing_behind(self):
        with Server("--max-waiting", "300") as server:
            printed = subprocess.run(
                [live_server.NIBBLE_LOAD, "--server", server.address, "--model", "demo",
                 "--clients", "200", "--requests", "200", "--duration", "0", "--prompt-tokens", "24",
                 "--max-tokens", "24", "--spread", "0.8", "--abort-fraction", "0.5",
                 "--ignore-eos", "--json"],
                check=True, capture_output=True, text=True).stdout
            outcomes = json.loads(printed)["outcomes"]
            self.assertEqual(sum(outcomes.values()), 200)
            self.assertGreater(outcomes["ABORTED_BY_CLIENT"], 50)
            self.assertGreater(outcomes["OK/length"], 50)
            self.assertLessEqual(set(outcomes), {"ABORTED_BY_CLIENT", "OK/length"})
            gauges = ("nibble_kv_blocks_used", "nibble_requests_running", "nibble_requests_waiting",
                      "nibble_queued_tokens")
            self.assertTrue(eventually(lambda: all(server.metric(g) == 0 for g in gauges)))
            accepted = server.metric("nibble_requests_accepted_total")
            refused = server.metric("nibble_requests_rejected_total", reason="cancelled")
            self.assertEqual(accepted + refused, 200)
            self.assertTrue(eventually(
                lambda: server.metric("nibble_requests_finished_total") == accepted))
            started = server.metric("nibble_rpcs_started_total", method="GenerateStream")
            self.assertTrue(eventually(lambda: started == 200 == server.metric(
                "nibble_rpcs_finished_total", method="GenerateStream")))

    def test_a_full_queue_refuses_and_says_when_to_try_again(self):
        with Server("--max-running", "1", "--max-waiting", "1", "--max-n", "1") as server:
            endless = request(max_tokens=900, stopping=pb.StoppingOptions(ignore_eos=True))
            calls = [server.stub.GenerateStream(endless) for _ in range(8)]

            def outcome(call):
                try:
                    next(call)
                    call.cancel()
                    return None
                except grpc.RpcError as error:
                    return error

            refused = [e for e in in_parallel(outcome, calls) if e is not None]
            self.assertTrue(refused)
            for error in refused:
                self.assertEqual(error.code(), Code.RESOURCE_EXHAUSTED, error.details())
                self.assertGreater(int(dict(error.trailing_metadata())["grpc-retry-pushback-ms"]), 0)
            self.assertEqual(server.metric("nibble_requests_rejected_total", reason="queue_full"),
                             len(refused))

    def test_a_slow_reader_pauses_only_itself_and_is_ended(self):
        # Twenty log-probabilities a token fill this connection's window long before the end.
        narrow = lambda address: grpc.insecure_channel(address, options=[
            ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65536)])
        with Server("--slow-reader-seconds", "1", channel=narrow) as server:
            slow = server.stub.GenerateStream(request(
                max_tokens=900, n=8, temperature=1.0, stopping=pb.StoppingOptions(ignore_eos=True),
                response=pb.ResponseOptions(logprobs=20)))
            next(slow)
            self.assertTrue(eventually(lambda: server.metric("nibble_reader_pauses_total") > 0, 60))
            self.assertEqual(server.stub.Generate(request(max_tokens=20)).usage.generated_tokens, 20)
            ended = lambda: server.metric("nibble_requests_finished_total", outcome="slow_reader")
            self.assertTrue(eventually(lambda: ended() == 1, 30))
            self.assertEqual(server.metric("nibble_kv_blocks_used"), 0)
            # What was not read yet keeps no model in memory.
            server.stub.UnloadModel(pb.UnloadModelRequest(name="demo"))
            with fails_with(self, Code.RESOURCE_EXHAUSTED):
                list(slow)

    def test_a_request_without_a_deadline_has_the_servers(self):
        with Server("--max-request-seconds", "1") as server:
            with fails_with(self, Code.DEADLINE_EXCEEDED):
                server.stub.Generate(request(max_tokens=1000, n=16, temperature=1.0,
                                             stopping=pb.StoppingOptions(ignore_eos=True)))
            self.assertEqual(server.metric("nibble_requests_finished_total", outcome="deadline"), 1)
            self.assertEqual(server.metric("nibble_kv_blocks_used"), 0)

    def test_sigterm_turns_health_lets_streams_finish_and_exits_0(self):
        with Server("--grace", "600") as server:
            streams = [server.stub.GenerateStream(request(
                f"Part {i}", max_tokens=900, stopping=pb.StoppingOptions(ignore_eos=True)))
                for i in range(8)]
            for stream in streams:
                next(stream)
            server.process.terminate()
            self.assertTrue(eventually(lambda: server.health("") == "NOT_SERVING"))

            def refused():
                try:
                    server.stub.Generate(request())
                    return False
                except grpc.RpcError as error:
                    return error.code() == Code.UNAVAILABLE

            # Health turns first; a request that slips in between the two is served.
            self.assertTrue(eventually(refused))
            for tokens in in_parallel(
                    lambda s: list(s)[-1].finish.usage.generated_tokens, streams):
                self.assertEqual(tokens, 900)
            self.assertEqual(server.process.wait(30), 0)

    def test_what_outlives_the_grace_period_ends_with_unavailable(self):
        with Server("--grace", "0.3") as server:
            stream = server.stub.GenerateStream(request(
                max_tokens=900, n=16, temperature=1.0,
                stopping=pb.StoppingOptions(ignore_eos=True)))
            next(stream)
            server.process.terminate()
            with fails_with(self, Code.UNAVAILABLE):
                list(stream)
            self.assertEqual(server.process.wait(30), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
