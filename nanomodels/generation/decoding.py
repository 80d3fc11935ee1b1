"""Prompt to tokens: one prefill, then one token a step, for one prompt or for many at once.

    logits = model(prompt, cache=cache)          every prompt token, once
    repeat:  token = sample(logits)
             logits = model(token, cache=cache)  one token a row, all before it from the cache

Prompts of different lengths are padded on the left, so that all rows end at the same column. A long
prompt is fed in pieces, so that what a call needs beside the cache does not grow with it.

One prompt alone can be continued with drafts: tokens that are guessed from the text so far, and fed
together with the last one. Each is checked, so the text is what it is without them.
"""

import secrets
from functools import partial
from itertools import takewhile

import torch

from nanomodels.generation import cuda_graph as graph
from nanomodels.generation.drafts import PromptLookup, decode_with_drafts
from nanomodels.generation.sampling import Sampler

PIECE = 512  # most columns of a prompt that one call is given


def generate(
    model,
    ids,
    *,
    max_new_tokens=256,
    temperature=0.0,
    top_k=0,
    top_p=1.0,
    min_p=0.0,
    repetition_penalty=1.0,
    seed=None,
    stop_ids=None,
    vocab_size=None,
    cache=None,
    draft_lookup=0,
    on_draft=None,
    cuda_graph=False,
):
    """Continue the prompt `ids` (a list of token ids), token by token: an iterator of ints.

    Ends after max_new_tokens, where the model's context is full, or before the first of stop_ids
    (None: the checkpoint's own, model.stop_ids; []: none), which is not given out. temperature 0 is
    greedy; seed None draws another seed each time. vocab_size, the tokenizer's where the model's is
    padded to more, keeps the ids from there on from being given out. A cache may be passed that
    holds the first tokens of ids already: only the rest is fed, and afterwards it holds what was.

    draft_lookup, if not 0, is the most tokens that are drafted at once (see PromptLookup; 8 to 16
    pay on a CPU) for one call of the model to check. Text and cache become what they are without,
    though in bfloat16 a call with several tokens rounds otherwise than calls with one, and a close choice
    may fall otherwise. on_draft(drafted, accepted), if given, is called after each draft. Where
    the iterator is left before its end, close() it before the cache is used. cuda_graph has each
    token computed by a CUDA graph (see cuda_graph.py), without drafts and quantised experts; in
    bfloat16 it may round otherwise, too.
    Raises ValueError for an empty prompt, one longer than the context, or a setting out of range.
    """
    rows = generate_batch(
        model,
        [ids],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop_ids=stop_ids,
        vocab_size=vocab_size,
        cache=cache,
        draft_lookup=draft_lookup,
        on_draft=on_draft,
        cuda_graph=cuda_graph,
    )
    return (row[0] for row in takewhile(lambda row: row[0] is not None, rows))


def generate_batch(
    model,
    prompts,
    *,
    num_samples=1,
    max_new_tokens=256,
    seed=None,
    stop_ids=None,
    vocab_size=None,
    cache=None,
    progress=None,
    draft_lookup=0,
    on_draft=None,
    cuda_graph=False,
    **sampling,
):
    """Continue several prompts at once: an iterator of lists with the next token of each row.

    prompts is a list of lists of ids, of any lengths. Each is continued num_samples times from one
    prefill; rows are in the order prompt 0 sample 0, prompt 0 sample 1, ... A row that has ended
    gives None from then on, and the iterator ends when all have, or with the last token that
    max_new_tokens or the context allow. Sample j draws from seed + j, whatever stands around it, so
    a row is what `generate` with that seed gives for its prompt alone (but for the rope types
    whose angles depend on the length, see rope.rotation). Other settings as there; a cache
    and draft_lookup go with one prompt and one sample. progress(done, total), if given, is called
    with tokens of the longest prompt after each piece of it.
    """
    prompts = [list(map(int, ids)) for ids in prompts]
    if not prompts or not all(prompts):
        raise ValueError("a prompt is empty; give at least one token")
    for name, number, least in (
        ("num_samples", num_samples, 1),
        ("max_new_tokens", max_new_tokens, 0),
        ("draft_lookup", draft_lookup, 0),
    ):
        if type(number) is not int or number < least:
            raise ValueError(f"{name} is {number!r}; it must be a whole number, {least} or more")
    longest = max(map(len, prompts))
    if longest > model.context_length:
        raise ValueError(
            f"the prompt has {longest} tokens; the model's context holds {model.context_length}"
        )
    known = model.config.vocab_size
    if not all(0 <= i < known for ids in prompts for i in ids):
        raise ValueError(f"a prompt has ids that are not in the vocabulary of {known}")
    if cache is not None:
        if len(prompts) > 1 or num_samples > 1 or cache.has_padding:
            raise ValueError("a cache goes with one prompt, one sample, and no padding in it")
        if cache.length >= longest:
            raise ValueError(f"the cache holds {cache.length} tokens; the prompt must have more")
    if draft_lookup and (len(prompts) > 1 or num_samples > 1):
        raise ValueError("draft_lookup goes with one prompt and one sample; 0 is off")
    if cuda_graph:
        graph.check(model)
        if draft_lookup:
            raise ValueError("cuda_graph and draft_lookup do not go together")
    lookup = PromptLookup(prompts[0], draft_lookup, on_draft) if draft_lookup else None
    seed = secrets.randbits(32) if seed is None else seed
    sampler = Sampler([seed + j for _ in prompts for j in range(num_samples)], **sampling)
    stop_ids = frozenset(model.stop_ids if stop_ids is None else stop_ids)
    vocab_size = min(known, vocab_size or known)
    return steps(
        model,
        prompts,
        num_samples,
        max_new_tokens,
        sampler,
        stop_ids,
        vocab_size,
        cache,
        progress,
        lookup,
        cuda_graph,
    )


@torch.inference_mode()
def steps(
    model,
    prompts,
    num_samples,
    max_new_tokens,
    sampler,
    stop_ids,
    vocab_size,
    cache,
    progress,
    lookup,
    cuda_graph,
):
    """The loop behind `generate_batch`, which has checked everything."""
    longest = max(map(len, prompts))
    # Each row has its own limit. The last token is not fed, so even a prompt that fills the context
    # gets one; beside a longer prompt a short one needs columns beyond the context.
    rooms = [model.context_length - len(ids) + 1 for ids in prompts for _ in range(num_samples)]
    limits = [min(max_new_tokens, room) for room in rooms]
    if max_new_tokens == 0:
        return
    if cache is None:
        cache = model.new_cache(len(prompts), longest + max(limits) - 1)
    device = cache.positions.device
    lengths = torch.tensor([len(ids) for ids in prompts])
    padded = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts])  # (b, t)
    real = torch.arange(longest) >= longest - lengths[:, None]  # (b, t)
    seen = None
    if sampler.repetition_penalty != 1:
        seen = torch.zeros(len(prompts), vocab_size, dtype=torch.bool)
        for row, ids in zip(seen, prompts, strict=True):
            row[[i for i in ids if i < vocab_size]] = True
        seen = seen.repeat_interleave(num_samples, 0).to(device)
    padded, real = padded.to(device), None if real.all() else real.to(device)
    for start in range(cache.length, longest, PIECE):
        columns = slice(start, start + PIECE)
        logits = model(
            padded[:, columns],
            cache=cache,
            attention_mask=None if real is None else real[:, columns],
            logits_to_keep=1,
        )[:, -1, :vocab_size]  # (b, vocab)
        if progress is not None:
            progress(cache.length, longest)
    if num_samples > 1:
        rows = torch.arange(len(prompts), device=device).repeat_interleave(num_samples)
        logits = logits[rows]
        cache.reorder(rows)

    if lookup is not None:
        yield from decode_with_drafts(
            model, logits, seen, limits[0], sampler, stop_ids, vocab_size, cache, lookup
        )
        return
    call = (
        graph.GraphDecoder(model, cache)
        if cuda_graph
        else partial(model, cache=cache, logits_to_keep=1)
    )
    live = [True] * len(logits)
    for n in range(max(limits)):
        tokens = sampler(logits, seen)  # (b,)
        ids = tokens.tolist()
        live = [
            on and i not in stop_ids and n < limit
            for on, i, limit in zip(live, ids, limits, strict=True)
        ]
        yield [i if on else None for on, i in zip(live, ids, strict=True)]
        if not any(live):
            return
        if n + 1 < max(limits):
            if seen is not None:
                seen.scatter_(1, tokens[:, None], True)
            logits = call(tokens[:, None])[:, -1, :vocab_size]
