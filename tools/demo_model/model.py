"""DeepSeek-V4 in PyTorch, batched over whole sequences, for training the demo model and for judging it.

Two arithmetics, one code: `exact` rounds where the contract rounds (FP32 sums elsewhere), the training arithmetic lets
BF16 matrix products round their results. Streams are [B, T, hc, D] BF16; T is a multiple of 128 and of the window.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

import quant
from attention import Attention

BF = torch.bfloat16


def rms_norm(x, weight, eps):
    xf = x.float()
    return (xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps) * weight.to(BF).float()).to(BF)


class Flags:
    """What the arithmetic does: the switches of training, and those of the negative controls."""

    def __init__(self, exact=False, quantise=True, weights_quantised=False, **controls):
        self.exact, self.quantise, self.weights_quantised = exact, quantise, weights_quantised
        self.all_visible = controls.pop("all_visible", None)  # 0-d tensor; above 0: no selection (dense phase)
        self.hadamard = controls.pop("hadamard", True)
        self.sink = controls.pop("sink", True)
        self.ape = controls.pop("ape", True)
        self.newest = controls.pop("newest", False)         # newest k entries in place of the indexer's
        assert not controls

    def act8(self, x):
        return quant.act8(x) if self.quantise else x

    def kv8(self, x):
        return quant.kv8(x) if self.quantise else x

    def idx4(self, x):
        return quant.idx4(x) if self.quantise else x

    def fp8(self, w):
        return quant.fp8_weight(w) if self.quantise and not self.weights_quantised else w.to(BF)

    def fp4(self, w):
        return quant.fp4_weight(w) if self.quantise and not self.weights_quantised else w.to(BF)

    def matmul(self, x, w):
        """BF16 x BF16 whose result the contract keeps in FP32."""
        return F.linear(x.float(), w.float()) if self.exact else F.linear(x, w.to(BF)).float()

    def linear(self, x, w):
        """BF16 x BF16 -> BF16."""
        if self.exact and x.device.type == "cpu":
            return F.linear(x.float(), w.float()).to(BF)
        return F.linear(x, w)


def matrix(*shape, scale=1.0):
    return nn.Parameter(torch.randn(*shape) * (scale * shape[-1] ** -0.5))


class Mhc(nn.Module):
    """One mHC site: reads the streams into a sublayer input, writes its output back."""

    def __init__(self, c):
        super().__init__()
        hc, d = c.hc_mult, c.hidden_size
        self.hc, self.iters, self.hc_eps, self.eps = hc, c.hc_sinkhorn_iters, c.hc_eps, c.rms_norm_eps
        self.fn = nn.Parameter(torch.randn((2 + hc) * hc, hc * d) * 0.02)
        base = torch.cat([torch.randn(hc) * 0.5 - 1.0, torch.randn(hc) * 0.5, (4.0 * torch.eye(hc)).flatten()])
        self.base = nn.Parameter(base)
        self.scale = nn.Parameter(torch.full((3,), 0.3))

    def gates(self, x, flags):
        hc, eps = self.hc, self.hc_eps
        flat = x.flatten(-2)
        inv = torch.rsqrt(flat.float().square().mean(-1, keepdim=True) + self.eps)
        z = (F.linear(flat.float(), self.fn) if flags.exact else F.linear(flat, self.fn.to(BF)).float()) * inv
        pre = torch.sigmoid(z[..., :hc] * self.scale[0] + self.base[:hc]) + eps
        post = 2.0 * torch.sigmoid(z[..., hc:2 * hc] * self.scale[1] + self.base[hc:2 * hc])
        m = (z[..., 2 * hc:] * self.scale[2] + self.base[2 * hc:]).unflatten(-1, (hc, hc))
        m = torch.softmax(m, -1) + eps
        m = m / (m.sum(-2, keepdim=True) + eps)
        for _ in range(self.iters - 1):
            m = m / (m.sum(-1, keepdim=True) + eps)
            m = m / (m.sum(-2, keepdim=True) + eps)
        return pre, post, m

    def read(self, x, pre):
        return (pre.unsqueeze(-1) * x.float()).sum(-2).to(BF)

    def write(self, x, out, post, m):
        xf = x.float()
        mixed = post.unsqueeze(-1) * out.float().unsqueeze(-2)
        for j in range(self.hc):
            mixed = mixed + m[..., j, :].unsqueeze(-1) * xf[..., j, :].unsqueeze(-2)
        return mixed.to(BF)


class HcHead(nn.Module):
    def __init__(self, c):
        super().__init__()
        hc, d = c.hc_mult, c.hidden_size
        self.eps, self.hc_eps = c.rms_norm_eps, c.hc_eps
        self.fn = nn.Parameter(torch.randn(hc, hc * d) * 0.02)
        self.base = nn.Parameter(torch.randn(hc) * 0.2)
        self.scale = nn.Parameter(torch.full((1,), 0.3))

    def forward(self, x, flags):
        flat = x.flatten(-2)
        inv = torch.rsqrt(flat.float().square().mean(-1, keepdim=True) + self.eps)
        z = (F.linear(flat.float(), self.fn) if flags.exact else F.linear(flat, self.fn.to(BF)).float()) * inv
        pre = torch.sigmoid(z * self.scale + self.base) + self.hc_eps
        return (pre.unsqueeze(-1) * x.float()).sum(-2).to(BF)


class Moe(nn.Module):
    """Every expert computes every token and the routing weight zeroes what was not chosen: the same values as sparse
    routing (a zero row stays zero through act8), and for 16 small experts faster than sorting tokens."""

    def __init__(self, c, hashed, generator):
        super().__init__()
        e, d, n = c.n_routed_experts, c.hidden_size, c.moe_intermediate_size
        self.e, self.n, self.k = e, n, c.num_experts_per_tok
        self.limit, self.route_scale, self.hashed = c.swiglu_limit, c.routed_scaling_factor, hashed
        self.gate = nn.Parameter(torch.randn(e, d) * 0.05)
        self.w1, self.w3 = matrix(e + 1, n, d), matrix(e + 1, n, d)  # the last one is the shared expert
        self.w2 = matrix(e + 1, d, n, scale=0.5)
        if hashed:
            table = torch.rand(c.vocab_size, e, generator=generator).argsort(-1)[:, :self.k]
            self.register_buffer("tid2eid", table.contiguous())
        else:
            self.register_buffer("bias", torch.zeros(e))

    def route(self, x, tokens, flags):
        score = torch.sqrt(F.softplus(flags.matmul(x, self.gate.to(BF))))
        ids = torch.arange(self.e, device=x.device)
        if self.hashed:
            mask = (self.tid2eid[tokens].unsqueeze(-1) == ids).any(-2)
        else:
            rest = (score + self.bias).detach()
            mask = torch.zeros_like(rest, dtype=torch.bool)
            for _ in range(self.k):
                best = rest.argmax(-1, keepdim=True) == ids
                mask = mask | best
                rest = torch.where(best, float("-inf"), rest)
        chosen = score * mask
        return chosen / chosen.sum(-1, keepdim=True) * self.route_scale, mask

    def forward(self, x, tokens, flags):
        weights, mask = self.route(x, tokens, flags)
        x8, e, n = flags.act8(x), self.e, self.n
        # one FP8 tile never spans two matrices: routed experts are MXFP4, the shared expert FP8
        w1 = torch.cat([flags.fp4(self.w1[:e]), flags.fp8(self.w1[e:])]).flatten(0, 1)
        w3 = torch.cat([flags.fp4(self.w3[:e]), flags.fp8(self.w3[e:])]).flatten(0, 1)
        w2 = torch.cat([flags.fp4(self.w2[:e]), flags.fp8(self.w2[e:])])
        a = flags.linear(x8, w1).float().clamp(max=self.limit)
        u = flags.linear(x8, w3).float().clamp(-self.limit, self.limit)
        weights = torch.cat([weights, torch.ones_like(weights[..., :1])], -1)
        h = (F.silu(a) * u).unflatten(-1, (e + 1, n)) * weights.unsqueeze(-1)
        h = flags.act8(h.to(BF).flatten(-2))
        if flags.exact:
            parts = torch.einsum("...en,edn->...ed", h.unflatten(-1, (e + 1, n)).float(), w2.float()).to(BF)
            y = parts.float().sum(-2).to(BF)
        else:
            y = F.linear(h, w2.transpose(0, 1).flatten(1))
        return y, mask.flatten(0, -2).float().mean(0)


class Layer(nn.Module):
    def __init__(self, c, ratio, hashed, generator):
        super().__init__()
        self.eps = c.rms_norm_eps
        self.hc_attn, self.hc_ffn = Mhc(c), Mhc(c)
        self.attn_norm, self.ffn_norm = (nn.Parameter(torch.ones(c.hidden_size)) for _ in range(2))
        self.attn = Attention(c, ratio)
        self.ffn = Moe(c, hashed, generator)

    def forward(self, x, tokens, rope, probe, flags):
        """x [B, T, hc, D] -> the streams after the layer, expert loads [E], indexer loss (scalar)."""
        pre, post, m = self.hc_attn.gates(x, flags)
        out, index_loss = self.attn(rms_norm(self.hc_attn.read(x, pre), self.attn_norm, self.eps), rope, probe, flags)
        x = self.hc_attn.write(x, out, post, m)
        pre, post, m = self.hc_ffn.gates(x, flags)
        out, load = self.ffn(rms_norm(self.hc_ffn.read(x, pre), self.ffn_norm, self.eps), tokens, flags)
        return self.hc_ffn.write(x, out, post, m), load, index_loss


class Mtp(nn.Module):
    def __init__(self, c, generator):
        super().__init__()
        d = c.hidden_size
        self.eps = c.rms_norm_eps
        self.e_proj, self.h_proj = matrix(d, d), matrix(d, d)
        self.enorm, self.hnorm, self.norm = (nn.Parameter(torch.ones(d)) for _ in range(3))
        self.layer = Layer(c, c.compress_ratios[c.num_hidden_layers], False, generator)
        self.hc_head = HcHead(c)

    def start(self, x, embedded, flags):
        e = flags.linear(flags.act8(rms_norm(embedded, self.enorm, self.eps)), flags.fp8(self.e_proj))
        h = flags.linear(flags.act8(rms_norm(x, self.hnorm, self.eps)), flags.fp8(self.h_proj))
        return (e.float().unsqueeze(-2) + h.float()).to(BF)


def rope_tables(c, length, compressed, device=None):
    """cos, sin [length, r/2] FP32 of a layer kind."""
    r = c.qk_rope_head_dim
    theta = c.compress_rope_theta if compressed else c.rope_theta
    f = 1.0 / (theta ** (torch.arange(0, r, 2, dtype=torch.float32) / r))
    y = c.rope_scaling
    original = y["original_max_position_embeddings"]
    if compressed and original > 0:
        def corr(n):
            return r * math.log(original / (n * 2 * math.pi)) / (2 * math.log(theta))
        low, high = max(math.floor(corr(y["beta_fast"])), 0), min(math.ceil(corr(y["beta_slow"])), r - 1)
        if low == high:
            high += 0.001
        smooth = 1 - ((torch.arange(r // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
        f = f / y["factor"] * (1 - smooth) + f * smooth
    angle = torch.arange(length, dtype=torch.float32)[:, None] * f
    return angle.cos().to(device), angle.sin().to(device)


class Model(nn.Module):
    def __init__(self, c, seed=1):
        super().__init__()
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed + 1)
        self.c = c
        self.embed = nn.Parameter(torch.randn(c.vocab_size, c.hidden_size))
        self.layers = nn.ModuleList(
            Layer(c, c.compress_ratios[i], i < c.num_hash_layers, generator) for i in range(c.num_hidden_layers))
        self.hc_head = HcHead(c)
        self.norm = nn.Parameter(torch.ones(c.hidden_size))
        self.head = nn.Parameter(torch.randn(c.vocab_size, c.hidden_size) * 0.02)
        self.mtp = Mtp(c, generator)
        self._ropes = {}

    def ropes(self, length, device):
        """(cos, sin) for SWA layers, for the compressed ones; longer tables are kept and cut."""
        if length not in self._ropes:
            self._ropes[length] = [rope_tables(self.c, length, kind, device) for kind in (False, True)]
        return self._ropes[length]

    def start(self, tokens):
        return F.embedding(tokens, self.embed).to(BF).unsqueeze(-2).repeat(1, 1, self.c.hc_mult, 1)

    def streams(self, tokens, probe, flags):
        """Streams leaving the last layer, expert loads per layer, mean indexer loss."""
        ropes = self.ropes(tokens.shape[1], tokens.device)
        x, loads, losses = self.start(tokens), [], []
        for layer in self.layers:
            x, load, loss = layer(x, tokens, ropes[layer.attn.ratio > 0], probe, flags)
            loads.append(load)
            if loss is not None:
                losses.append(loss)
        return x, loads, sum(losses) / len(losses) if losses else None

    def mtp_streams(self, x, next_tokens, flags):
        """Streams of the MTP block: position p sees x of p and the token at p+1."""
        ropes = self.ropes(next_tokens.shape[1], x.device)
        x0 = self.mtp.start(x, F.embedding(next_tokens, self.embed).to(BF), flags)
        return self.mtp.layer(x0, next_tokens, ropes[self.mtp.layer.attn.ratio > 0], None, flags)

    def logits(self, x, flags, mtp=False):
        head, norm = (self.mtp.hc_head, self.mtp.norm) if mtp else (self.hc_head, self.norm)
        return flags.matmul(rms_norm(head(x, flags), norm, self.c.rms_norm_eps), self.head.to(BF))
