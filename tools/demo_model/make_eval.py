"""Writes the held-out sets: python make_eval.py models/demo/eval. One JSON object per line; README.md has the format."""
import json
import os
import random
import sys

import corpus
import words

SEED = 990001  # never used by training, whose seeds are tuples of another shape
RECALL = (("recall_1k", 900, 100), ("recall_4k", 3900, 100), ("recall_16k", 16100, 50))
PARAGRAPHS, PARAGRAPH_TOKENS = 240, 116


def write(folder, name, rows):
    with open(f"{folder}/{name}.jsonl", "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


def recall_items(r, task, tokens, count):
    for i in range(count):
        n = max(1, round((tokens - 60) / PARAGRAPH_TOKENS))
        parts = r.sample(range(PARAGRAPHS), n)
        names = r.sample(words.NAMES, r.choice((2, 4, 6)))
        pairs = [(name, r.choice(words.OBJECTS)) for name in names]
        for name, word in pairs:
            parts.insert(r.randrange(len(parts) + 1), corpus.fact(name, word))
        name, word = pairs[0]
        yield {"id": f"{task}/{i}", "task": task, "metric": "exact", "thinking": False, "before": corpus.RECALL_OPEN,
               "parts": parts, "joiner": "\n", "after": "\n\n" + corpus.question(name), "expected": corpus.fact(name, word)}


def main(folder):
    os.makedirs(folder, exist_ok=True)
    r = random.Random(SEED)
    write(folder, "story", [{"id": f"story/{i}", "task": "story", "metric": "perplexity", "text": corpus.story(r)}
                            for i in range(100)])
    write(folder, "paragraphs", [{"paragraph": i, "text": corpus.story(r)} for i in range(PARAGRAPHS)])
    for task, tokens, count in RECALL:
        write(folder, task, recall_items(r, task, tokens, count))
    rows = []
    for i in range(100):
        user, reply = corpus.sums(r, held=True)
        rows.append({"id": f"sums/{i}", "task": "sums", "metric": "exact", "thinking": True, "messages": [user],
                     "expected_reasoning": reply["reasoning_content"], "expected": reply["content"]})
    write(folder, "sums", rows)
    for task, reverse in (("copy", False), ("reverse", True)):
        rows = []
        for i in range(100):
            user, reply = corpus.lists(r, reverse)
            rows.append({"id": f"{task}/{i}", "task": task, "metric": "exact", "thinking": False, "messages": [user],
                         "expected": reply["content"]})
        write(folder, task, rows)
    rows = []
    for i in range(100):
        chat = corpus.tool_chat(r, turns=1)
        call = chat[2]["tool_calls"][0]["function"]
        rows.append({"id": f"tools/{i}", "task": "tools", "metric": "tool", "thinking": i % 2 == 0, "messages": chat[:2],
                     "expected_call": {"name": call["name"], "arguments": json.loads(call["arguments"])},
                     "expected_reasoning": chat[2]["reasoning_content"], "tool_result": chat[3]["content"],
                     "expected": chat[4]["content"], "answer_reasoning": chat[4]["reasoning_content"]})
    write(folder, "tools", rows)


if __name__ == "__main__":
    main(sys.argv[1])
