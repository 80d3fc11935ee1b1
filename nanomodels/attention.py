"""Softmax attention, as all families have it: softmax(q k^T / sqrt(d)) v.

F.scaled_dot_product_attention does it all, but for one token with shared keys and for prompts on a
CPU is far from what the machine can do (torch 2.13), so these two have a way of their own here. At
16,000 keys and more the two are equal, and torch's takes less memory.

Shapes: b batch, t queries, s keys, h heads, g heads of keys and values (h/g queries share one), d
head width, n queries of a block.
"""

import math

import torch
import torch.nn.functional as F

BLOCK = 64  # queries at a time: fewer make small products, more look at keys that are masked
FEW = 16  # queries at a time that make the products too small
SCORES = 1 << 23  # most scores at a time, 32 MB, twice: before the softmax and after it


def attend(q, k, v, mask):
    """Softmax attention, scores and softmax in float32. Returns (b, h, t, d).

    q (b, h, t, d); k, v (b, g, s, d), of which the last t belong to the queries. mask as in
    cache.Step: (b, 1, t, s), or None where each query looks at its own key and all before it.
    """
    b, h, t, d = q.shape
    if t == 1:
        # The queries that share a key become rows of one product: for one bf16 token on a CPU five
        # to seven times as fast as enable_gqa (torch 2.13, 24 heads on 8).
        q = q.reshape(b, k.shape[1], -1, d)  # (b, g, h/g, d)
        return F.scaled_dot_product_attention(q, k, v, mask).reshape(b, h, t, d)
    step = min(t, BLOCK, SCORES // (b * h * k.shape[2]))
    if q.device.type == "cpu" and step >= min(t, FEW):
        return attend_in_blocks(q, k, v, mask, step)
    return attend_at_once(q, k, v, mask)


def attend_at_once(q, k, v, mask):
    """`attend` as one call of torch."""
    t, s = q.shape[2], k.shape[2]
    if mask is None and s > t:  # is_causal takes the first query for the first key's
        mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t)
    causal = mask is None
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)


def attend_in_blocks(q, k, v, mask, step):
    """`attend` as plain products of `step` queries with all keys that they may look at.

    For 512 bf16 tokens twice to three times as fast as F.scaled_dot_product_attention on a CPU with
    AVX-512 (torch 2.13), which multiplies bf16 no faster than float32 and skips no masked key. The
    scores are float32 products because bf16 ones, faster by a third, would double the error.
    """
    b, h, t, d = q.shape
    g, s = k.shape[1:3]
    q, kT = q.unflatten(1, (g, -1)), k.float().mT  # (b, g, h/g, t, d); (b, g, d, s)
    y = q.new_empty(b, t, g, h // g, d).permute(0, 2, 3, 1, 4)  # (b, g, h/g, t, d)
    for start in range(0, t, step):
        rows = slice(start, min(start + step, t))
        n = rows.stop - start
        end = s if mask is not None else s - t + rows.stop  # keys to look at
        block = q[..., rows, :].float() * d**-0.5
        scores = (block.reshape(b, g, -1, d) @ kT[..., :end]).view(b, g, -1, n, end)
        if mask is None:
            scores[..., -n:] += scores.new_full((n, n), -math.inf).triu(1)
        else:
            scores.masked_fill_(~mask[:, :, None, rows], -math.inf)
        weights = scores.softmax(-1).type_as(v).view(b, g, -1, end)
        y[..., rows, :] = (weights @ v[:, :, :end]).view(b, g, -1, n, d)
    return y.flatten(1, 2)  # (b, h, t, d)
