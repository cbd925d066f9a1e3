"""A gateway and a simulated large model, started as a user would start them, for tests from the outside."""

import hashlib
import json
import os
import pathlib
import re
import secrets
import subprocess
import time
import urllib.request

import grpc
import pytest
from sluice.v1 import gateway_pb2_grpc, policy_pb2_grpc, usage_pb2_grpc

BINARY = os.environ["SLUICE_BINARY"]
STARTS_WITHIN = 60.0


class Process:
    """A child that says on its output where it listens."""

    def __init__(self, arguments, pattern, folder, name):
        self.log = folder / f"{name}.log"
        environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "UPSTREAM_TEST_KEY": "sim-key"}
        with open(self.log, "wb") as log:
            self.child = subprocess.Popen([BINARY, *arguments], stdout=log, stderr=log, env=environment, cwd=folder)
        give_up = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < give_up:
            found = re.search(pattern, self.log.read_text(errors="replace"))
            if found:
                self.address = found.group(1)
                return
            if self.child.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError(f"{name} did not start:\n{self.log.read_text(errors='replace')}")

    def stop(self):
        self.child.terminate()
        try:
            self.child.wait(20)
        except subprocess.TimeoutExpired:
            self.child.kill()
            raise


class Gateway:
    """A running gateway, its keys and its simulated upstream."""

    def __init__(self, folder):
        self.folder = folder
        self.upstream = Process(["simulate"], r"simulated large model at (http://\S+)", folder, "upstream")
        self.keys = {name: secrets.token_hex(16) for name in ("full", "poor", "frugal_only", "usage")}
        sha = {name: hashlib.sha256(key.encode()).hexdigest() for name, key in self.keys.items()}
        (folder / "keys.toml").write_text(
            f"""
[[keys]]
name = "full"
sha256 = "{sha['full']}"
tenant = "acme"
roles = ["serve", "usage-own", "admin"]
policies = ["*"]

[[keys]]
name = "poor"
sha256 = "{sha['poor']}"
tenant = "poor"
roles = ["serve", "usage-own"]
policies = ["*"]

[[keys]]
name = "frugal only"
sha256 = "{sha['frugal_only']}"
tenant = "acme"
roles = ["serve"]
policies = ["frugal"]
default_policy = "frugal"

[[keys]]
name = "usage"
sha256 = "{sha['usage']}"
tenant = "acme"
roles = ["usage-own"]
policies = ["*"]
"""
        )
        (folder / "sluice.toml").write_text(
            f"""
listen = "127.0.0.1:0"
data_dir = "{folder / 'data'}"
keys_file = "{folder / 'keys.toml'}"

[targets.openai]
base_url = "{self.upstream.address}"
api_key_env = "UPSTREAM_TEST_KEY"
max_retries = 1

[tenants.poor]
daily = "0.000001 USD"
"""
        )
        self.start()

    def start(self):
        arguments = ["serve", "--config", str(self.folder / "sluice.toml")]
        self.server = Process(arguments, r"READY http://(\S+)", self.folder, "gateway")
        self.channel = grpc.insecure_channel(
            self.server.address, options=[("grpc.max_send_message_length", 64 << 20)]
        )
        self.stub = gateway_pb2_grpc.GatewayServiceStub(self.channel)
        self.usage = usage_pb2_grpc.UsageServiceStub(self.channel)
        self.policies = policy_pb2_grpc.PolicyServiceStub(self.channel)

    def auth(self, key="full"):
        return [("authorization", f"Bearer {self.keys[key]}")]

    def bill(self):
        base = self.upstream.address.removesuffix("/v1")
        with urllib.request.urlopen(f"{base}/bill") as response:
            return json.load(response)

    def stop(self):
        self.channel.close()
        self.server.stop()
        self.upstream.stop()


@pytest.fixture(scope="session")
def gateway(tmp_path_factory):
    running = Gateway(pathlib.Path(tmp_path_factory.mktemp("gateway")))
    yield running
    running.stop()
