"""Sampled conversations with tools: whatever the model says at temperature 1, no marker of the format is
part of a content, and arguments are JSON."""

import concurrent.futures
import json
import os
import unittest

import openai

from fixture import ROOT, ServerTest

CONVERSATIONS = int(os.environ.get("DSV4_CONVERSATIONS", 60))
MARKERS = ("DSML", "｜", "<think>", "</think>", "invoke name=", "tool_calls>")


class Leaks(ServerTest):
    OPTIONS = ("--max-sequences", "32")

    def test_no_markup_in_content(self):
        lines = (ROOT / "models/demo/eval/tools.jsonl").read_text(encoding="utf-8").splitlines()
        tasks = [json.loads(line) for line in lines]
        calls = 0
        with openai.OpenAI(base_url=self.server.url + "/v1", api_key="none", max_retries=0) as client, \
                concurrent.futures.ThreadPoolExecutor(32) as pool:
            for made in pool.map(lambda i: self.converse(client, tasks[i % len(tasks)], i), range(CONVERSATIONS)):
                calls += made
        # The sample is one of conversations that do call.
        self.assertGreater(calls, CONVERSATIONS // 2)

    def converse(self, client, task, seed):
        messages = [dict(m) for m in task["messages"]]
        tools = messages[0].pop("tools")
        options = {"model": "demo", "tools": tools, "temperature": 1, "seed": seed, "max_tokens": 200,
                   "reasoning_effort": "high" if seed % 2 else "none"}
        if seed % 3:  # in pieces and whole
            answer = client.chat.completions.create(messages=messages, **options).choices[0].message
            content, reasoning = answer.content, getattr(answer, "reasoning_content", None)
            calls = [(c.id, c.function.name, c.function.arguments) for c in answer.tool_calls or []]
            finished = True
        else:
            content, reasoning, calls, finished = "", "", [], True
            for chunk in client.chat.completions.create(messages=messages, stream=True, **options):
                choice = chunk.choices[0]
                content += choice.delta.content or ""
                reasoning += getattr(choice.delta, "reasoning_content", None) or ""
                for c in choice.delta.tool_calls or []:
                    if c.index == len(calls):
                        calls.append((c.id, c.function.name, ""))
                    calls[c.index] = (*calls[c.index][:2], calls[c.index][2] + (c.function.arguments or ""))
                finished = choice.finish_reason != "length"
        for text in (content or "", reasoning or ""):
            for marker in MARKERS:
                self.assertNotIn(marker, text, f"seed {seed}")
        if not calls or not finished:
            return 0
        for _, name, arguments in calls:
            self.assertIn(name, [t["function"]["name"] for t in tools])
            self.assertIsInstance(json.loads(arguments), dict)
        messages.append({"role": "assistant", "content": content, "tool_calls": [
            {"id": i, "type": "function", "function": {"name": n, "arguments": a}} for i, n, a in calls]})
        messages += [{"role": "tool", "tool_call_id": i, "content": task["tool_result"]} for i, _, _ in calls]
        answer = client.chat.completions.create(messages=messages, **options).choices[0].message
        for marker in MARKERS:
            self.assertNotIn(marker, answer.content or "", f"seed {seed}")
        return 1


if __name__ == "__main__":
    unittest.main()
