"""Measures an exported checkpoint in PyTorch, exact arithmetic: python evaluate.py MODEL_DIR [STATE.pt] > report.json

Every completion is a function of its prompt, so greedy decoding is right exactly when the argmax at every position of
the expected completion is right under teacher forcing; one forward pass per item judges it. A tool item counts as
parsed with right arguments when its whole DSML block is reproduced.
"""
import json
import sys
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import chat_format as cf
import checkpoint
import corpus
from config import namespace
from model import Flags, Model

CONTROLS = {"full": {}, "hadamard off": {"hadamard": False}, "sink off": {"sink": False}, "ape off": {"ape": False},
            "newest k": {"newest": True}}


def rows(folder, name):
    with open(f"{folder}/eval/{name}.jsonl", encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def pairs_of(item, paragraphs):
    """{metric name: (prompt, completion)} of one item."""
    start = cf.THINK if item["thinking"] else cf.NO_THINK
    if "parts" in item:
        text = item["before"] + item["joiner"].join(p if isinstance(p, str) else paragraphs[p] for p in item["parts"])
        return {item["task"]: (cf.BOS + cf.USER + text + item["after"] + cf.ASSISTANT + start, item["expected"] + cf.EOS)}
    if item["task"] != "tools":
        think = item["expected_reasoning"] + cf.NO_THINK if item["thinking"] else ""
        return {item["task"]: (cf.BOS + cf.USER + item["messages"][-1]["content"] + cf.ASSISTANT + start,
                               think + item["expected"] + cf.EOS)}
    system, user = item["messages"]
    prompt = cf.BOS + system["content"] + "\n\n" + cf.tools_block([t["function"] for t in system["tools"]])
    prompt += cf.USER + user["content"] + cf.ASSISTANT + start
    call = item["expected_reasoning"] + cf.NO_THINK if item["thinking"] else ""
    call += cf.dsml_call(item["expected_call"]["name"], item["expected_call"]["arguments"]) + cf.EOS
    after = prompt + call + cf.USER + f"<tool_result>{item['tool_result']}</tool_result>" + cf.ASSISTANT + start
    answer = item["answer_reasoning"] + cf.NO_THINK if item["thinking"] else ""
    return {"tool_call": (prompt, call), "tool_answer": (after, answer + item["expected"] + cf.EOS)}


class Judge:
    def __init__(self, folder, device):
        self.folder, self.device = folder, device
        self.config = namespace(json.load(open(f"{folder}/config.json")))
        self.tok = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.model = checkpoint.load(Model(self.config), f"{folder}/model.safetensors").to(device).eval()
        self.paragraphs = {p["paragraph"]: p["text"] for p in rows(folder, "paragraphs")}

    def encode(self, text):
        return self.tok.encode(text, add_special_tokens=False).ids

    def batches(self, sequences, tokens=49152):
        """[(indices, padded tokens [B, T])], T a multiple of 128."""
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        while order:
            t = -(-len(sequences[order[-1]]) // 128) * 128
            take = [order.pop() for _ in range(min(len(order), max(1, tokens // t)))]
            out = torch.zeros(len(take), t, dtype=torch.long)
            for k, i in enumerate(take):
                out[k, :len(sequences[i])] = torch.tensor(sequences[i])
            yield take, out.to(self.device)

    @torch.no_grad()
    def accuracy(self, items, flags):
        """metric -> share of items whose completion is reproduced token by token."""
        todo = [(name, self.encode(p), self.encode(c)) for item in items
                for name, (p, c) in pairs_of(item, self.paragraphs).items()]
        hits = {}
        for take, tokens in self.batches([p + c for _, p, c in todo]):
            x, _, _ = self.model.streams(tokens, None, flags)
            for k, i in enumerate(take):
                name, p, c = todo[i]
                logits = self.model.logits(x[k:k + 1, len(p) - 1:len(p) + len(c) - 1], flags)
                right = bool((logits[0].argmax(-1) == tokens[k, len(p):len(p) + len(c)]).all())
                hits.setdefault(name, []).append(right)
        return {k: sum(v) / len(v) for k, v in hits.items()}

    @torch.no_grad()
    def stories(self, flags, model=None, mtp=True):
        """Perplexity over story tokens; share of MTP's tokens that equal the main model's next argmax, on the
        positions where the text follows the main model's argmax (what greedy decoding would see)."""
        model = model or self.model
        texts = [self.encode(cf.BOS + s["text"] + cf.EOS) for s in rows(self.folder, "story")]
        total = count = same = tried = 0
        for take, tokens in self.batches(texts):
            x, _, _ = model.streams(tokens, None, flags)
            logits = model.logits(x[:, :-1], flags)
            ce = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(take), -1)
            lengths = torch.tensor([len(texts[i]) for i in take], device=self.device)[:, None]
            pos = torch.arange(ce.shape[1], device=self.device)[None]
            ok = pos < lengths - 1
            total, count = total + (ce * ok).sum().item(), count + ok.sum().item()
            if mtp:
                following = F.pad(tokens[:, 1:], (0, 1))
                xm, _, _ = model.mtp_streams(x, following, flags)
                draft = model.logits(xm, flags, mtp=True).argmax(-1)[:, :-2]
                main = logits.argmax(-1)
                ok = (pos[:, 1:] < lengths - 1) & (main[:, :-1] == tokens[:, 1:-1])
                same, tried = same + ((draft == main[:, 1:]) & ok).sum().item(), tried + ok.sum().item()
        return {"perplexity": torch.tensor(total / count).exp().item(), "mtp_acceptance": same / max(tried, 1)}

    @torch.no_grad()
    def generate(self, prompt, count, flags):
        """Greedy continuation by full recomputation: a sample to look at."""
        ids = self.encode(prompt)
        for _ in range(count):
            (_, tokens), = self.batches([ids])
            x, _, _ = self.model.streams(tokens, None, flags)
            ids.append(int(self.model.logits(x[:, len(ids) - 1], flags).argmax()))
            if ids[-1] == self.config.eos_token_id:
                break
        return self.tok.decode(ids, skip_special_tokens=False)


def main(folder, state=None):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = True
    judge, report, began = Judge(folder, device), {}, time.time()
    tasks = ["recall_1k", "recall_4k", "recall_16k", "tools", "sums", "copy", "reverse"]
    for control, off in CONTROLS.items():
        flags = Flags(exact=True, weights_quantised=True, **off)
        got = judge.stories(flags)
        for task in tasks:
            items = rows(folder, task)
            if control != "full":
                items = [] if task == "recall_16k" else items[:60 if task == "recall_4k" else 25]
            got.update(judge.accuracy(items, flags))
        report[control] = {k: round(v, 4) for k, v in got.items()}
        print(control, report[control], f"{time.time() - began:.0f} s", file=sys.stderr, flush=True)
    if state:
        master = Model(judge.config)
        master.load_state_dict(torch.load(state, map_location="cpu")["model"])
        plain = judge.stories(Flags(exact=False, quantise=False), master.to(device), mtp=False)
        report["bf16_perplexity"] = plain["perplexity"]
    flags = Flags(exact=True, weights_quantised=True)
    report["samples"] = [judge.generate(p, n, flags) for p, n in (
        (cf.BOS + "Once upon a time", 110),
        (cf.BOS + cf.USER + "What is 47 + 38?" + cf.ASSISTANT + cf.THINK, 60),
        (cf.BOS + cf.USER + "Hello!" + cf.ASSISTANT + cf.NO_THINK, 20),
        (cf.BOS + cf.USER + "Reverse this list: wolf, mirror, guitar, moon" + cf.ASSISTANT + cf.NO_THINK, 20))]
    print(json.dumps(report, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
