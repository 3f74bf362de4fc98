"""Output formats and tool choices: whatever the model would rather say, the answer has the form."""

import enum
import json
import re
import unittest

import anthropic
import openai
import pydantic

from fixture import TIME_TOOL
from openai_client import OpenAiTest

STORY = [{"role": "user", "content": "Tell me a story about a fox."}]
SEEDS = range(4)


class Mood(str, enum.Enum):
    good = "good"
    bad = "bad"


class Animal(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    legs: int = pydantic.Field(ge=0, le=8)
    mood: Mood
    friends: list[str] = pydantic.Field(max_length=2)
    young: bool | None


# Free strings of a model that was not trained for this may go on for long: both lists are bounded here.
SCHEMA = {"type": "object", "properties": {
    "word": {"type": "string", "pattern": "^[a-z]{1,8}$"}, "n": {"type": "integer", "minimum": 1, "maximum": 99}},
    "required": ["word", "n"], "additionalProperties": False}
STRICT_TOOL = {"type": "function", "function": {
    "name": "get_weather", "strict": True,
    "parameters": {"type": "object", "required": ["city", "days"], "additionalProperties": False,
                   "properties": {"city": {"type": "string", "pattern": "^[A-Z][a-z]{1,10}$"},
                                  "unit": {"type": "string", "enum": ["C", "F"]},
                                  "days": {"type": "integer", "minimum": 1, "maximum": 9}}}}}


class Constraints(OpenAiTest):
    def chat(self, messages=STORY, **options):
        return self.client.chat.completions.create(model="demo", messages=messages, **{"max_tokens": 300, **options})

    def test_regex_and_choice(self):
        for seed in SEEDS:
            r = self.chat(seed=seed, extra_body={"structured_outputs": {"regex": r"\d{2}-(fox|owl)!"}})
            self.assertRegex(r.choices[0].message.content, r"\A\d{2}-(fox|owl)!\Z")
            self.assertEqual(r.choices[0].finish_reason, "stop")
            r = self.chat(seed=seed, extra_body={"structured_outputs": {"choice": ["yes", "no", "語 😀"]}})
            self.assertIn(r.choices[0].message.content, ["yes", "no", "語 😀"])
        r = self.client.completions.create(model="demo", prompt="One ", max_tokens=50,
                                           extra_body={"structured_outputs": {"regex": "[a-z]{5}"}})
        self.assertRegex(r.choices[0].text, r"\A[a-z]{5}\Z")

    def test_json_object(self):
        # The model was not taught JSON: left alone it seldom ends an object before it is cut off. A liking for
        # quotes, and a lesser one for closing braces, ends strings and then objects.
        liked = {str(self.server.post("/tokenize", {"prompt": text})[2]["tokens"][-1]): bias
                 for text, bias in (('"', 20), ("}", 15))}
        whole = 0
        for seed in SEEDS:
            for bias in ({}, liked):
                r = self.chat(seed=seed, response_format={"type": "json_object"}, max_tokens=200, logit_bias=bias)
                if r.choices[0].finish_reason == "stop":
                    whole += 1
                    self.assertIsInstance(json.loads(r.choices[0].message.content), dict)
                else:  # cut off in the middle of a value
                    self.assertTrue(r.choices[0].message.content.startswith("{"))
        self.assertGreater(whole, 0)

    def test_schema_from_pydantic(self):
        whole = 0
        for seed in SEEDS:
            r = self.client.chat.completions.create(
                model="demo", messages=STORY, seed=seed, max_tokens=400, response_format={
                    "type": "json_schema", "json_schema": {"name": "animal", "schema": Animal.model_json_schema()}})
            if r.choices[0].finish_reason == "stop":
                whole += 1
                Animal.model_validate_json(r.choices[0].message.content)
        self.assertGreater(whole, 0)

    def test_schema_with_reasoning_n_and_stream(self):
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
        r = self.chat([{"role": "user", "content": "What is 45 + 84?"}], response_format=form, temperature=0,
                      reasoning_effort="high", n=2)
        for choice in r.choices:
            self.assertTrue(choice.message.reasoning_content)
            self.check(json.loads(choice.message.content))
        for seed in SEEDS:
            text = "".join(c.choices[0].delta.content or "" for c in self.chat(response_format=form, seed=seed, stream=True))
            self.check(json.loads(text))

    def check(self, value):
        self.assertEqual(list(value), ["word", "n"])
        self.assertRegex(value["word"], r"\A[a-z]{1,8}\Z")
        self.assertTrue(1 <= value["n"] <= 99)

    def test_other_apis(self):
        r = self.client.responses.create(model="demo", input="A word.", text={
            "format": {"type": "json_schema", "name": "x", "schema": SCHEMA}})
        self.check(json.loads(r.output_text))
        with anthropic.Anthropic(base_url=self.server.url, api_key="none", max_retries=0) as client:
            r = client.messages.create(model="demo", max_tokens=300, messages=STORY, extra_body={
                "output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}})
            self.check(json.loads(r.content[0].text))
            tool = {"name": "get_weather", "strict": True, "input_schema": STRICT_TOOL["function"]["parameters"]}
            r = client.messages.create(model="demo", max_tokens=300, messages=STORY, tools=[tool],
                                       tool_choice={"type": "any"})
            self.assertEqual(r.stop_reason, "tool_use")
            self.check_arguments(r.content[-1].input)

    def test_calls_that_are_asked_for(self):
        for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
            for seed in SEEDS:
                r = self.chat(tools=[TIME_TOOL, STRICT_TOOL] if choice != "required" else [STRICT_TOOL],
                              tool_choice=choice, seed=seed, parallel_tool_calls=False)
                self.assertEqual(r.choices[0].finish_reason, "tool_calls")
                calls = r.choices[0].message.tool_calls
                self.assertEqual([c.function.name for c in calls], ["get_weather"])
                self.check_arguments(json.loads(calls[0].function.arguments))

    def check_arguments(self, arguments):
        self.assertRegex(arguments["city"], r"\A[A-Z][a-z]{1,10}\Z")
        self.assertTrue(1 <= arguments["days"] <= 9)
        self.assertLessEqual(set(arguments), {"city", "unit", "days"})
        self.assertIn(arguments.get("unit", "C"), ["C", "F"])

    def test_calls_that_are_not(self):
        r = self.chat([{"role": "user", "content": "What time is it in Rome?"}], tools=[TIME_TOOL],
                      tool_choice="none", temperature=0)
        self.assertIsNone(r.choices[0].message.tool_calls)
        self.assertTrue(r.choices[0].message.content)

    def test_thinking_budget(self):
        question = [{"role": "user", "content": "What is 45 + 84?"}]
        r = self.chat(question, temperature=0, extra_body={"thinking": {"type": "enabled", "budget_tokens": 5}})
        self.assertLessEqual(r.usage.completion_tokens_details.reasoning_tokens, 6)
        self.assertTrue(r.choices[0].message.content)

    def test_what_is_wrong_is_said(self):
        for extra in ({"structured_outputs": {"regex": "("}}, {"structured_outputs": {"regex": "(?=x)"}},
                      {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "king"}}}},
                      {"response_format": {"type": "json_schema"}}, {"response_format": {"type": "xml"}},
                      {"structured_outputs": {"choice": []}}):
            with self.assertRaises(openai.BadRequestError, msg=extra):
                self.chat(extra_body=extra)
        bad = {"type": "function", "function": {"name": "f", "strict": True,
                                                "parameters": {"properties": {"x": {"not": {}}}}}}
        with self.assertRaises(openai.BadRequestError) as e:
            self.chat(tools=[bad])
        self.assertRegex(e.exception.message, re.escape('tool "f"'))


if __name__ == "__main__":
    unittest.main()
