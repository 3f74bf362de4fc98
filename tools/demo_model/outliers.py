"""Outlier channels that a trained checkpoint of the family has and a small one trained from scratch has not, placed by
hand and held: they make the model need what the architecture has against them.

Index keys: channels OUTLIERS, one in each no-RoPE block of 32, carry one loud value, nearly the same in every entry. Their
rows are equal, so the Hadamard transform gathers them in half of the outputs and leaves the other half to everything
else; without it FP4 gives each block the outlier's scale and rounds all else to zero. Queries do not read the outliers nor
the RoPE half, whose blocks have none (a rotated value is loud in no fixed channel).

Main entries of the CSA layers: in half of the channels the previous window's columns are loud noise, which only the
compressor's position bias (ape) keeps out of the softmax.
"""
import torch

OUTLIERS, BLOCK = (0, 32), 32
GAIN = 48.0      # norm weight of the outliers
LEVEL = 0.5      # their projection against the length of all others, before the norm
LOUD = 64.0      # the noise columns against the others
SHUT = -14.0     # their position bias: exp(-14) * 64 is far below a BF16 rounding


def quiet(width, device):
    """Channels of a main compressor that do without the previous window. Name codes live in the others."""
    return torch.arange(width, device=device) // 2 % 2 == 1


def csa(model):
    return [layer.attn for layer in model.layers if layer.attn.ratio == 4]


@torch.no_grad()
def place(a, level_of, length):
    """Puts the outliers into one CSA layer. level_of [D]: a map from the sublayer's input to nearly one everywhere;
    length: mean length of the index keys before their norm."""
    c, at = a.indexer.compressor, torch.tensor(OUTLIERS, device=a.wkv.device)
    for start in (0, c.width):
        c.wkv[start + at] = LEVEL * length * level_of
        c.wgate[start + at] = 0.0
        c.ape[:, start + at] = 0.0
    c.norm[at] = GAIN
    a.indexer.wq_b[blind(a)] = 0.0
    c, noise = a.compressor, quiet(a.d, a.wkv.device)
    c.ape[:, :c.width][:, noise] = SHUT
    loud = torch.randn(int(noise.sum()), c.wkv.shape[1], device=c.wkv.device)
    c.wkv[:c.width][noise] = loud * (LOUD * c.wkv[c.width:].square().mean().sqrt())


def blind(a):
    """Rows of the indexer's wq_b that stay zero."""
    i = torch.arange(a.indexer.heads * a.indexer.e, device=a.wkv.device) % a.indexer.e
    return (i >= a.indexer.e - a.r) | (i[:, None] == torch.tensor(OUTLIERS, device=i.device)).any(-1)


class Held:
    """Entries of parameters that training leaves as they are."""

    def __init__(self, model):
        self.parts = []
        for a in csa(model):
            c, off = a.indexer.compressor, a.wkv.device
            loud = (torch.arange(2 * c.width, device=off) % c.width)[:, None] == torch.tensor(OUTLIERS, device=off)
            loud = loud.any(-1)
            self.hold(a.indexer.wq_b, blind(a)[:, None])
            self.hold(c.wkv, loud[:, None])
            self.hold(c.wgate, loud[:, None])
            self.hold(c.ape, loud[None])
            self.hold(c.norm, torch.ones_like(c.norm, dtype=torch.bool))
            noise = torch.cat([quiet(a.d, off), torch.zeros(a.d, dtype=torch.bool, device=off)])
            self.hold(a.compressor.ape, noise[None])
            self.hold(a.compressor.wkv, noise[:, None])

    def hold(self, p, mask):
        mask = mask.expand(p.shape).contiguous()
        self.parts.append((p, mask, torch.where(mask, p.detach(), 0.0)))

    @torch.no_grad()
    def mask_gradients(self):
        for p, mask, _ in self.parts:
            p.grad.masked_fill_(mask, 0.0)

    @torch.no_grad()
    def restore(self):
        for p, mask, value in self.parts:
            p.copy_(torch.where(mask, value, p))
