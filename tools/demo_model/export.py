"""Writes the trained state in the published layout: python export.py STATE.pt OUT_DIR TOKENIZER"""
import json
import os
import shutil
import sys

import torch

import checkpoint
from config import demo_config, namespace
from model import Model


def main(state, out, tokenizer):
    vocab = max(t["id"] for t in json.load(open(tokenizer))["added_tokens"]) + 1
    config = demo_config(vocab)
    model = Model(namespace(config))
    model.load_state_dict(torch.load(state, map_location="cpu")["model"])
    os.makedirs(out, exist_ok=True)
    size = checkpoint.save(model, f"{out}/model.safetensors")
    with open(f"{out}/config.json", "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    with open(f"{out}/generation_config.json", "w") as f:
        json.dump({"_from_model_config": True, "bos_token_id": 0, "eos_token_id": 1, "do_sample": True,
                   "temperature": 1.0, "top_p": 1.0}, f, indent=2)
        f.write("\n")
    if os.path.abspath(tokenizer) != os.path.abspath(f"{out}/tokenizer.json"):
        shutil.copy(tokenizer, f"{out}/tokenizer.json")
    print(f"{out}: {size} bytes")


if __name__ == "__main__":
    main(*sys.argv[1:])
