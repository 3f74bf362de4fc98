"""/v1/messages through the official anthropic client, unmodified."""

import unittest

import anthropic

from fixture import TIME_TOOL, ServerTest

STORY = [{"role": "user", "content": "Tell me a story about a fox."}]
TOOL = {"name": "get_time", "description": TIME_TOOL["function"]["description"],
        "input_schema": TIME_TOOL["function"]["parameters"]}
QUESTION = [{"role": "user", "content": "What time is it in Rome?"}]


class Anthropic(ServerTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.client = anthropic.Anthropic(base_url=cls.server.url, api_key="none", max_retries=0)

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        super().tearDownClass()

    def create(self, messages, max_tokens=100, **options):
        return self.client.messages.create(model="demo", messages=messages, max_tokens=max_tokens,
                                           extra_body={"temperature": 0}, **options)

    def test_message(self):
        r = self.create(STORY, max_tokens=40, system="You are a helpful assistant.")
        self.assertEqual([b.type for b in r.content], ["text"])
        self.assertEqual(r.stop_reason, "max_tokens")
        self.assertEqual(r.usage.output_tokens, 40)
        counted = self.client.messages.count_tokens(model="demo", messages=STORY,
                                                    system="You are a helpful assistant.")
        self.assertEqual(counted.input_tokens, r.usage.input_tokens + r.usage.cache_read_input_tokens)

    def test_stream_is_the_answer_in_pieces(self):
        whole = self.create(STORY, max_tokens=40)
        with self.client.messages.stream(model="demo", messages=STORY, max_tokens=40,
                                         extra_body={"temperature": 0}) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, whole.content[0].text)
        self.assertEqual(final.content[0].text, text)
        self.assertEqual(final.stop_reason, "max_tokens")
        self.assertEqual(final.usage.output_tokens, 40)

    def test_thinking(self):
        question = [{"role": "user", "content": "What is 45 + 84?"}]
        thinking = {"type": "enabled", "budget_tokens": 1024}
        r = self.create(question, max_tokens=2000, thinking=thinking)
        self.assertEqual([b.type for b in r.content], ["thinking", "text"])
        self.assertIn("carry", r.content[0].thinking)
        self.assertEqual(r.content[1].text, "45 + 84 = 129")
        self.assertEqual(r.stop_reason, "end_turn")
        with self.client.messages.stream(model="demo", messages=question, max_tokens=2000, thinking=thinking,
                                         extra_body={"temperature": 0}) as stream:
            final = stream.get_final_message()
        self.assertEqual([b.type for b in final.content], ["thinking", "text"])
        self.assertEqual(final.content[0].thinking, r.content[0].thinking)

    def test_tools_round_trip(self):
        r = self.create(QUESTION, tools=[TOOL])
        self.assertEqual(r.stop_reason, "tool_use")
        call = next(b for b in r.content if b.type == "tool_use")
        self.assertEqual((call.name, call.input), ("get_time", {"city": "Rome"}))
        result = {"type": "tool_result", "tool_use_id": call.id,
                  "content": [{"type": "text", "text": '{"time": "12:27"}'}]}
        r = self.create([*QUESTION, {"role": "assistant", "content": r.content},
                         {"role": "user", "content": [result]}], tools=[TOOL])
        self.assertEqual(r.content[0].text, "It is 12:27 in Rome.")

    def test_streamed_tool_call(self):
        with self.client.messages.stream(model="demo", messages=QUESTION, max_tokens=100, tools=[TOOL],
                                         extra_body={"temperature": 0}) as stream:
            final = stream.get_final_message()
        self.assertEqual(final.content[-1].input, {"city": "Rome"})
        self.assertEqual(final.stop_reason, "tool_use")

    def test_stop_sequence(self):
        r = self.create(STORY, stop_sequences=["named"])
        self.assertEqual((r.stop_reason, r.stop_sequence), ("stop_sequence", "named"))
        self.assertNotIn("named", r.content[0].text)

    def test_errors(self):
        with self.assertRaises(anthropic.NotFoundError) as e:
            self.client.messages.create(model="other", messages=STORY, max_tokens=1)
        self.assertEqual(e.exception.body["error"]["type"], "not_found_error")
        for messages in ([{"role": "king", "content": "x"}], [],
                         [{"role": "user", "content": [{"type": "image", "source": {}}]}]):
            with self.assertRaises(anthropic.BadRequestError) as e:
                self.create(messages)
            self.assertEqual(e.exception.body["error"]["type"], "invalid_request_error")


if __name__ == "__main__":
    unittest.main()
