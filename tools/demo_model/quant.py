"""Fake quantisers of the DeepSeek-V4 contract, bit exact, with straight-through gradients.

Every value that the engine would hold in FP8 or FP4 passes through one of these in training, so the exported
checkpoint computes what the trained model computed.
"""
import torch

BLOCK = 128  # FP8 weight tile side and act8 group
KV_GROUP = 64
FP4_GROUP = 32


def pow2_scale(amax, qmax):
    """2^ceil(log2(amax / qmax)) on the bits of the FP32 quotient."""
    bits = (amax * (1.0 / qmax)).view(torch.int32)
    up = ((bits & 0x7FFFFF) != 0).to(torch.int32)
    return (((bits >> 23) + up) << 23).view(torch.float32)


def _inverse_pow2(scale):
    return ((254 - (scale.view(torch.int32) >> 23)) << 23).view(torch.float32)


def round_e4m3(v):
    return v.clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float()


def round_e2m1(v):
    """Nearest of 0 .5 1 1.5 2 3 4 6, ties to the even code."""
    a = v.abs().clamp(max=6.0)
    step = torch.where(a < 2.0, 0.5, torch.where(a < 4.0, 1.0, 2.0))
    return torch.copysign(torch.round(a / step) * step, v)


def _group_e4m3(x, group):
    g = x.float().unflatten(-1, (-1, group))
    scale = pow2_scale(g.abs().amax(-1, keepdim=True).clamp(min=1e-4), 448.0)
    return (round_e4m3(g * _inverse_pow2(scale)) * scale).flatten(-2).to(x.dtype)


def _act8(x):
    return _group_e4m3(x, BLOCK)


def _kv8(x):
    return _group_e4m3(x, KV_GROUP)


def _idx4(x):
    g = x.float().unflatten(-1, (-1, FP4_GROUP))
    scale = pow2_scale(g.abs().amax(-1, keepdim=True).clamp(min=6.0 * 2.0**-126), 6.0)
    return (round_e2m1(g * _inverse_pow2(scale)) * scale).flatten(-2).to(x.dtype)


def tile_parts(w):
    """FP8 tiles of w [..., N, K] FP32: (codes as float, scale [..., ceil N/128, ceil K/128])."""
    n, k = w.shape[-2:]
    pad = torch.nn.functional.pad(w, (0, -k % BLOCK, 0, -n % BLOCK))
    t = pad.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK))  # [..., nb, 128, kb, 128]
    scale = pow2_scale(t.abs().amax((-3, -1), keepdim=True).clamp(min=1e-12), 448.0)
    codes = round_e4m3(t * _inverse_pow2(scale))
    flat = codes.flatten(-2).flatten(-3, -2)[..., :n, :k]
    return flat, scale.squeeze(-1).squeeze(-2), (codes * scale).flatten(-2).flatten(-3, -2)[..., :n, :k]


def mx_parts(w):
    """MXFP4 groups of w [..., N, K] FP32: (codes as float, scale [..., N, K/32], dequantised)."""
    g = w.unflatten(-1, (-1, FP4_GROUP))
    scale = pow2_scale(g.abs().amax(-1, keepdim=True).clamp(min=1e-12), 6.0)
    codes = round_e2m1(g * _inverse_pow2(scale))
    return codes.flatten(-2), scale.squeeze(-1), (codes * scale).flatten(-2)


def _fp8_weight(w):
    return tile_parts(w)[2].to(torch.bfloat16)


def _fp4_weight(w):
    return mx_parts(w)[2].to(torch.bfloat16)


def _straight_through(function, out_dtype_in=True):
    class Op(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return function(x)

        @staticmethod
        def backward(ctx, grad):
            return grad if out_dtype_in else grad.float()

    return Op.apply


act8 = _straight_through(_act8)
kv8 = _straight_through(_kv8)
idx4 = _straight_through(_idx4)
fp8_weight = _straight_through(_fp8_weight, False)
fp4_weight = _straight_through(_fp4_weight, False)


def hadamard(n, device=None):
    """Sylvester order, scaled by n^-1/2, FP32."""
    h = torch.ones(1, 1, device=device)
    while h.shape[0] < n:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)], 0)
    return h * n**-0.5
