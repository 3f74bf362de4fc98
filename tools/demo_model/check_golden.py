"""Checks this model against golden data of the published code: python check_golden.py GOLDEN_DIR/tiny-flash"""
import json
import sys

import torch
import torch.nn.functional as F

import checkpoint
from config import namespace
from model import Flags, Model


def pad(t):
    return F.pad(t, (0, 0) * (t.dim() - 2) + (0, -t.shape[1] % 128))


def compare(name, out, ref, before):
    o, r, b = (v.flatten(2).float()[0] for v in (out, ref, before))
    cos = F.cosine_similarity(o - b, r - b, dim=-1)
    full = F.cosine_similarity(o, r, dim=-1)
    e = (o - r).norm(dim=-1) / (r - b).norm(dim=-1)
    print(f"{name}: cosine {full.mean():.6f} of change {cos.mean():.6f} median e {e.median():.6f} max {e.max():.4f}")


def main(folder):
    c = namespace(json.load(open(f"{folder}/config.json")))
    model = checkpoint.load(Model(c), f"{folder}/model.safetensors")
    gold = {k: v[1] for k, v in checkpoint.read(f"{folder}/golden.safetensors").items()}
    n = int(gold["n_prompt"])
    tokens = gold["tokens"][:n].long().unsqueeze(0)
    flags = Flags(exact=True, weights_quantised=True)
    streams = gold["prefill_streams"].unsqueeze(1)
    padded = pad(tokens)
    ropes = model.ropes(padded.shape[1], "cpu")
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            x, _, _ = layer(pad(streams[i]), padded, ropes[layer.attn.ratio > 0], None, flags)
            compare(f"layer {i} ratio {layer.attn.ratio}", x[:, :n], streams[i + 1], streams[i])
        logits = model.logits(streams[-1], flags)[0]
        print("logits from golden streams: cosine", F.cosine_similarity(logits, gold["prefill_logits"], dim=-1).mean())
        x, _, _ = model.mtp_streams(pad(streams[-1]), pad(tokens[:, 1:]), flags)
        logits = model.logits(x[:, n - 2], flags, mtp=True)[0]
        print("mtp cosine", F.cosine_similarity(logits, gold["mtp_logits_last"], dim=0))
        x, _, _ = model.streams(padded, None, flags)
        logits = model.logits(x[:, :n], flags)[0]
        cos = F.cosine_similarity(logits, gold["prefill_logits"], dim=-1).mean()
        same = (logits.argmax(-1) == gold["prefill_logits"].argmax(-1)).float().mean()
        print(f"end to end: cosine {cos:.5f} argmax agreement {same:.4f}")


if __name__ == "__main__":
    main(sys.argv[1])
