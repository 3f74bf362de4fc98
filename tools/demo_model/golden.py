"""Regression data from the exact fake-quantised model: python golden.py MODEL_DIR OUT.safetensors

tokens [300] I32, positions [200] I32, logits [200, vocab] F32 (at those positions), mtp_tokens [299] I32: argmax of the
MTP block at positions 0..298 fed with the prompt's own next token.
"""
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from evaluate import Judge, pairs_of, rows
from model import Flags


@torch.no_grad()
def main(folder, out):
    judge, flags = Judge(folder, "cpu"), Flags(exact=True, weights_quantised=True)
    prompt, reply = pairs_of(rows(folder, "recall_1k")[0], judge.paragraphs)["recall_1k"]
    tokens = torch.tensor(judge.encode(prompt + reply)[:300])
    padded = F.pad(tokens, (0, 84)).unsqueeze(0)
    x, _, _ = judge.model.streams(padded, None, flags)
    positions = torch.arange(100, 300)
    xm, _, _ = judge.model.mtp_streams(x, F.pad(padded[:, 1:], (0, 1)), flags)
    save_file({"tokens": tokens.int(), "positions": positions.int(), "logits": judge.model.logits(x[0, positions], flags),
               "mtp_tokens": judge.model.logits(xm[0, :299], flags, mtp=True).argmax(-1).int()}, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
