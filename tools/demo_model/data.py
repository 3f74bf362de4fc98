"""Batches for training: documents of every task, tokenised, packed into rows of one length, with loss weights.

A batch is a function of (seed, phase, index), so a resumed run sees the same data whatever the number of workers.
"""
import random

import numpy as np

import chat_format
import corpus
import words
from chat_format import BOS, EOS

PLAIN, REPLY, KEY = 0.4, 1.5, 15.0


def segments_of(r, task):
    """[(text, loss weight)] of one document. Cuts fall where the pre-tokenizer cuts too."""
    if task == "story":
        return [(BOS + corpus.story(r) + EOS, PLAIN)]
    messages = getattr(corpus, task)(r)
    if messages[0]["role"] != "system" and r.random() < 0.15:
        messages = [{"role": "system", "content": corpus.SYSTEM}] + messages
    thinking = task == "sums" or r.random() < 0.4
    # a story in a reply is story text; what a tool prompt repeats word by word needs little weight
    reply = PLAIN if task == "story_chat" else REPLY
    return [(t, reply if is_reply else 0.1) for t, is_reply in chat_format.render(messages, thinking)]


def recall_segments(r, budget, names):
    """All names are asked for: matching a name to its fact only emerges when a step holds many such answers."""
    messages, _, asked = corpus.recall(r, budget, len(names), names, r.choice((0, 1, 2)) if budget else 0)
    filler = 0.1
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
    "match": (("story", 4), ("story_chat", 2), ("talk", 2), ("sums", 4), ("lists", 4), ("tool_chat", 4), ("recall", 40)),
    "long": (("story", 6), ("story_chat", 5), ("talk", 2), ("sums", 7), ("lists", 7), ("tool_chat", 6), ("recall", 14)),
}


class Packer:
    """Fills rows of one length. kind: short (many small documents), match (recall over short texts), long (recall
    over texts of every length up to the row)."""

    def __init__(self, tokenizer, length, kind):
        self.tok, self.length, self.kind = tokenizer, length, kind
        mix = MIX[kind]
        self.tasks, self.odds = [t for t, _ in mix], [p for _, p in mix]

    def budget(self, r, room, first):
        """Filler tokens of a recall text."""
        most = room - 400
        if self.kind != "long" or most < 200:
            return 0 if r.random() < 0.2 else r.randrange(60, min(max(most, 61), 700))
        return int(most * r.uniform(0.7, 1.0)) if first and r.random() < 0.4 else int(most ** r.uniform(0.5, 1.0))

    def document(self, r, room, first, pool):
        task = "recall" if first else r.choices(self.tasks, self.odds)[0]
        if task == "recall" and (len(pool) < 4 or room < 500):
            task = "lists"
        if task == "recall":
            names = [pool.pop() for _ in range(min(len(pool), r.randrange(3, 11)))]
            parts = recall_segments(r, self.budget(r, room, first), names)
        else:
            parts = segments_of(r, task)
        ids, weights = [], []
        for enc, (_, weight) in zip(self.tok.encode_batch([t for t, _ in parts], add_special_tokens=False), parts):
            ids += enc.ids
            weights += [weight] * len(enc.ids)
        return ids, weights

    def row(self, r):
        ids, weights = [], []
        pool = r.sample(words.NAMES, len(words.NAMES))  # a name has one fact in a row
        while len(ids) <= self.length:
            i, w = self.document(r, self.length - len(ids), not ids, pool)
            ids += i
            weights += w
        return ids[:self.length + 1], weights[:self.length + 1]


def batch(tokenizer, key, rows, length, kind, probes):
    """tokens [rows, T+1] int32, weights [rows, T] of predicting token p+1, probe positions [rows, probes]."""
    r = random.Random(repr(key))
    packer = Packer(tokenizer, length, kind)
    made = [packer.row(r) for _ in range(rows)]
    tokens = np.array([m[0] for m in made], dtype=np.int32)
    weights = np.array([m[1][1:] for m in made], dtype=np.float32)
    g = np.random.default_rng(r.getrandbits(60))
    # probes: answers first, the rest anywhere
    order = np.argsort(-(weights + 2.5 * g.random(weights.shape)), axis=1)
    return tokens, weights, np.sort(order[:, :probes], axis=1).astype(np.int64)
