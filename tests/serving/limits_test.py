"""Clients that are broken, hostile, many, or gone: the right error in the API's own shape, and a server
that lives."""

import json
import os
import socket
import threading
import time
import unittest

from fixture import Server, ServerTest

CHAT = "/v1/chat/completions"
STORY = {"messages": [{"role": "user", "content": "Tell me a story about a fox."}]}


def raw(server, data, timeout=30):
    """All that the server says to these bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout) as s:
        s.sendall(data)
        out = b""
        while piece := s.recv(65536):
            out += piece
    return out


class Malformed(ServerTest):
    def tearDown(self):
        self.assertTrue(self.server.alive())

    def expect(self, status, path, body, param=None):
        got, _, answer = self.server.post(path, body)
        self.assertEqual(got, status, answer)
        if path.startswith("/v1/messages"):
            self.assertEqual(answer["type"], "error")
            self.assertIn("_error", answer["error"]["type"])
        else:
            self.assertIn("type", answer["error"])
            if param:
                self.assertEqual(answer["error"]["param"], param)
        self.assertTrue(answer["error"]["message"])

    def test_not_json(self):
        for path in (CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize"):
            for body in (b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"messages": "\xc3\x28"}', b'{"a": 1} x',
                         b"[" * 100000, b'"\\ud800"', b"{" + b'"a":{' * 3000):
                self.expect(400, path, body)

    def test_wrong_types_and_huge_numbers(self):
        m = STORY["messages"]
        for fields, param in [({"messages": 1}, "messages"), ({"messages": [1]}, "messages[0]"),
                              ({"messages": [{}]}, "messages[0].role"), ({"messages": []}, "messages"),
                              ({"messages": m, "temperature": "hot"}, "temperature"),
                              ({"messages": m, "temperature": 1e999}, "temperature"),
                              ({"messages": m, "max_tokens": 10**400}, "max_tokens"),
                              ({"messages": m, "max_tokens": 0}, "max_tokens"),
                              ({"messages": m, "n": 10**9}, "n"), ({"messages": m, "top_k": 2**40}, "top_k"),
                              ({"messages": m, "seed": 2**200}, "seed"), ({"messages": m, "stop": [1]}, "stop"),
                              ({"messages": m, "stop": [""]}, "stop"), ({"messages": m, "stream": "yes"}, "stream"),
                              ({"messages": m, "logit_bias": {"x": 1}}, "logit_bias"),
                              ({"messages": m, "tools": [{}]}, "tools[0].function"),
                              ({"messages": m, "tool_choice": "maybe"}, "tool_choice"),
                              ({"messages": m, "model": 5}, "model"),
                              ({"messages": m, "top_p": float("nan")}, "top_p")]:
            self.expect(400, CHAT, fields, param)
        for fields in ({}, {"max_tokens": 5}, {"max_tokens": -1, "messages": m}, {"messages": m},
                       {"max_tokens": 5, "messages": m, "system": 4},
                       {"max_tokens": 5, "messages": m, "tools": [{"name": "x"}]}):
            self.expect(400, "/v1/messages", fields)
        self.expect(404, "/v1/messages", {"max_tokens": 5, "messages": m, "model": "other"})
        self.expect(400, "/detokenize", {"tokens": [1, -1]}, "tokens[1]")

    def test_context_overflow(self):
        long = [{"role": "user", "content": "fox " * 20000}]
        got, _, answer = self.server.post(CHAT, {"messages": long})
        self.assertEqual((got, answer["error"]["code"]), (400, "context_length_exceeded"))
        self.expect(400, "/v1/messages", {"max_tokens": 5, "messages": long})
        self.expect(400, "/v1/completions", {"prompt": "fox " * 20000}, "prompt")

    def test_paths_and_methods(self):
        self.assertEqual(self.server.get("/nowhere")[0], 404)
        status, headers, _ = self.server.get(CHAT)
        self.assertEqual((status, headers["Allow"]), (405, "POST, OPTIONS"))
        self.assertEqual(self.server.request("DELETE", "/health")[0], 405)
        self.assertEqual(self.server.request("OPTIONS", CHAT)[0], 204)
        self.assertEqual(self.server.request("HEAD", "/health")[0], 200)
        self.assertEqual(self.server.get("/health?x=1")[0], 200)

    def test_broken_http(self):
        for data in (b"hello\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                     b"POST /v1/messages HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
                     b"POST /v1/messages HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
                     b"GET / HTTP/1.1\r\nno colon\r\n\r\n"):
            self.assertTrue(raw(self.server, data).startswith(b"HTTP/1.1 400 "), data)
        self.assertTrue(raw(self.server, b"GET /health HTTP/1.1\r\nX: " + b"x" * 100000).startswith(b"HTTP/1.1 431 "))
        # HTTP/1.0 has no chunks; the end of the answer is the end of the connection.
        body = json.dumps({**STORY, "stream": True, "max_tokens": 3}).encode()
        answer = raw(self.server, b"POST /v1/chat/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        self.assertNotIn(b"chunked", answer)
        self.assertTrue(answer.endswith(b"data: [DONE]\n\n"))

    def test_50_megabytes(self):
        for path, error in ((CHAT, "invalid_request_error"), ("/v1/messages", "request_too_large")):
            status, _, answer = self.server.post(path, b'{"messages": "' + b"x" * (50 << 20) + b'"}')
            self.assertEqual(status, 413)
            self.assertEqual(answer["error"]["type"], error)

    def test_requests_in_one_packet(self):
        get = b"GET /health HTTP/1.1\r\n\r\n"
        last = b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n"
        self.assertEqual(raw(self.server, get * 20 + last).count(b'{"status": "ok"}'), 21)

    def test_waits_for_100_continue(self):
        body = b'{"prompt": "fox"}'
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=30) as s:
            s.sendall(b"POST /tokenize HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
            self.assertEqual(s.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
            s.sendall(body)
            self.assertIn(b"200 OK", s.recv(1000))


class SlowClients(ServerTest):
    OPTIONS = ("--header-timeout", "1", "--body-timeout", "1", "--idle-timeout", "2")

    def test_slow_loris(self):
        """Bytes that trickle in forever do not keep a connection."""
        for start in (b"GET /health HTTP/1.1\r\n", b"POST /tokenize HTTP/1.1\r\nContent-Length: 1000\r\n\r\n{"):
            with socket.create_connection(("127.0.0.1", self.server.port), timeout=30) as s:
                s.sendall(start)
                closed = False
                for _ in range(100):  # ten seconds, many times the limit
                    time.sleep(0.1)
                    try:
                        s.sendall(b"x")
                    except OSError:
                        closed = True
                        break
                self.assertTrue(closed)
        self.assertTrue(self.server.alive())

    def test_idle_connections_end(self):
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=30) as s:
            self.assertEqual(s.recv(1), b"")


class Keys(ServerTest):
    OPTIONS = ("--api-key", "one", "--api-key", "two", "--cors-origin", "https://a.example")

    def test_keys(self):
        self.assertEqual(self.server.get("/health")[0], 200)
        for headers in ({}, {"Authorization": "Bearer three"}, {"x-api-key": "on"}, {"Authorization": "one"}):
            status, _, answer = self.server.get("/v1/models", headers)
            self.assertEqual((status, answer["error"]["code"]), (401, "invalid_api_key"))
        self.assertEqual(self.server.post("/v1/messages", {})[2]["error"]["type"], "authentication_error")
        self.assertEqual(self.server.get("/v1/models", {"Authorization": "Bearer one"})[0], 200)
        self.assertEqual(self.server.get("/v1/models", {"x-api-key": "two"})[0], 200)

    def test_cors(self):
        status, headers, _ = self.server.request("OPTIONS", CHAT)
        self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (204, "https://a.example"))


class Load(unittest.TestCase):
    def test_a_full_queue_says_when_to_come_back(self):
        server = Server("--max-queue", "1", "--max-sequences", "1")
        try:
            answers = []
            lock = threading.Lock()

            def ask():
                got = server.post(CHAT, {**STORY, "max_tokens": 200, "ignore_eos": True})
                with lock:
                    answers.append(got)

            threads = [threading.Thread(target=ask) for _ in range(12)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            refused = [(h, a) for status, h, a in answers if status == 429]
            self.assertEqual(len(refused) + sum(status == 200 for status, _, _ in answers), 12)
            self.assertTrue(refused)
            for headers, answer in refused:
                self.assertGreaterEqual(int(headers["Retry-After"]), 1)
                self.assertEqual(answer["error"]["type"], "rate_limit_error")
        finally:
            self.assertEqual(server.stop(), 0)

    def test_shutdown_finishes_what_runs(self):
        server = Server()
        body = json.dumps({**STORY, "max_tokens": 400, "stream": True, "temperature": 0}).encode()
        idle = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        with idle, socket.create_connection(("127.0.0.1", server.port), timeout=60) as s:
            s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            out = s.recv(1000)
            self.assertIn(b"200 OK", out)
            self.assertEqual(server.stop(), 0)  # while it streams
            while piece := s.recv(65536):
                out += piece
            self.assertIn(b"data: [DONE]", out)
            self.assertEqual(idle.recv(1), b"")

    def test_a_second_signal_stops_at_once(self):
        server = Server("--ctx", "100000")
        body = json.dumps({"prompt": "Once", "max_tokens": 90000, "logit_bias": {"1": -100}, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as s:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
            self.assertIn(b"200 OK", s.recv(100))
            server.process.send_signal(2)
            time.sleep(0.5)
            self.assertIsNone(server.process.poll())
            self.assertEqual(server.stop(), 0)

    def test_a_client_that_hangs_up_cancels_its_request(self):
        server = Server("--ctx", "100000")
        try:
            for stream in (True, False):
                body = json.dumps({"prompt": "Once", "max_tokens": 90000, "logit_bias": {"1": -100},
                                   "stream": stream}).encode()
                with socket.create_connection(("127.0.0.1", server.port), timeout=60) as s:
                    s.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
                    self.wait_for(server, "dsv4_requests_running 1")
                self.wait_for(server, "dsv4_requests_running 0")
            self.assertIn('dsv4_generations_total{outcome="abandoned"} 2', server.get("/metrics")[2])
        finally:
            server.stop()

    def wait_for(self, server, line):
        for _ in range(300):
            if line in server.get("/metrics")[2].splitlines():
                return
            time.sleep(0.1)
        self.fail(f"no line {line!r}")

    def test_thousand_idle_and_hundred_streams(self):
        server = Server("--max-sequences", "32")
        sockets = []
        try:
            for _ in range(1000):
                sockets.append(socket.create_connection(("127.0.0.1", server.port), timeout=120))
            ping = b"GET /health HTTP/1.1\r\n\r\n"
            for s in sockets:  # used once, kept open
                s.sendall(ping)
            for s in sockets:
                self.assertIn(b"200 OK", s.recv(4096))
            body = json.dumps({**STORY, "max_tokens": 10, "stream": True, "temperature": 0}).encode()
            streams = [socket.create_connection(("127.0.0.1", server.port), timeout=120) for _ in range(100)]
            sockets += streams
            for s in streams:
                s.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
                          % (len(body), body))
            threads = len(os.listdir(f"/proc/{server.process.pid}/task"))
            self.assertLess(threads, 64)
            answers = set()
            for s in streams:
                out = b""
                while piece := s.recv(65536):
                    out += piece
                self.assertIn(b"data: [DONE]", out)
                answers.add("".join(json.loads(line[6:])["choices"][0]["delta"].get("content", "")
                                    for line in out.decode().split("\n") if line.startswith("data: {")))
            self.assertEqual(len(answers), 1)  # each the same greedy answer
            for s in sockets[:1000]:  # still served
                s.sendall(ping)
                self.assertIn(b"200 OK", s.recv(4096))
        finally:
            for s in sockets:
                s.close()
            self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    unittest.main()
