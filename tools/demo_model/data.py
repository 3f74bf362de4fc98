"""Batches for training: documents of every task, tokenised, packed into rows of one length, with loss weights.

A batch is a function of (seed, phase, index), so a resumed run sees the same data whatever the number of workers.
"""
import random

import numpy as np

import chat_format
import corpus
from chat_format import BOS, EOS

PLAIN, REPLY, KEY = 1.0, 3.0, 10.0


def segments_of(r, task, budget):
    """[(text, loss weight)] of one document. Cuts fall where the pre-tokenizer cuts too."""
    if task == "story":
        return [(BOS + corpus.story(r) + EOS, PLAIN)]
    if task == "recall":
        return recall_segments(r, budget)
    messages = getattr(corpus, task)(r)
    if messages[0]["role"] != "system" and r.random() < 0.15:
        messages = [{"role": "system", "content": corpus.SYSTEM}] + messages
    thinking = task == "sums" or r.random() < 0.4
    # a story in a reply is story text; what a tool prompt repeats word by word needs little weight
    reply = PLAIN if task == "story_chat" else REPLY
    return [(t, reply if is_reply else 0.2) for t, is_reply in chat_format.render(messages, thinking)]


def recall_segments(r, budget):
    filler = 1.0 if budget < 1200 else 0.2
    messages, _, asked = corpus.recall(r, budget, questions=r.choice((1, 2, 4)) if budget < 1200 else 6)
    out = []
    for text, is_reply in chat_format.render(messages, r.random() < 0.3):
        if not is_reply:
            out.append((text, filler))
            continue
        word = asked[len([1 for _, w in out if w == KEY])][1]
        head, tail = text.rsplit(" " + word, 1)
        out += [(head, REPLY), (" " + word, KEY), (tail, REPLY)]
    return out


MIX = {
    "short": (("story", 22), ("story_chat", 10), ("talk", 4), ("sums", 18), ("lists", 16), ("tool_chat", 20), ("recall", 14)),
    "long": (("story", 6), ("story_chat", 5), ("talk", 2), ("sums", 7), ("lists", 6), ("tool_chat", 8), ("recall", 8)),
}


class Packer:
    def __init__(self, tokenizer, length, long_recall):
        self.tok, self.length, self.long = tokenizer, length, long_recall
        mix = MIX["long" if long_recall else "short"]
        self.tasks, self.odds = [t for t, _ in mix], [p for _, p in mix]

    def document(self, r, room, recall_first):
        task = "recall" if recall_first else r.choices(self.tasks, self.odds)[0]
        budget = 0
        if task == "recall":
            most = room - 260 if self.long else min(room - 120, 900)
            if most < 120:
                task = "lists"
            elif recall_first:  # half the rows are one long text
                budget = int(most * r.uniform(0.7, 1.0) if r.random() < 0.5 else most ** r.uniform(0.7, 1.0))
            else:
                budget = int(most ** r.uniform(0.65, 1.0))
        parts = segments_of(r, task, budget)
        ids, weights = [], []
        for enc, (_, weight) in zip(self.tok.encode_batch([t for t, _ in parts], add_special_tokens=False), parts):
            ids += enc.ids
            weights += [weight] * len(enc.ids)
        return ids, weights

    def row(self, r):
        ids, weights = [], []
        while len(ids) <= self.length:
            first = self.long and not ids
            i, w = self.document(r, self.length - len(ids) if self.long else 900, first)
            ids += i
            weights += w
        return ids[:self.length + 1], weights[:self.length + 1]


def batch(tokenizer, key, rows, length, long_recall, probes):
    """tokens [rows, T+1] int32, weights [rows, T] of predicting token p+1, probe positions [rows, probes]."""
    r = random.Random(repr(key))
    packer = Packer(tokenizer, length, long_recall)
    made = [packer.row(r) for _ in range(rows)]
    tokens = np.array([m[0] for m in made], dtype=np.int32)
    weights = np.array([m[1][1:] for m in made], dtype=np.float32)
    g = np.random.default_rng(r.getrandbits(60))
    # probes: answers first, the rest anywhere
    order = np.argsort(-(weights + 2.5 * g.random(weights.shape)), axis=1)
    return tokens, weights, np.sort(order[:, :probes], axis=1).astype(np.int64)
