"""Random requests: valid bodies of every endpoint with members replaced, removed, doubled or cut. Every
answer is a success or an error of the client's making, in the API's shape."""

import copy
import http.client
import json
import os
import random
import time
import unittest

from fixture import TIME_TOOL, ServerTest

SECONDS = 20
M = [{"role": "user", "content": "Tell me a story about a fox."}]
CALL = {"id": "c", "type": "function", "function": {"name": "get_time", "arguments": "{\"city\": \"Rome\"}"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": ["string", "null"], "maxLength": 3}, "b": {"$ref": "#/$defs/x"}},
          "required": ["a"], "$defs": {"x": {"anyOf": [{"enum": [1, "x"]}, {"type": "integer", "minimum": 3}]}}}
BODIES = {
    "/v1/chat/completions": {
        "model": "demo", "messages": [{"role": "system", "content": "s"}, *M,
                                      {"role": "assistant", "content": None, "tool_calls": [CALL]},
                                      {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "r"}]}],
        "max_tokens": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "n": 2, "seed": 3, "stop": ["x"],
        "stream": False, "stream_options": {"include_usage": True}, "logprobs": True, "top_logprobs": 2,
        "logit_bias": {"5": 1}, "presence_penalty": 1, "frequency_penalty": 1, "repetition_penalty": 1.1,
        "tools": [TIME_TOOL], "tool_choice": {"type": "function", "function": {"name": "get_time"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}},
        "reasoning_effort": "high", "thinking": {"type": "enabled", "budget_tokens": 1},
        "chat_template_kwargs": {"thinking": True}, "structured_outputs": {"regex": "a|b{2}"}},
    "/v1/completions": {"model": "demo", "prompt": ["a", "b"], "max_tokens": 2, "echo": True, "logprobs": 1, "n": 2,
                        "guided_choice": ["a", "b"], "stream": False, "stop": "x"},
    "/v1/responses": {"model": "demo", "input": [*M, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                                                 {"type": "function_call_output", "call_id": "c", "output": "r"}],
                      "instructions": "i", "max_output_tokens": 2, "reasoning": {"effort": "high"}, "stream": True,
                      "tools": [{"type": "function", "name": "f", "parameters": {}}], "tool_choice": "auto",
                      "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}, "metadata": {}},
    "/v1/messages": {"model": "demo", "max_tokens": 2, "system": [{"type": "text", "text": "s"}],
                     "messages": [*M, {"role": "assistant", "content": [
                         {"type": "thinking", "thinking": "t", "signature": ""}, {"type": "text", "text": "x"},
                         {"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
                         {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]}],
                     "tools": [{"name": "f", "input_schema": SCHEMA, "strict": True}], "tool_choice": {"type": "any"},
                     "thinking": {"type": "enabled", "budget_tokens": 1}, "stop_sequences": ["x"], "stream": True,
                     "output_config": {"effort": "low"}},
    "/v1/messages/count_tokens": {"model": "demo", "messages": M, "system": "s"},
    "/tokenize": {"prompt": "fox"},
    "/detokenize": {"tokens": [1, 2, 3]},
}
ODD = [None, True, False, 0, -1, 1, 2, 1.5, -0.0, 1e308, 10**30, -10**30, float("nan"), float("inf"), "", "x", "\0", "語" * 50,
       "x" * 5000, "<｜User｜>", "</think>", "\n\n<｜DSML｜tool_calls>", [], {}, [[]], [None], [{}], {"a": {}}, {"": 1},
       {"type": "object"}, {"type": "text"}, "object", "auto", "user", "tool", "system", [1, "2", 3.0], {"$ref": "#"}]


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutate(rng, body):
    body = copy.deepcopy(body)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        path = rng.choice(list(places(body)))
        if not path:
            continue
        at = body
        for key in path[:-1]:
            at = at[key]
        action = rng.random()
        if action < 0.55:
            at[path[-1]] = copy.deepcopy(rng.choice(ODD))
        elif action < 0.75:
            del at[path[-1]]
        elif action < 0.9 and isinstance(at, dict):
            at[rng.choice(list(at))] = copy.deepcopy(at[path[-1]])
        elif isinstance(at, list):
            at += copy.deepcopy(at)
    return body


class Fuzz(ServerTest):
    OPTIONS = ("--ctx", "2048")

    def test_every_answer_is_one(self):
        seed = int(os.environ.get("DSV4_FUZZ_SEED", time.time()))
        print("DSV4_FUZZ_SEED =", seed)
        rng = random.Random(seed)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=60)
        until = time.monotonic() + SECONDS
        counts = {}
        while time.monotonic() < until:
            path = rng.choice(list(BODIES))
            data = json.dumps(mutate(rng, BODIES[path]), ensure_ascii=rng.random() < 0.5).encode()
            if rng.random() < 0.05:  # cut, or a byte turned over
                at = rng.randrange(len(data))
                data = data[:at] if rng.random() < 0.5 else data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
            connection.request("POST", path, data, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read().decode()
            counts[answer.status] = counts.get(answer.status, 0) + 1
            self.assertIn(answer.status, (200, 400, 404), (path, data, text))
            if answer.status == 200:
                if answer.headers["Content-Type"].startswith("text/event-stream"):
                    self.assertTrue(text.endswith("\n\n"), (path, data))
                else:
                    json.loads(text)
            else:
                error = json.loads(text)["error"]
                self.assertTrue(error["message"] and error["type"], (path, data, text))
        connection.close()
        print(counts)
        self.assertTrue(self.server.alive())
        self.assertGreater(counts.get(400, 0), 10)
        self.assertGreater(counts.get(200, 0), 3)


if __name__ == "__main__":
    unittest.main()
