"""Muon for the matrices, AdamW for everything else; both on FP32 masters."""
import torch

MATRICES = ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "w1", "w2", "w3", "wgate", "e_proj", "h_proj")


def newton_schulz(g):
    """Orthogonalises a batch [n, rows, cols] in BF16."""
    x = g.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if tall else x).float()


class Optimiser:
    def __init__(self, model, lr, decay=0.1):
        self.lr, self.decay = lr, decay
        self.groups, rest, slow = {}, [], []
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        for name, p in named:
            leaf = name.rsplit(".", 1)[-1]
            if leaf in MATRICES:
                self.groups.setdefault(tuple(p.shape[-2:]), []).append(p)
            else:
                (slow if leaf in ("embed",) else rest).append(p)
        self.momentum = {s: torch.zeros(sum(p.numel() for p in ps) // (s[0] * s[1]), *s, device=ps[0].device)
                         for s, ps in self.groups.items()}
        self.adam = torch.optim.AdamW([{"params": rest, "factor": 1.0}, {"params": slow, "factor": 3.0}][:2 if slow else 1], lr=lr,
                                      betas=(0.9, 0.97), eps=1e-12, weight_decay=0.0, fused=rest[0].is_cuda)
        self.params = [p for _, p in named]
        self.indexer = [p for n, p in named if ".indexer." in n]
        self.main = [p for n, p in named if ".indexer." not in n]

    @torch.no_grad()
    def step(self, factor):
        """factor scales the learning rate; returns the gradient norm before clipping."""
        norm = torch.nn.utils.clip_grad_norm_(self.main, 1.0, foreach=True)
        for p in self.indexer:
            p.grad.nan_to_num_(0.0, 0.0, 0.0)
        torch.nn.utils.clip_grad_norm_(self.indexer, 1.0, foreach=True)
        lr = self.lr * factor
        for shape, ps in self.groups.items():
            g = torch.cat([p.grad.view(-1, *shape) for p in ps])
            m = self.momentum[shape]
            m.mul_(0.95).add_(g)
            update = newton_schulz(g.add_(m, alpha=0.95)) * (0.2 * max(shape) ** 0.5)
            parts = [u.view_as(p) for u, p in zip(update.split([p.numel() // (shape[0] * shape[1]) for p in ps]), ps)]
            torch._foreach_mul_(ps, 1.0 - lr * self.decay)
            torch._foreach_add_(ps, parts, alpha=-lr)
        for group in self.adam.param_groups:
            group["lr"] = lr * group["factor"]
        self.adam.step()
        for p in self.params:
            p.grad = None
        return norm

    def state_dict(self):
        return {"momentum": self.momentum, "adam": self.adam.state_dict()}

    def load_state_dict(self, state):
        for s, m in state["momentum"].items():
            self.momentum[s].copy_(m)
        self.adam.load_state_dict(state["adam"])
