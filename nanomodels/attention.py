"""Softmax attention, the same for all decoders: softmax(q k^T / sqrt(d)) v.

torch's F.scaled_dot_product_attention (SDPA) computes all of it. It is fast on CUDA, and on a CPU
with AMX in bfloat16. In two cases another way is faster on a CPU (torch 2.13):

    one token                                   heads that share a key head become rows of SDPA
    a prompt, without AMX or not in bfloat16    blocks of queries, as plain matrix products

Shapes: b batch, t queries, s keys, h heads, g heads of keys and values (h/g queries share one), d
head width, n queries of a block.
"""

import math

import torch
import torch.nn.functional as F

from nanomodels import cpu

MAX_REPEATED = 1 << 27  # numbers of k after it is repeated for all heads; v has as many
BLOCK = 64  # queries: smaller blocks are slow, larger ones compute more masked scores
MIN_ROWS = 64  # of a product, n h/g; if fewer, one key head at a time: its blocks can be larger
MAX_SCORES = 1 << 23  # of a block: 32 MB before the softmax, and 32 MB after it


def attend(q, k, v, mask):
    """Softmax attention, scores and softmax in float32. Returns (b, h, t, d).

    q (b, h, t, d); k, v (b, g, s, d): the last t keys are those of the queries' tokens. mask as in
    cache.Call: (b, 1, t, s), or None: each query sees its own key and all before it.
    """
    b, h, t, d = q.shape
    if t == 1:
        # In bfloat16 on a CPU 5 to 7 times as fast as enable_gqa (24 heads, 8 key heads).
        q = q.reshape(b, k.shape[1], -1, d)  # (b, g, h/g, d)
        return F.scaled_dot_product_attention(q, k, v, mask).reshape(b, h, t, d)
    fast = q.device.type != "cpu" or (q.dtype == torch.bfloat16 and cpu.has_amx())
    if fast or torch.compiler.is_compiling():  # a graph must not depend on the number of blocks
        return attend_at_once(q, k, v, mask)
    return attend_in_blocks(q, k, v, mask)


def attend_at_once(q, k, v, mask):
    """`attend` with SDPA: one call, or one call for each key head if k and v are large."""
    b, h, t, d = q.shape
    g, s = k.shape[1:3]
    if mask is None and s > t:  # is_causal would align the first query with the first key
        mask = torch.ones(t, s, dtype=torch.bool, device=q.device).tril(s - t)
    causal = mask is None
    if q.device.type != "cpu" or g == h or b * h * s * d <= MAX_REPEATED:
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=True)
    # On a CPU enable_gqa repeats k and v in memory; one key head is expanded without a copy.
    y = []
    for i, queries in enumerate(q.chunk(g, 1)):  # (b, h/g, t, d)
        keys, values = (x[:, i : i + 1].expand(-1, h // g, -1, -1) for x in (k, v))
        y.append(F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal))
    return torch.cat(y, dim=1)


def attend_in_blocks(q, k, v, mask):
    """`attend` as plain matrix products: a block of queries times all keys that they may see.

    2 to 3 times as fast as SDPA for 512 bfloat16 tokens with AVX-512. Scores are computed in
    float32: in bfloat16 they would be a third faster, with twice the error.
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
        end = s if mask is not None else s - t + rows.stop  # keys that the block may see
        some = q[..., rows, :].float() * d**-0.5
        scores = (some.reshape(b, g, -1, d) @ kT[..., :end]).view(b, g, -1, n, end)
        if mask is None:
            scores[..., -n:] += scores.new_full((n, n), -math.inf).triu(1)
        else:
            scores.masked_fill_(~mask[:, :, None, rows], -math.inf)
        weights = scores.softmax(-1).to(v.dtype).view(b, g, -1, end)
        y[..., rows, :] = (weights @ v[:, :, :end]).view(b, g, -1, n, d)
    return y.flatten(1, 2)  # (b, h, t, d)
