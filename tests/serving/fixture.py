"""A running `dsv4 serve` over the demo model, on a free port of the loopback interface."""

import http.client
import json
import os
import pathlib
import signal
import subprocess
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = os.environ["DSV4_PROGRAM"]

TIME_TOOL = {"type": "function", "function": {
    "name": "get_time", "description": "Get the local time of a city",
    "parameters": {"type": "object",
                   "properties": {"city": {"type": "string", "description": "The city name"}},
                   "required": ["city"]}}}


# CTest runs several of these beside each other: two servers that both want every core get in each other's way.
ENVIRONMENT = {"DSV4_THREADS": "1", **os.environ}


class Server:
    def __init__(self, *options):
        self.process = subprocess.Popen(
            [PROGRAM, "serve", "-m", str(ROOT / "models/demo"), "--port", "0", "--quiet", *options],
            stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
        line = self.process.stdout.readline()
        if "http://" not in line:
            self.process.kill()
            self.process.communicate()
            raise RuntimeError(f"the server did not start: {line!r}")
        self.port = int(line.rsplit(":", 1)[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self):
        """What Ctrl-C does; the exit code."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode

    def alive(self):
        return self.get("/health")[0] == 200

    def get(self, path, headers=None):
        return self.request("GET", path, headers=headers)

    def post(self, path, body, headers=None):
        """`body` as JSON, or bytes as they are. Status, headers and the JSON of the answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.request("POST", path, data, headers)

    def request(self, method, path, data=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, data, {"Content-Type": "application/json", **(headers or {})})
            answer = connection.getresponse()
            text = answer.read().decode()
            is_json = answer.headers.get("Content-Type", "").startswith("application/json")
            return answer.status, dict(answer.headers), json.loads(text) if is_json and text else text
        finally:
            connection.close()


class ServerTest(unittest.TestCase):
    """One server for the tests of a class."""

    OPTIONS = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.OPTIONS)

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        assert code == 0, f"the server exited with {code}"
