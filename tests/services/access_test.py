#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Who may call a real server: tokens, roles, TLS."""

import hashlib
import pathlib
import subprocess
import tempfile
import unittest

import grpc

import live_server
from live_server import Server, eventually, fails_with, pb, request

Code = grpc.StatusCode


class Guarded(unittest.TestCase):
    ADMIN, USER = "correct horse battery staple", "user-token"

    def write_tokens(self, path, *lines):
        rows = [f"{hashlib.sha256(token.encode()).hexdigest()} {name} lab {roles}"
                for token, name, roles in lines]
        path.write_text("# tokens\n" + "\n".join(rows) + "\n")

    @staticmethod
    def bearer(token):
        return (("authorization", f"Bearer {token}"),)

    def test_roles_decide_and_the_file_is_read_again(self):
        with tempfile.TemporaryDirectory() as directory:
            tokens = pathlib.Path(directory) / "tokens"
            self.write_tokens(tokens, (self.ADMIN, "root", "admin"), (self.USER, "ann", "generate"))
            with Server("--tokens-file", str(tokens)) as server:
                generate = lambda token: server.stub.Generate(
                    request(max_tokens=1), metadata=self.bearer(token))
                load = lambda token: server.stub.LoadModel(
                    pb.LoadModelRequest(name="demo", source="model"), metadata=self.bearer(token))
                with fails_with(self, Code.UNAUTHENTICATED, "authorization"):
                    server.stub.Generate(request(max_tokens=1))
                with fails_with(self, Code.UNAUTHENTICATED):
                    generate("wrong")
                generate(self.USER)
                with fails_with(self, Code.PERMISSION_DENIED, "admin"):
                    load(self.USER)
                load(self.ADMIN)
                self.assertEqual(server.health(""), "SERVING")  # needs no token

                self.write_tokens(tokens, (self.ADMIN, "root", "admin"))

                def revoked():
                    try:
                        generate(self.USER)
                        return False
                    except grpc.RpcError as error:
                        return error.code() == Code.UNAUTHENTICATED

                self.assertTrue(eventually(revoked))
                generate(self.ADMIN)
                # A broken file changes nothing.
                tokens.write_text("nonsense\n")
                self.assertTrue(eventually(lambda: "tokens_not_reloaded" in server.stderr()))
                generate(self.ADMIN)

    @staticmethod
    def certificate(directory, name):
        """A certificate for localhost that signs itself, and its key."""
        cert, key = f"{directory}/{name}.pem", f"{directory}/{name}.key"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                        "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
                        "-keyout", key, "-out", cert], check=True, capture_output=True)
        return cert, key

    def test_callers_without_a_certificate_stay_outside_where_one_is_asked_for(self):
        with tempfile.TemporaryDirectory() as directory:
            cert, key = self.certificate(directory, "server")
            ours, ours_key = self.certificate(directory, "caller")
            read = lambda path: pathlib.Path(path).read_bytes()
            known = grpc.ssl_channel_credentials(read(cert), read(ours_key), read(ours))
            with Server("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ours,
                        address="localhost:0", channel=lambda a: grpc.secure_channel(a, known)) as server:
                self.assertTrue(server.stub.Generate(request()).choices[0].text)
                unknown = grpc.ssl_channel_credentials(read(cert))
                with grpc.secure_channel(server.address, unknown) as channel:
                    with fails_with(self, Code.UNAVAILABLE):
                        live_server.pb_grpc.GenerationServiceStub(channel).Generate(request())

    def test_tls_from_files(self):
        with tempfile.TemporaryDirectory() as directory:
            cert, key = self.certificate(directory, "server")
            credentials = grpc.ssl_channel_credentials(pathlib.Path(cert).read_bytes())
            with Server("--tls-cert", cert, "--tls-key", key, address="localhost:0",
                        channel=lambda a: grpc.secure_channel(a, credentials)) as server:
                self.assertTrue(server.stub.Generate(request()).choices[0].text)
                with grpc.insecure_channel(server.address) as plain:
                    with fails_with(self, Code.UNAVAILABLE):
                        live_server.pb_grpc.GenerationServiceStub(plain).Generate(request())

    def test_an_open_address_without_tls_and_tokens_is_refused(self):
        def serve(*arguments):
            with tempfile.TemporaryDirectory() as data:
                return subprocess.run(
                    [live_server.NIBBLE, "serve", "--data-dir", data, "--metrics-address", "",
                     *arguments], capture_output=True, text=True, timeout=60)
        refused = serve("--address", "0.0.0.0:0")
        self.assertEqual(refused.returncode, 2)
        self.assertIn("--insecure", refused.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
