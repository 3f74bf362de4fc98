"""/v1/completions and /v1/responses through the official openai client, unmodified."""

import json
import math
import unittest

import openai

from fixture import TIME_TOOL
from openai_client import OpenAiTest

FOX = "Tell me a story about a fox."
TOOL = {"type": "function", **TIME_TOOL["function"]}


class Completions(OpenAiTest):
    def complete(self, prompt, **options):
        return self.client.completions.create(model="demo", prompt=prompt, temperature=0, **options)

    def test_text_ids_and_lists(self):
        ids = self.server.post("/tokenize", {"prompt": "Once upon a time"})[2]["tokens"]
        text = self.complete("Once upon a time", max_tokens=12).choices[0].text
        self.assertTrue(text)
        self.assertEqual(self.complete(ids, max_tokens=12).choices[0].text, text)
        r = self.complete(["Once upon a time", "One morning"], max_tokens=12)
        self.assertEqual([c.index for c in r.choices], [0, 1])
        self.assertEqual(r.choices[0].text, text)
        self.assertEqual(self.complete([ids, ids], max_tokens=12, n=2).choices[3].text, text)
        self.assertEqual(self.server.post("/detokenize", {"tokens": ids})[2]["prompt"], "Once upon a time")

    def test_stream_and_stop(self):
        whole = self.complete("Once upon a time", max_tokens=20)
        self.assertEqual(whole.choices[0].finish_reason, "length")
        chunks = list(self.complete("Once upon a time", max_tokens=20, stream=True,
                                    stream_options={"include_usage": True}))
        self.assertEqual("".join(c.choices[0].text for c in chunks if c.choices), whole.choices[0].text)
        self.assertEqual(chunks[-1].usage.completion_tokens, 20)
        r = self.complete("Once upon a time", max_tokens=20, stop=" was")
        self.assertEqual(r.choices[0].text, whole.choices[0].text.split(" was")[0])
        self.assertEqual(r.choices[0].finish_reason, "stop")

    def test_echo_with_logprobs_scores_the_prompt(self):
        prompt = "Once upon a time there was a little fox"
        r = self.complete(prompt, max_tokens=0, echo=True, logprobs=2)
        choice = r.choices[0]
        self.assertEqual(choice.text, prompt)
        self.assertEqual("".join(choice.logprobs.tokens), prompt)
        self.assertIsNone(choice.logprobs.token_logprobs[0])
        self.assertTrue(all(x <= 0 and math.isfinite(x) for x in choice.logprobs.token_logprobs[1:]))
        self.assertEqual(choice.logprobs.text_offset[1], len(choice.logprobs.tokens[0]))
        r = self.complete(prompt, max_tokens=3, echo=True, logprobs=0)
        self.assertTrue(r.choices[0].text.startswith(prompt))
        self.assertEqual("".join(r.choices[0].logprobs.tokens), r.choices[0].text)
        # What was drawn has the same log probability as when it is part of the prompt.
        again = self.complete(r.choices[0].text, max_tokens=0, echo=True, logprobs=0)
        self.assertAlmostEqual(again.choices[0].logprobs.token_logprobs[-1],
                               r.choices[0].logprobs.token_logprobs[-1], places=4)

    def test_errors(self):
        for options, param in [({"prompt": {"a": 1}}, "prompt"), ({"prompt": [99999999]}, "prompt"),
                               ({"prompt": "x", "suffix": "y"}, "suffix"), ({"prompt": []}, "prompt")]:
            with self.assertRaises(openai.BadRequestError) as e:
                self.client.completions.create(model="demo", **options)
            self.assertEqual(e.exception.param, param)


class Responses(OpenAiTest):
    def create(self, content, **options):
        return self.client.responses.create(model="demo", input=content, temperature=0, **options)

    def test_text_in_and_out(self):
        r = self.create(FOX, max_output_tokens=30, instructions="You are a helpful assistant.")
        self.assertTrue(r.output_text.startswith("Once"))
        self.assertEqual((r.status, r.incomplete_details.reason), ("incomplete", "max_output_tokens"))
        self.assertEqual(r.usage.output_tokens, 30)
        r = self.create([{"role": "user", "content": [{"type": "input_text", "text": "What is 45 + 84?"}]}],
                        reasoning={"effort": "high"})
        self.assertEqual([i.type for i in r.output], ["reasoning", "message"])
        self.assertEqual((r.status, r.output_text), ("completed", "45 + 84 = 129"))
        self.assertIn("carry", r.output[0].content[0].text)

    def test_stream(self):
        whole = self.create("What is 45 + 84?", reasoning={"effort": "high"})
        with self.client.responses.stream(model="demo", input="What is 45 + 84?", temperature=0,
                                          reasoning={"effort": "high"}) as stream:
            events = list(stream)
            final = stream.get_final_response()
        self.assertEqual(final.output_text, whole.output_text)
        self.assertEqual([e.sequence_number for e in events], sorted({e.sequence_number for e in events}))
        kinds = [e.type for e in events]
        for kind in ("response.created", "response.output_item.added", "response.reasoning_text.delta",
                     "response.output_text.delta", "response.output_text.done", "response.completed"):
            self.assertIn(kind, kinds)

    def test_tools_round_trip(self):
        question = [{"role": "user", "content": "What time is it in Rome?"}]
        r = self.create(question, tools=[TOOL])
        call = r.output[0]
        self.assertEqual((call.type, call.name, json.loads(call.arguments)),
                         ("function_call", "get_time", {"city": "Rome"}))
        r = self.create([*question, call.model_dump(exclude_none=True),
                         {"type": "function_call_output", "call_id": call.call_id,
                          "output": '{"time": "12:27"}'}], tools=[TOOL])
        self.assertEqual(r.output_text, "It is 12:27 in Rome.")
        with self.client.responses.stream(model="demo", input=question, tools=[TOOL], temperature=0) as stream:
            final = stream.get_final_response()
        self.assertEqual(json.loads(final.output[0].arguments), {"city": "Rome"})

    def test_errors(self):
        with self.assertRaises(openai.BadRequestError) as e:
            self.create(FOX, previous_response_id="resp_1")
        self.assertEqual(e.exception.param, "previous_response_id")
        with self.assertRaises(openai.NotFoundError):
            self.client.responses.create(model="other", input=FOX)


if __name__ == "__main__":
    unittest.main()
