"""Softmax attention, as all families have it: softmax(q k^T / sqrt(d)) v.

torch's F.scaled_dot_product_attention (SDPA) does it all. It is fast on CUDA, and in bfloat16 on a
CPU with AMX, where it takes a third of the time of the blocks below. Two cases have code of their
own, because SDPA is far from what the CPU can do there (torch 2.13):

    one token whose heads share keys       the heads become rows of one product
    other prompts on a CPU                 blocks of queries, as plain matrix products

Shapes: b batch, t queries, s keys, h heads, g heads of keys and values (h/g queries share one), d
head width, n queries of a block.
"""

import math

import torch
import torch.nn.functional as F

from nanomodels import cpu

MAX_REPEATED = 1 << 27  # numbers of k repeated for all heads, of v as many
BLOCK = 64  # queries of a block: fewer make small products, more compute scores that are masked
MIN_ROWS = 64  # of a product, n h/g; with fewer, products are slow
MAX_SCORES = 1 << 23  # of a block, 32 MB, twice: before the softmax and after it


def attend(q, k, v, mask):
    """Softmax attention, scores and softmax in float32. Returns (b, h, t, d).

    q (b, h, t, d); k, v (b, g, s, d), of which the last t belong to the queries. mask as in
    cache.Call: (b, 1, t, s), or None where each query looks at its own key and all before it.
    """
    b, h, t, d = q.shape
    if t == 1:
        # For one bf16 token on a CPU five to seven times as fast as enable_gqa (24 heads on 8).
        q = q.reshape(b, k.shape[1], -1, d)  # (b, g, h/g, d)
        return F.scaled_dot_product_attention(q, k, v, mask).reshape(b, h, t, d)
    if q.device.type != "cpu" or (q.dtype == torch.bfloat16 and cpu.has_amx()):
        return attend_at_once(q, k, v, mask)
    return attend_in_blocks(q, k, v, mask)


def attend_at_once(q, k, v, mask):
    """`attend` as one call of SDPA; as one for each key head where k and v are large."""
    b, h, t, d = q.shape
    g, s = k.shape[1:3]
    if mask is None and s > t:  # is_causal takes the first query for the first key's
        mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t)
    causal = mask is None
    if q.device.type != "cpu" or g == h or b * h * s * d <= MAX_REPEATED:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
    # On a CPU enable_gqa repeats k and v in memory; a single head is expanded without a copy.
    heads = zip(q.chunk(g, 1), k.split(1, 1), v.split(1, 1), strict=True)
    alone = ((q, k.expand(-1, h // g, -1, -1), v.expand(-1, h // g, -1, -1)) for q, k, v in heads)
    y = [F.scaled_dot_product_attention(*qkv, mask, is_causal=causal) for qkv in alone]
    return torch.cat(y, dim=1)


def attend_in_blocks(q, k, v, mask):
    """`attend` as plain products of a block of queries with all keys that they may look at.

    For 512 bf16 tokens twice to three times as fast as SDPA with AVX-512. The scores are float32
    products: bf16 ones, faster by a third, would double the error. So are the weights times the
    values where the CPU does not multiply bf16.
    """
    b, h, t, d = q.shape
    g, s = k.shape[1:3]
    block = min(t, BLOCK, MAX_SCORES // (b * h * s))
    if g > 1 and block * (h // g) < min(t * (h // g), MIN_ROWS):
        heads = zip(q.chunk(g, 1), k.chunk(g, 1), v.chunk(g, 1), strict=True)
        return torch.cat([attend_in_blocks(*each, mask) for each in heads], dim=1)
    q, kT = q.unflatten(1, (g, -1)), k.float().mT  # (b, g, h/g, t, d); (b, g, d, s)
    v = v.to(cpu.product_dtype(v.dtype, v.device))
    y = q.new_empty(b, t, g, h // g, d).permute(0, 2, 3, 1, 4)  # (b, g, h/g, t, d)
    for start in range(0, t, max(block, 1)):
        rows = slice(start, min(start + max(block, 1), t))
        n = rows.stop - start
        end = s if mask is not None else s - t + rows.stop  # keys to look at
        some = q[..., rows, :].float() * d**-0.5
        scores = (some.reshape(b, g, -1, d) @ kT[..., :end]).view(b, g, -1, n, end)
        if mask is None:
            scores[..., -n:] += scores.new_full((n, n), -math.inf).triu(1)
        else:
            scores.masked_fill_(~mask[:, :, None, rows], -math.inf)
        weights = scores.softmax(-1).to(v.dtype).view(b, g, -1, end)
        y[..., rows, :] = (weights @ v[:, :, :end]).view(b, g, -1, n, d)
    return y.flatten(1, 2)  # (b, h, t, d)
