"""Trains the demo model on one GPU: python train.py --work DIR --minutes 9 (repeat the call until it says finished).

Every call resumes from DIR/state.pt. Phases run from short to long contexts; the indexer learns from the first step by
KL towards the main branch's attention mass, and its selection replaces full visibility after the first phase.
"""
import argparse
import json
import os
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.utils.data import DataLoader, Dataset

import checkpoint
import data
import induction
import outliers
from config import demo_config, namespace
from model import Flags, Model
from optim import Optimiser

SEED = 20261121
# name, kind of rows, row length, rows, steps, selection on, probes per row
BASE = [("dense", "short", 1024, 64, 1000, False, 64), ("select", "short", 1024, 64, 2400, True, 64)]
RECALL = [("match", "match", 4096, 16, 900, False, 192), ("long", "long", 4096, 16, 2200, True, 192),
          ("16k", "long", 16384, 4, 240, True, 384)]
FINISH = [("finish", "short", 1024, 64, 1300, True, 64)]
WARMUP, LR, FINISH_LR, MTP_WEIGHT = 60, 3e-3, 1.2e-3, 0.3


def phase_of(step, phases):
    for p in phases:
        if step < p[4]:
            return p, step
        step -= p[4]
    return None, 0


class Batches(Dataset):
    def __init__(self, tokenizer_path, phases, start):
        self.path, self.phases, self.start, self.tok = tokenizer_path, phases, start, None

    def __len__(self):
        return sum(p[4] for p in self.phases) - self.start

    def __getitem__(self, i):
        if self.tok is None:
            os.environ["TOKENIZERS_PARALLELISM"] = "false"
            torch.set_num_threads(1)
            os.nice(10)
            self.tok = Tokenizer.from_file(self.path)
        (name, kind, length, rows, _, _, probes), at = phase_of(self.start + i, self.phases)
        made = data.batch(self.tok, (SEED, name, at), rows, length, kind, probes)
        return [torch.from_numpy(m) for m in made]


def head_loss(model, x, labels, weights, flags, mtp):
    logits = model.logits(x, flags, mtp)
    ce = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(weights)
    return (ce * weights).sum() / weights.sum(), (logits.argmax(-1) == labels).detach()


def schedule(step, phases):
    """Warm up, hold through the first phase of several, then fall linearly."""
    total = sum(p[4] for p in phases)
    fall = total - (phases[0][4] if len(phases) > 1 else 0)
    return min((step + 1) / WARMUP, 1.0, max(0.02, (total - step) / fall))


def balance(model, loads):
    layers = list(model.layers) + [model.mtp.layer]
    with torch.no_grad():
        for layer, load in zip(layers, loads):
            if not layer.ffn.hashed:
                layer.ffn.bias += 1e-3 * torch.sign(load.mean() - load)


def prepare_recall(model):
    for part in [model.mtp] + list(model.layers[:2]):
        part.requires_grad_(False)
    model.embed.requires_grad_(False)
    model.head.requires_grad_(False)
    for layer in model.layers:
        if layer.attn.ratio == 4:
            layer.attn.compressor.reset(layer.attn.wkv)
            layer.attn.compressor.norm.data.copy_(layer.attn.kv_norm)
            layer.attn.indexer.compressor.reset(None)
            layer.attn.indexer.compressor.norm.data.fill_(1.0)


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--work", default="/tmp/demo_work")
    args.add_argument("--minutes", type=float, default=9.0)
    args.add_argument("--tokenizer", default="models/demo/tokenizer.json")
    args.add_argument("--steps", default="", help="steps of each phase, for trials: 40,40,40")
    args.add_argument("--until", type=int, default=1 << 30, help="stop this call at this step")
    args.add_argument("--init", default="", help="start from the weights of this model.safetensors")
    args.add_argument("--recall", action="store_true",
                      help="a new start for the CSA layers (induction.py); embeddings, head, MTP and layers 0, 1 stay")
    args.add_argument("--finish", action="store_true", help="a short run on all of it behind --recall: stories and MTP")
    args.add_argument("--workers", type=int, default=13)
    args.add_argument("--eager", action="store_true")
    args = args.parse_args()
    began = time.time()
    os.makedirs(args.work, exist_ok=True)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch._dynamo.config.cache_size_limit = 64
    torch._dynamo.config.automatic_dynamic_shapes = False
    vocab = max(t["id"] for t in json.load(open(args.tokenizer))["added_tokens"]) + 1
    phases = RECALL if args.recall else FINISH if args.finish else BASE
    steps = dict(zip([p[0] for p in phases], map(int, args.steps.split(",")))) if args.steps else {}
    phases = [p[:4] + (steps.get(p[0], p[4]),) + p[5:] for p in phases]
    total = sum(p[4] for p in phases)
    model = Model(namespace(demo_config(vocab)), SEED).cuda()
    if args.init:
        checkpoint.load(model, args.init)
    if args.recall:
        prepare_recall(model)
        induction.prepare(model, Tokenizer.from_file(args.tokenizer), SEED)
    opt, start = Optimiser(model, FINISH_LR if args.finish else LR), 0
    state_path = f"{args.work}/state.pt"
    if os.path.exists(state_path):
        state = torch.load(state_path, map_location="cuda")
        model.load_state_dict(state["model"])
        opt.load_state_dict(state["opt"])
        start = state["step"]
    held = outliers.Held(model) if args.recall or args.finish else None
    print(f"{sum(p.numel() for p in model.parameters())/1e6:.1f} M parameters, step {start} of {total}", flush=True)
    loader = DataLoader(Batches(args.tokenizer, phases, start), batch_size=None, num_workers=args.workers,
                        prefetch_factor=6, multiprocessing_context="spawn", pin_memory=True)
    loss_of = head_loss
    if not args.eager:
        for layer in list(model.layers) + [model.mtp.layer]:
            layer.compile()
        loss_of = torch.compile(head_loss)
    log = open(f"{args.work}/log.txt", "a")
    step, seen, mark = start, 0, time.time()
    for step, (tokens, weights, probe) in enumerate(loader, start):
        (name, _, length, rows, steps, select, _), at = phase_of(step, phases)
        flags = Flags(all_visible=torch.tensor(0.0 if select else 1.0, device="cuda"))
        tokens, weights = tokens.cuda(non_blocking=True).long(), weights.cuda(non_blocking=True)
        probe = probe.cuda(non_blocking=True)
        inputs, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        x, loads, kl = model.streams(inputs, probe, flags)
        loss, right = loss_of(model, x, labels, weights, flags, False)
        mtp, right2, ahead_w = torch.zeros((), device="cuda"), right, weights
        if not args.recall:
            xm, load, _ = model.mtp_streams(x, labels, flags)
            loads.append(load)
            ahead, ahead_w = F.pad(labels[:, 1:], (0, 1)), F.pad(weights[:, 1:], (0, 1)).clamp(max=3.0)
            mtp, right2 = loss_of(model, xm, ahead, ahead_w, flags, True)
        (loss + MTP_WEIGHT * mtp + kl).backward()
        if held:
            held.mask_gradients()
        norm = opt.step(schedule(step, phases))
        if held:
            held.restore()
        balance(model, loads)
        seen += tokens.numel()
        late = time.time() - began > args.minutes * 60 or step + 1 >= args.until
        if at % 50 == 0 or at == steps - 1 or late or at in (1, 2):
            def rate(mask, ok):
                return (ok & mask).sum() / mask.sum().clamp(min=1)
            stats = [loss, mtp, kl, norm, rate(weights == data.KEY, right), rate(weights == data.REPLY, right),
                     rate(weights == data.PLAIN, right), rate(ahead_w == data.PLAIN, right2), torch.stack(loads).max() * model.c.n_routed_experts / 2]
            v = torch.stack([s.detach().float() for s in stats]).tolist()
            line = (f"{name} {step} loss {v[0]:.4f} mtp {v[1]:.4f} kl {v[2]:.4f} norm {v[3]:.2f} recall {v[4]:.3f} "
                    f"reply {v[5]:.4f} text {v[6]:.3f} mtp-text {v[7]:.3f} load {v[8]:.1f} "
                    f"tok/s {seen / (time.time() - mark):.0f} t {time.time() - began:.0f} "
                    f"GB {torch.cuda.max_memory_allocated() / 2**30:.0f}")
            print(line, flush=True)
            log.write(line + "\n")
            log.flush()
            seen, mark = 0, time.time()
        if late:
            break
    torch.save({"model": model.state_dict(), "opt": opt.state_dict(), "step": step + 1}, state_path)
    print("finished" if step + 1 >= total else "to be continued", "at step", step + 1, f"{time.time() - began:.0f} s", flush=True)
    os._exit(0)  # the loader's workers need no orderly end


if __name__ == "__main__":
    main()
