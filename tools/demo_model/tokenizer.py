"""Trains the byte-level BPE of the demo model and writes tokenizer.json in the V4 form: python tokenizer.py OUT VOCAB

Ids as in the family: BOS, EOS, pad, the 256 bytes, merges by rank, then the named added tokens. Digits never merge (the
pre-tokenizer hands runs of up to three to BPE, which has no merge for them), so sums are worked digit by digit.
"""
import json
import random
import sys

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import chat_format
import corpus
import words

BASE = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
# (content, special) in the order of the family
ADDED = [(f"<｜{n}｜>", False) for n in ("fim▁hole", "fim▁begin", "fim▁end", "User", "Assistant")]
ADDED += [("<|EOT|>", False), ("<think>", False), ("</think>", False), ("｜DSML｜", False)]
ADDED += [(f"<｜{n}｜>", False) for n in (
    "begin▁sys", "end▁sys", "latest_reminder", "action", "query", "authority", "domain", "task", "political", "entity",
    "title", "safety", "answer", "search", "search▁begin", "search▁end", "extracted_url", "read_url")]
ADDED += [("<｜end_of_query｜>", True)]
ROUND = 128  # vocab_size is filled up to a multiple of this with placeholders, as the family does

SPLITS = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
          r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^" + "\r\n" + r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+["
          + "\r\n" + r"]*|\s*[" + "\r\n" + r"]+|\s+(?!\S)|\s+"]


def split(pattern):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def byte_alphabet():
    """The 256 byte characters in the order of the published vocabulary."""
    keep = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    return [chr(b) for b in keep] + [chr(256 + i) for i in range(256 - len(keep))]


def sample_texts(seed, count):
    r = random.Random(seed)
    for name in words.NAMES:
        yield " ".join(corpus.fact(name, o) for o in words.OBJECTS)
    makers = (lambda: [(corpus.story(r), True)], lambda: chat_format.render(corpus.talk(r), True),
              lambda: chat_format.render(corpus.sums(r), True), lambda: chat_format.render(corpus.lists(r), True),
              lambda: chat_format.render(corpus.tool_chat(r), True))
    for _ in range(count):
        for make in makers:
            yield "".join(t for t, _ in make())


def train(vocab_size):
    tok = Tokenizer(models.BPE())
    cuts = [pre_tokenizers.Split(Regex(p), "isolated") for p in [r"\p{N}"] + SPLITS[1:]]
    specials = [pre_tokenizers.Split(s, "isolated") for s, _ in ADDED + [(b, True) for b in BASE]]
    tok.pre_tokenizer = pre_tokenizers.Sequence(specials + cuts + [pre_tokenizers.ByteLevel(False, use_regex=False)])
    merges = vocab_size - len(BASE) - 256 - len(ADDED)
    trainer = trainers.BpeTrainer(vocab_size=256 + merges, initial_alphabet=byte_alphabet(), show_progress=False)
    tok.train_from_iterator(sample_texts(7, 4000), trainer)
    learnt = json.loads(tok.to_str())["model"]["merges"]
    return [m if isinstance(m, str) else " ".join(m) for m in learnt]


def build(merges):
    vocab = {t: i for i, t in enumerate(BASE + byte_alphabet())}
    for m in merges:
        vocab.setdefault("".join(m.split(" ")), len(vocab))
    base = [(t, i, True) for i, t in enumerate(BASE)]
    fill = -(len(vocab) + len(ADDED)) % ROUND
    names = ADDED + [(f"<｜place▁holder▁no▁{i}｜>", True) for i in range(fill)]
    named = [(t, len(vocab) + i, special) for i, (t, special) in enumerate(names)]
    added = [{"id": i, "content": t, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
              "special": special} for t, i, special in base + named]
    level = {"add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": []},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split(p) for p in SPLITS] + [
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]},
        "post_processor": {"type": "ByteLevel", **level, "trim_offsets": False},
        "decoder": {"type": "ByteLevel", **level},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab, "merges": merges},
    }


if __name__ == "__main__":
    out = build(train(int(sys.argv[2])))
    with open(sys.argv[1], "w", encoding="utf-8") as f:
        json.dump(out, f, ensure_ascii=False, indent=1)
    print("ids:", out["added_tokens"][-1]["id"] + 1, "merges:", len(out["model"]["merges"]))
