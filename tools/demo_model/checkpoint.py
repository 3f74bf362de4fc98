"""The published checkpoint layout: names, dtypes, FP8 tiles, MXFP4 groups; both directions."""
import json
import struct

import numpy as np
import torch

import quant

BF = torch.bfloat16
ORDER = ["I64", "F32", "BF16", "F8_E8M0", "F8_E4M3", "I8"]
E2M1 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, -0., -.5, -1, -1.5, -2, -3, -4, -6])


def layer_names(layer, p):
    """(published name, kind, parameter, index or None) of one layer; kinds: f32 bf16 fp8 fp4 i64."""
    for site, m in (("attn", layer.hc_attn), ("ffn", layer.hc_ffn)):
        for part in ("fn", "base", "scale"):
            yield f"{p}hc_{site}_{part}", "f32", getattr(m, part), None
    yield f"{p}attn_norm.weight", "bf16", layer.attn_norm, None
    yield f"{p}ffn_norm.weight", "bf16", layer.ffn_norm, None
    a = layer.attn
    yield f"{p}attn.attn_sink", "f32", a.attn_sink, None
    for n in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b"):
        yield f"{p}attn.{n}.weight", "fp8", getattr(a, n), None
    for n in ("q_norm", "kv_norm"):
        yield f"{p}attn.{n}.weight", "bf16", getattr(a, n), None
    sites = [("attn.compressor.", a.compressor)] if a.ratio else []
    if a.ratio == 4:
        sites.append(("attn.indexer.compressor.", a.indexer.compressor))
        yield f"{p}attn.indexer.wq_b.weight", "fp8", a.indexer.wq_b, None
        yield f"{p}attn.indexer.weights_proj.weight", "bf16", a.indexer.weights_proj, None
    for s, m in sites:
        yield f"{p}{s}ape", "f32", m.ape, None
        for n in ("wkv", "wgate", "norm"):
            yield f"{p}{s}{n}.weight", "bf16", getattr(m, n), None
    f = layer.ffn
    yield f"{p}ffn.gate.weight", "bf16", f.gate, None
    if f.hashed:
        yield f"{p}ffn.gate.tid2eid", "i64", f.tid2eid, None
    else:
        yield f"{p}ffn.gate.bias", "f32", f.bias, None
    for n in ("w1", "w2", "w3"):
        for e in range(f.e):
            yield f"{p}ffn.experts.{e}.{n}.weight", "fp4", getattr(f, n), e
        yield f"{p}ffn.shared_experts.{n}.weight", "fp8", getattr(f, n), f.e


def all_names(model):
    yield "embed.weight", "bf16", model.embed, None
    yield "head.weight", "bf16", model.head, None
    yield "norm.weight", "bf16", model.norm, None
    for part in ("fn", "base", "scale"):
        yield f"hc_head_{part}", "f32", getattr(model.hc_head, part), None
    for i, layer in enumerate(model.layers):
        yield from layer_names(layer, f"layers.{i}.")
    m = model.mtp
    yield from layer_names(m.layer, "mtp.0.")
    for n in ("e_proj", "h_proj"):
        yield f"mtp.0.{n}.weight", "fp8", getattr(m, n), None
    for n in ("enorm", "hnorm", "norm"):
        yield f"mtp.0.{n}.weight", "bf16", getattr(m, n), None
    for part in ("fn", "base", "scale"):
        yield f"mtp.0.hc_head_{part}", "f32", getattr(m.hc_head, part), None


def _bytes(t):
    return t.contiguous().view(torch.uint8).flatten().cpu().numpy().tobytes()


def _e8m0(scale):
    return (scale.contiguous().view(torch.int32) >> 23).to(torch.uint8)


def encode(kind, w):
    """[(suffix, dtype, shape, bytes)] of one tensor."""
    w = w.detach().cpu()
    if kind == "i64":
        return [("", "I64", list(w.shape), _bytes(w.long()))]
    if kind == "f32":
        return [("", "F32", list(w.shape), _bytes(w.float()))]
    if kind == "bf16":
        return [("", "BF16", list(w.shape), _bytes(w.to(BF)))]
    if kind == "fp8":
        codes, scale, _ = quant.tile_parts(w.float())
        return [("", "F8_E4M3", list(w.shape), _bytes(codes.to(torch.float8_e4m3fn))),
                ("scale", "F8_E8M0", list(scale.shape), _bytes(_e8m0(scale)))]
    codes, scale, _ = quant.mx_parts(w.float())
    nibble = (codes.abs().unsqueeze(-1) == E2M1[:8]).to(torch.uint8).argmax(-1)
    nibble = nibble | (torch.signbit(codes).long() << 3)
    packed = (nibble[..., 0::2] | (nibble[..., 1::2] << 4)).to(torch.uint8)
    return [("", "I8", list(packed.shape), _bytes(packed)), ("scale", "F8_E8M0", list(scale.shape), _bytes(_e8m0(scale)))]


def save(model, path):
    """Writes model.safetensors; returns its size in bytes."""
    tensors = []
    for name, kind, w, index in all_names(model):
        for suffix, dtype, shape, data in encode(kind, w if index is None else w[index]):
            full = name if not suffix else name.removesuffix("weight") + suffix
            tensors.append((ORDER.index(dtype), full, dtype, shape, data))
    tensors.sort(key=lambda t: t[:2])
    header, at = {}, 0
    for _, name, dtype, shape, data in tensors:
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)) + head)
        for t in tensors:
            f.write(t[4])
    return 8 + len(head) + at


def read(path):
    """name -> (dtype, tensor of raw codes) of a safetensors file."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    size = struct.unpack("<Q", bytes(data[:8]))[0]
    header = json.loads(bytes(data[8:8 + size]))
    kinds = {"I64": torch.int64, "F32": torch.float32, "BF16": BF, "F8_E8M0": torch.uint8,
             "F8_E4M3": torch.float8_e4m3fn, "I8": torch.uint8, "I32": torch.int32}
    out = {}
    for name, t in header.items():
        if name == "__metadata__":
            continue
        a, b = t["data_offsets"]
        raw = torch.from_numpy(np.array(data[8 + size + a:8 + size + b]))
        out[name] = (t["dtype"], raw.view(kinds[t["dtype"]]).view(t["shape"]))
    return out


def decode(tensors, name):
    """The values of a tensor, dequantised to FP32 (exact)."""
    dtype, t = tensors[name]
    if dtype not in ("F8_E4M3", "I8"):
        return t
    scale = torch.exp2(tensors[name.removesuffix("weight") + "scale"][1].float() - 127)
    if dtype == "I8":
        w = torch.stack([E2M1[(t & 15).long()], E2M1[(t >> 4).long()]], -1).flatten(-2)
        return w * scale.repeat_interleave(quant.FP4_GROUP, -1)
    big = scale.repeat_interleave(quant.BLOCK, 0).repeat_interleave(quant.BLOCK, 1)
    return t.float() * big[:t.shape[0], :t.shape[1]]


def load(model, path):
    """Fills the model with dequantised values; run it with Flags(weights_quantised=True)."""
    tensors = read(path)
    with torch.no_grad():
        for name, _, w, index in all_names(model):
            (w if index is None else w[index]).copy_(decode(tensors, name))
    return model
