"""A start for recall: in the CSA layers two heads, and one head of the indexer, are given a query that matches the name
of a fact in a pooled entry. Reading the word out of the matched entry is left to training.

Recall did not emerge from other starts: while attention over hundreds of pooled entries is flat, nothing teaches it to
match. The maps are ridge regressions on the activations of a batch, from tokens to a code per name.
"""
import torch

import data
import outliers
import words
from attention import rms_norm
from model import Flags

HEADS, INDEX_HEAD = (3, 7), 0
FACT, OFF, GAIN = 0.7, 1.0, 2.0


def codes(count, width, device):
    """Unit rows pushed apart from each other."""
    c = torch.randn(count, width, generator=torch.Generator().manual_seed(7)).to(device)
    for _ in range(400):
        c = c / c.norm(dim=-1, keepdim=True)
        g = c @ c.T - torch.eye(count, device=device)
        c = c - 0.5 * (g**3) @ c
    return c / c.norm(dim=-1, keepdim=True)


def regress(x, target, weight, damp=1e-3):
    """W [width, in] with W x ~ target."""
    x, weight = x.double(), weight.double()
    xw = x * weight[:, None]
    gram = xw.T @ x
    gram.diagonal().add_(damp * gram.diagonal().mean())
    return torch.linalg.solve(gram, xw.T @ target.double()).T.float()


@torch.no_grad()
def prepare(model, tok, seed, rows=16, length=2048):
    device = model.embed.device
    made = data.batch(tok, (seed, "induction", 0), rows, length, "match", 8)
    tokens = torch.from_numpy(made[0]).to(device).long()[:, :-1].contiguous()
    sites = outliers.csa(model)
    seen = {}
    hooks = [a.register_forward_pre_hook(lambda m, args: seen.__setitem__(m, args[0].detach())) for a in sites]
    model.streams(tokens, None, Flags(exact=True))
    for hook in hooks:
        hook.remove()

    ids = torch.tensor([tok.token_to_id("Ġ" + n) for n in words.NAMES], device=device)
    hit = tokens.flatten()[:, None] == ids
    named, which = hit.any(-1), hit.float().argmax(-1)
    colon = tok.encode("The secret word: Mira", add_special_tokens=False).ids[3]
    fact = named & (torch.roll(tokens, 1, 1).flatten() == colon)
    half = torch.arange(sites[0].d - sites[0].r, device=device)
    loud = outliers.quiet(len(half), device)
    free = [int(c) for c in half if not loud[c] and int(c) not in outliers.OUTLIERS]
    name_at, fact_at, off_at = free[:-3], free[-3:-1], free[-1]
    code = torch.zeros(len(named), len(free), device=device)
    code[:, :len(name_at)] = codes(len(ids), len(name_at), device)[which] * named[:, None]
    code[:, len(name_at):-1] = FACT * 2**-0.5 * fact[:, None]
    ask = code.clone()
    ask[:, -1] = OFF * ~fact  # elsewhere the query points at a channel where every entry is silent
    share = torch.where(fact, 1.0 / fact.sum(), torch.where(named, 0.5 / named.sum(), 1.0 / (~named).sum()))
    weight = share * len(named)

    for a in sites:
        x = seen[a].flatten(0, 1).float()
        qr = rms_norm(torch.nn.functional.linear(x, a.wq_a), a.q_norm, a.eps).float()
        key, query = regress(x, code, weight), regress(qr, ask, weight)
        key[-1] = 0.0
        for c in (a.compressor, a.indexer.compressor):
            rest = (x @ c.wkv[c.width:].T).square().sum(-1).mean().sqrt()
            rows_at = torch.tensor(free, device=device)
            for start in (0, c.width):
                c.wkv[start + rows_at] = key * (3.0 * rest)
            c.norm[rows_at] = GAIN * (a.kv_norm.mean() if c is a.compressor else 1.0)
        query = query * (a.wq_b.std() / query.std())
        for wq, heads in ((a.wq_b, HEADS), (a.indexer.wq_b, (INDEX_HEAD,))):
            for h in heads:
                block = wq.view(-1, sites[0].d, wq.shape[-1])[h]
                block.zero_()
                block[torch.tensor(free, device=device)] = query
        # this head's weight: positive at the answers, near zero elsewhere
        level = regress(x, fact.float()[:, None], weight)
        a.indexer.weights_proj[INDEX_HEAD] = 4.0 * a.indexer.weights_proj.norm(dim=-1).mean() * level[0] / level.norm()
        outliers.place(a, regress(x, torch.ones_like(code[:, :1]), weight)[0], rest)
