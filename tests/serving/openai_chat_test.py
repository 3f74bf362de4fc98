"""/v1/chat/completions and /v1/models through the official openai client, unmodified."""

import json
import unittest

import openai

from fixture import TIME_TOOL
from openai_client import OpenAiTest

STORY = [{"role": "user", "content": "Tell me a story about a fox."}]
SUM = [{"role": "user", "content": "What is 45 + 84?"}]


class OpenAiChat(OpenAiTest):
    def chat(self, messages, **options):
        return self.client.chat.completions.create(model="demo", messages=messages, **options)

    def test_models(self):
        self.assertEqual([m.id for m in self.client.models.list()], ["demo"])
        self.assertEqual(self.client.models.retrieve("demo").id, "demo")
        with self.assertRaises(openai.NotFoundError):
            self.client.models.retrieve("other")

    def test_answer_and_usage(self):
        r = self.chat(SUM, temperature=0, extra_body={"thinking": {"type": "enabled"}})
        self.assertEqual(r.choices[0].message.content, "45 + 84 = 129")
        self.assertEqual(r.choices[0].finish_reason, "stop")
        self.assertEqual(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens)

    def test_stream_is_the_answer_in_pieces(self):
        whole = self.chat(STORY, temperature=0, max_tokens=60)
        chunks = list(self.chat(STORY, temperature=0, max_tokens=60, stream=True,
                                stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual([c.choices[0].finish_reason for c in chunks if c.choices][-1], "length")
        self.assertEqual(chunks[-1].choices, [])
        self.assertEqual(chunks[-1].usage.completion_tokens, 60)
        self.assertEqual(len({c.id for c in chunks}), 1)

    def test_reasoning_is_apart(self):
        r = self.chat(SUM, temperature=0, reasoning_effort="high")
        self.assertEqual(r.choices[0].message.content, "45 + 84 = 129")
        self.assertIn("carry", r.choices[0].message.reasoning_content)
        self.assertGreater(r.usage.completion_tokens_details.reasoning_tokens, 5)
        deltas = [c.choices[0].delta for c in self.chat(SUM, temperature=0, reasoning_effort="high", stream=True)]
        reasoning = "".join(getattr(d, "reasoning_content", None) or "" for d in deltas)
        self.assertEqual(reasoning, r.choices[0].message.reasoning_content)
        self.assertEqual("".join(d.content or "" for d in deltas), "45 + 84 = 129")

    def test_tools_round_trip(self):
        question = [{"role": "user", "content": "What time is it in Rome?"}]
        r = self.chat(question, tools=[TIME_TOOL], temperature=0)
        self.assertEqual(r.choices[0].finish_reason, "tool_calls")
        message = r.choices[0].message
        self.assertIsNone(message.content)
        call = message.tool_calls[0]
        self.assertEqual((call.function.name, json.loads(call.function.arguments)), ("get_time", {"city": "Rome"}))
        result = {"role": "tool", "tool_call_id": call.id, "content": '{"time": "12:27"}'}
        r = self.chat([*question, message, result], tools=[TIME_TOOL], temperature=0)
        self.assertEqual(r.choices[0].message.content, "It is 12:27 in Rome.")

    def test_streamed_tool_call(self):
        chunks = self.chat([{"role": "user", "content": "What time is it in Rome?"}], tools=[TIME_TOOL],
                           temperature=0, stream=True)
        calls = [c.choices[0].delta.tool_calls[0] for c in chunks if c.choices[0].delta.tool_calls]
        self.assertEqual(calls[0].function.name, "get_time")
        self.assertTrue(calls[0].id)
        self.assertEqual(json.loads("".join(c.function.arguments for c in calls)), {"city": "Rome"})

    def test_stop_string_is_not_part_of_the_answer(self):
        whole = self.chat(STORY, temperature=0, max_tokens=60).choices[0].message.content
        stop = whole[60:69]  # inside words, over the borders of tokens
        r = self.chat(STORY, temperature=0, max_tokens=60, stop=[stop, "nothing like it"])
        self.assertEqual(r.choices[0].finish_reason, "stop")
        self.assertEqual(r.choices[0].message.content, whole[:whole.index(stop)])

    def test_seed_and_n(self):
        a = self.chat(STORY, temperature=1, seed=7, n=3, max_tokens=20)
        texts = [c.message.content for c in a.choices]
        self.assertEqual([c.index for c in a.choices], [0, 1, 2])
        self.assertGreater(len(set(texts)), 1)
        again = self.chat(STORY, temperature=1, seed=7, n=3, max_tokens=20)
        self.assertEqual(texts, [c.message.content for c in again.choices])
        streamed = ["", "", ""]
        for c in self.chat(STORY, temperature=1, seed=7, n=3, max_tokens=20, stream=True):
            streamed[c.choices[0].index] += c.choices[0].delta.content or ""
        self.assertEqual(texts, streamed)

    def test_logprobs(self):
        r = self.chat(STORY, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3)
        tokens = r.choices[0].logprobs.content
        self.assertEqual(b"".join(bytes(t.bytes) for t in tokens).decode(), r.choices[0].message.content)
        for t in tokens:
            self.assertEqual(len(t.top_logprobs), 3)
            self.assertEqual((t.top_logprobs[0].token, t.top_logprobs[0].logprob), (t.token, t.logprob))
        streamed = []
        for c in self.chat(STORY, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3, stream=True):
            if c.choices[0].logprobs:
                streamed += c.choices[0].logprobs.content
        self.assertEqual([t.logprob for t in streamed], [t.logprob for t in tokens])

    def test_logit_bias(self):
        first = self.chat(STORY, temperature=0, max_tokens=1).choices[0].message.content
        token = self.server.post("/tokenize", {"prompt": first})[2]["tokens"][0]
        r = self.chat(STORY, temperature=0, max_tokens=1, logit_bias={str(token): -100})
        self.assertNotEqual(r.choices[0].message.content, first)

    def test_last_assistant_message_is_continued(self):
        whole = self.chat(STORY, temperature=0, max_tokens=30).choices[0].message.content
        head = "Once upon a time"
        self.assertTrue(whole.startswith(head))
        r = self.chat([*STORY, {"role": "assistant", "content": head}], temperature=0, max_tokens=26)
        self.assertEqual(head + r.choices[0].message.content, whole)

    def test_errors(self):
        with self.assertRaises(openai.NotFoundError) as e:
            self.client.chat.completions.create(model="other", messages=STORY)
        self.assertEqual(e.exception.code, "model_not_found")
        for options, param in [({"temperature": -1}, "temperature"), ({"n": 0}, "n"),
                               ({"logit_bias": {"99999999": 1}}, "logit_bias"),
                               ({"top_logprobs": 2}, "top_logprobs"),
                               ({"tool_choice": "required"}, "tool_choice")]:
            with self.assertRaises(openai.BadRequestError) as e:
                self.chat(STORY, **options)
            self.assertEqual(e.exception.param, param)
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat([{"role": "user", "content": "fox " * 9000}])
        self.assertEqual(e.exception.code, "context_length_exceeded")
        image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat([{"role": "user", "content": [image]}])
        self.assertEqual(e.exception.param, "messages[0].content[0].type")


if __name__ == "__main__":
    unittest.main()
