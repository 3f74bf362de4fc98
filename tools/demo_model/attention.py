"""Attention of one layer over whole sequences: sliding window, compressor, indexer, sinks, grouped output."""
import torch
import torch.nn.functional as F
from torch import nn

import quant

BF = torch.bfloat16
NEG = float("-inf")
FAR = -1e4  # a finite mask where a whole row may be masked


def rms_norm(x, weight, eps):
    xf = x.float()
    return (xf * torch.rsqrt(xf.square().mean(-1, keepdim=True) + eps) * weight.to(BF).float()).to(BF)


def matrix(*shape, scale=1.0):
    return nn.Parameter(torch.randn(*shape) * (scale * shape[-1] ** -0.5))


def rotate(x, cos, sin, inverse=False):
    """RoPE on the last 2*cos.shape[-1] dims of x [..., d]; cos, sin broadcast against [..., r/2]."""
    r = 2 * cos.shape[-1]
    keep, turn = x[..., :-r], x[..., -r:].float().unflatten(-1, (-1, 2))
    a, b = turn[..., 0], turn[..., 1]
    s = -sin if inverse else sin
    out = torch.stack([a * cos - b * s, a * s + b * cos], -1).flatten(-2).to(BF)
    return torch.cat([keep, out], -1)


def hadamard(x, h, flags):
    return flags.matmul(x, h).to(BF) if flags.exact else F.linear(x, h.to(BF))


class Compressor(nn.Module):
    def __init__(self, d, width, ratio, eps):
        super().__init__()
        self.ratio, self.width, self.eps, self.overlap = ratio, width, eps, ratio == 4
        cols = width * (2 if self.overlap else 1)
        self.wkv, self.wgate = matrix(cols, d), matrix(cols, d)
        self.ape = nn.Parameter(torch.randn(ratio, cols) * 1.5)
        self.norm = nn.Parameter(torch.ones(width))
        self.reset(None)

    @torch.no_grad()
    def reset(self, wkv):
        """Start as a plain mean over the pooled tokens, in which a name and its value both show. `wkv`: the window's
        projection, whose key space the queries know."""
        if not self.overlap:
            return
        self.wgate.zero_()
        self.ape.zero_()
        if wkv is not None:
            self.wkv.copy_(torch.cat([wkv, wkv]))

    def forward(self, x, rope, flags):
        """x [B, T, D] -> entries [B, T/m, width] after norm and RoPE, BF16."""
        m, e = self.ratio, self.width
        both = flags.matmul(x, torch.cat([self.wkv, self.wgate]).to(BF))
        c, s = both.unflatten(1, (-1, m)).chunk(2, -1)  # [B, N, m, cols]
        if flags.ape:
            s = s + self.ape
        if self.overlap:
            c = torch.cat([F.pad(c[:, :-1, :, :e], (0, 0, 0, 0, 1, 0)), c[..., e:]], 2)
            s = torch.cat([F.pad(s[:, :-1, :, :e], (0, 0, 0, 0, 1, 0), value=NEG), s[..., e:]], 2)
        entry = (torch.softmax(s, 2) * c).sum(2).to(BF)
        cos, sin = rope
        return rotate(rms_norm(entry, self.norm, self.eps), cos[::m], sin[::m])


class Indexer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.heads, self.e = c.index_n_heads, c.index_head_dim
        self.wq_b = matrix(self.heads * self.e, c.q_lora_rank)
        self.weights_proj = nn.Parameter(torch.randn(self.heads, c.hidden_size) * 0.05)
        self.compressor = Compressor(c.hidden_size, self.e, 4, c.rms_norm_eps)
        self.register_buffer("h", quant.hadamard(self.e), persistent=False)

    def keys(self, x, rope, flags):
        k = self.compressor(x, rope, flags)
        return flags.idx4(hadamard(k, self.h, flags) if flags.hadamard else k)

    def scores(self, x, qr, keys, rope, flags):
        """[B, Q, N] FP32 for queries x [B, Q, D], qr [B, Q, q_lora]; rope [B or 1, Q, r/2]."""
        q = flags.linear(flags.act8(qr), flags.fp8(self.wq_b)).unflatten(-1, (self.heads, self.e))
        q = rotate(q, rope[0].unsqueeze(-2), rope[1].unsqueeze(-2))
        q = flags.idx4(hadamard(q, self.h, flags) if flags.hadamard else q)
        w = flags.linear(x, self.weights_proj.to(BF)).float() * (self.e**-0.5 * self.heads**-0.5)
        w = w.to(BF).float()
        total = 0.0
        for i in range(self.heads):
            if flags.exact:
                dot = q[..., i, :].float() @ keys.float().transpose(-1, -2)
            else:
                dot = (q[..., i, :] @ keys.transpose(-1, -2)).float()
            total = total + F.relu(dot) * w[..., i:i + 1]
        return total


class Attention(nn.Module):
    def __init__(self, c, ratio):
        super().__init__()
        d, h, hd = c.hidden_size, c.num_attention_heads, c.head_dim
        self.ratio, self.heads, self.d, self.r = ratio, h, hd, c.qk_rope_head_dim
        self.window, self.topk, self.groups, self.eps = c.sliding_window, c.index_topk, c.o_groups, c.rms_norm_eps
        self.wq_a, self.wq_b, self.wkv = matrix(c.q_lora_rank, d), matrix(h * hd, c.q_lora_rank), matrix(hd, d)
        self.q_norm, self.kv_norm = nn.Parameter(torch.ones(c.q_lora_rank)), nn.Parameter(torch.ones(hd))
        self.wo_a = matrix(c.o_groups * c.o_lora_rank, h * hd // c.o_groups)
        self.wo_b = matrix(d, c.o_groups * c.o_lora_rank, scale=0.5)
        self.attn_sink = nn.Parameter(torch.full((h,), 5.0))
        if ratio:
            self.compressor = Compressor(d, hd, ratio, c.rms_norm_eps)
        if ratio == 4:
            self.indexer = Indexer(c)
            self.compressor.reset(self.wkv)

    def cache(self, kv, flags):
        return torch.cat([flags.kv8(kv[..., :-self.r]), kv[..., -self.r:]], -1)

    def normalise(self, q, flags):
        if not flags.exact:
            qf = q.float()
            return (qf * torch.rsqrt(qf.square().mean(-1, keepdim=True) + self.eps)).to(BF)
        mean = q.square().float().mean(-1, keepdim=True).to(BF)
        return q * torch.rsqrt((mean + self.eps).float()).to(BF)

    def visible(self, positions, n):
        """[..., N] bool: entries that exist for queries at these positions."""
        return (torch.arange(n, device=positions.device) + 1) * self.ratio <= positions.unsqueeze(-1) + 1

    def select(self, x, qr, keys, rope, positions, flags):
        """Mask [B or 1, T, N] of the entries each query attends."""
        n = positions.shape[0] // self.ratio
        see = self.visible(positions, n)
        k = min(self.topk, n)
        if flags.newest:
            newest = torch.arange(n, device=see.device) >= (positions.unsqueeze(-1) + 1) // self.ratio - k
            return (see & newest).unsqueeze(0)
        if n <= k:
            return see.unsqueeze(0)
        with torch.no_grad():
            score = self.indexer.scores(x, qr, keys, rope, flags).masked_fill(~see, NEG)
            picks = score.topk(k, -1, sorted=False).indices
            chosen = torch.zeros(score.shape, dtype=torch.bool, device=x.device).scatter_(-1, picks, True)
        return (chosen | (flags.all_visible > 0)) & see if flags.all_visible is not None else chosen & see

    def index_loss(self, x, qr, q, kv, entries, keys, rope, probe, flags):
        """KL from the main branch's attention mass on the entries to the indexer's softmax, at probed queries."""
        b, n = x.shape[0], entries.shape[1]
        rows = torch.arange(b, device=x.device).unsqueeze(-1)
        see = self.visible(probe, n)
        with torch.no_grad():
            qp = q[rows, probe]  # [B, P, H, d]
            far = torch.einsum("bphd,bnd->bphn", qp, entries).float() * self.d**-0.5
            far = far.masked_fill(~see.unsqueeze(2), FAR)
            mass = torch.softmax(far, -1) * see.unsqueeze(2)
            # heads that look at the window or the sink should not steer the indexer: weigh by their far mass
            near = self.near_mass(qp, kv, probe)
            top = torch.logsumexp(far, -1)
            share = torch.sigmoid(top - torch.logaddexp(near, self.attn_sink.expand_as(near)))
            target = (mass * share.unsqueeze(-1)).sum(2)
            weight = target.sum(-1)
            target = target / weight.clamp(min=1e-6).unsqueeze(-1)
            entropy = (target * torch.log(target.clamp(min=1e-9))).sum(-1)
        cos, sin = rope
        score = self.indexer.scores(x[rows, probe].detach(), qr[rows, probe].detach(), keys, (cos[probe], sin[probe]),
                                    flags)
        logp = torch.log_softmax(score.masked_fill(~see, FAR), -1)
        kl = entropy - (target * logp).sum(-1)
        ok = see.any(-1).float() * (0.1 + weight.clamp(max=1.0))
        return (kl * ok).sum() / ok.sum().clamp(min=1.0)

    def near_mass(self, qp, kv, probe):
        """log sum of exp over the window of each probed query: [B, P, H]."""
        w = self.window
        idx = probe.unsqueeze(-1) - torch.arange(w, device=probe.device)
        rows = torch.arange(kv.shape[0], device=kv.device)[:, None, None]
        keys = kv[rows, idx.clamp(min=0)]  # [B, P, W, d]
        s = torch.einsum("bphd,bpwd->bphw", qp, keys).float() * self.d**-0.5
        return torch.logsumexp(s.masked_fill(idx.unsqueeze(2) < 0, FAR), -1)

    def scores(self, q, k, flags):
        if flags.exact:
            return q.float() @ k.float().transpose(-1, -2) * self.d**-0.5
        return (q @ k.transpose(-1, -2)).float() * self.d**-0.5

    def weigh(self, p, v, flags):
        p = p.to(BF)
        return p.float() @ v.float() if flags.exact else (p @ v).float()

    def attend(self, q, kv, entries, mask, flags):
        """q [B, T, H, d], kv [B, T, d], entries [B, N, d] or None, mask [B|1, T, N] -> o [B, T, H, d] BF16."""
        b, t, h, d = q.shape
        w, nb = self.window, t // self.window
        blocks = kv.unflatten(1, (nb, w))
        keys = torch.cat([F.pad(blocks[:, :-1], (0, 0, 0, 0, 1, 0)), blocks], 2)  # previous block, own block
        near = self.scores(q.reshape(b, nb, w * h, d), keys, flags).view(b, nb, w, h, 2 * w)
        i, j = torch.arange(w, device=q.device)[:, None], torch.arange(2 * w, device=q.device)[None]
        band = (j <= i + w) & (j > i)
        first = torch.arange(nb, device=q.device)[:, None, None] > 0
        near = near.masked_fill(~(band & (first | (j >= w)))[None, :, :, None], NEG)
        top = near.amax(-1, keepdim=True).view(b, t, h, 1)
        if entries is not None:
            far = self.scores(q.view(b, t * h, d), entries, flags).view(b, t, h, -1)
            far = far.masked_fill(~mask.unsqueeze(2), NEG)
            top = torch.maximum(top, far.amax(-1, keepdim=True))
        top = top.detach()
        p = torch.exp(near - top.view(b, nb, w, h, 1))
        total = p.sum(-1).view(b, t, h, 1)
        o = self.weigh(p.view(b, nb, w * h, 2 * w), keys, flags).view(b, t, h, d)
        if entries is not None:
            pf = torch.exp(far - top)
            total = total + pf.sum(-1, keepdim=True)
            o = o + self.weigh(pf.view(b, t * h, -1), entries, flags).view(b, t, h, d)
        if flags.sink:
            total = total + torch.exp(self.attn_sink.view(h, 1) - top)
        return (o / total).to(BF)

    def forward(self, x, rope, probe, flags):
        """x [B, T, D] normed sublayer input -> out [B, T, D], indexer loss or None."""
        cos, sin = rope
        t = x.shape[1]
        heads_rope = cos.unsqueeze(-2), sin.unsqueeze(-2)
        x8 = flags.act8(x)
        qr = rms_norm(flags.linear(x8, flags.fp8(self.wq_a)), self.q_norm, self.eps)
        q = flags.linear(flags.act8(qr), flags.fp8(self.wq_b)).unflatten(-1, (self.heads, self.d))
        q = rotate(self.normalise(q, flags), *heads_rope)
        kv = rms_norm(flags.linear(x8, flags.fp8(self.wkv)), self.kv_norm, self.eps)
        kv = self.cache(rotate(kv, cos, sin), flags)
        entries = mask = loss = None
        if self.ratio:
            positions = torch.arange(t, device=x.device)
            entries = self.cache(self.compressor(x, rope, flags), flags)
            mask = self.visible(positions, entries.shape[1]).unsqueeze(0)
        if self.ratio == 4:
            keys = self.indexer.keys(x.detach(), rope, flags)
            mask = self.select(x.detach(), qr.detach(), keys.detach(), (cos, sin), positions, flags)
            if probe is not None:
                loss = self.index_loss(x, qr, q, kv, entries, keys, rope, probe, flags)
        o = rotate(self.attend(q, kv, entries, mask, flags), *heads_rope, inverse=True)
        o = o.flatten(-2).unflatten(-1, (self.groups, -1))
        wo_a = flags.fp8(self.wo_a).unflatten(0, (self.groups, -1))
        low = torch.cat([flags.linear(o[..., g, :], wo_a[g]) for g in range(self.groups)], -1)
        return flags.linear(flags.act8(low), flags.fp8(self.wo_b)), loss
