"""Prompt to tokens: one prefill, then decode steps; for one prompt, or for many at once.

    logits = model(prompt, cache=cache)          prefill: every prompt token, once
    repeat:  token = sample(logits)
             logits = model(token, cache=cache)  decode step: one token a row

Prompts of different lengths are padded on the left, so that all rows end at the same slot. A long
prompt is fed in pieces, so that the memory of a call does not grow with the prompt. One prompt
alone can be continued with drafts (drafts.py).

Shapes: b rows, t slots of the longest prompt.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING, Unpack

import torch

from nanomodels.cache import Cache
from nanomodels.generation import cuda_graph
from nanomodels.generation.drafts import PromptLookup, decode_with_drafts
from nanomodels.generation.logprobs import with_logprobs
from nanomodels.generation.sampling import Sampler
from nanomodels.generation.settings import BatchSettings, GenerationSettings, TextSettings
from nanomodels.text.ids import list_of_ids

if TYPE_CHECKING:
    from nanomodels.checkpoint.loading import Model

PIECE = 512  # most slots of a prompt that one call is given


def generate(
    model: "Model",
    ids: Iterable[int],
    settings: GenerationSettings | None = None,
    *,
    cache: Cache | None = None,
    on_draft: Callable[[int, int], None] | None = None,
    **changes: Unpack[TextSettings],
) -> Iterator[int]:
    """Continue the prompt `ids` (a list of token ids): an iterator of ints, token by token.

    Give settings as keywords: max_new_tokens, temperature, top_k, top_p, min_p, repetition_penalty,
    seed, stop_ids, vocab_size, draft_lookup, cuda_graph, logprobs, calculator; or as a
    GenerationSettings, which says what each means, and then keywords replace some of its fields.

    With logprobs=K the ints are Tokens (logprobs.py): token.logprob is the log-probability that the
    model gave the token, token.top the K likeliest ids with theirs. The tokens that a calculator
    forces are yielded, and count, as all others.

    The iterator ends after max_new_tokens, when the model's context is full, or before a stop id,
    which is not yielded.

    A cache may hold the first tokens of ids; then only the rest is fed. At the end it holds the
    whole text, except for the last token where no stop id came after it. If you leave the iterator
    early, close() it before you use the cache.

    draft_lookup and cuda_graph change neither text nor cache, only the speed. But in bfloat16 they
    round differently, so a near-tie can go the other way; and savepoints of the cache from before
    are no longer valid. on_draft(drafted, accepted) is called after each draft with its number of
    tokens, and of right ones.

    Raises ValueError for an empty prompt, one longer than the context, ids outside the vocabulary,
    a cache that does not fit, or a setting out of range.
    """
    rows = generate_batch(
        model, [ids], settings, cache=cache, on_draft=on_draft, num_samples=1, **changes
    )
    return (row[0] for row in takewhile(lambda row: row[0] is not None, rows))


def generate_batch(
    model: "Model",
    prompts: Iterable[Iterable[int]],
    settings: GenerationSettings | None = None,
    *,
    cache: Cache | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_draft: Callable[[int, int], None] | None = None,
    **changes: Unpack[BatchSettings],
) -> Iterator[list[int | None]]:
    """Continue several prompts at once: an iterator of lists with the next token of each row.

    prompts is a list of lists of ids, of any lengths. Each is continued num_samples times from one
    prefill. Rows are in the order prompt 0 sample 0, prompt 0 sample 1, ... A row that has ended
    gives None from then on. The iterator ends when all rows have.

    Sample j uses seed + j, independent of the other rows, so a row is what `generate` gives for its
    prompt alone with that seed (except for the rope types dynamic and longrope, see rope.rotation).
    progress(done, total) is called before the prefill and after each piece of it, with tokens of
    the longest prompt. The rest is as in `generate`; a cache and draft_lookup need one prompt and
    one sample.
    """
    settings = replace(settings or GenerationSettings(), **changes).for_model(model)
    prompts = [list_of_ids("a prompt", ids) for ids in prompts]
    check(model, prompts, settings, cache)
    return decode(model, prompts, settings, cache, progress, on_draft)


def check(model, prompts, settings, cache):
    """Raise ValueError for prompts that the model, the settings or the cache have no place for."""
    if not prompts or not all(prompts):
        raise ValueError("a prompt is empty; give at least one token")
    longest, known = max(map(len, prompts)), model.config.vocab_size
    if longest > model.context_length:
        raise ValueError(
            f"the prompt has {longest} tokens; the model's context holds {model.context_length}"
        )
    if not all(0 <= i < known for ids in prompts for i in ids):
        raise ValueError(f"a prompt has ids that are not in the vocabulary of {known}")
    one_row = len(prompts) * settings.num_samples == 1
    if cache is not None:
        if not one_row or cache.has_padding:
            raise ValueError("a cache goes with one prompt, one sample, and no padding in it")
        if cache.length >= longest:
            raise ValueError(f"the cache holds {cache.length} tokens; the prompt must have more")
    if settings.draft_lookup and not one_row:
        raise ValueError("draft_lookup goes with one prompt and one sample; 0 is off")
    if settings.cuda_graph:
        cuda_graph.check(model)
    if (settings.logprobs or 0) > settings.vocab_size:
        raise ValueError(
            f"logprobs is {settings.logprobs}; the vocabulary has {settings.vocab_size} tokens"
        )
    if settings.calculator is not None:
        settings.calculator.check(settings.vocab_size)


@torch.inference_mode()
def decode(model, prompts, settings, cache, progress, on_draft):
    """The loop of `generate_batch`, which has checked the arguments."""
    samples, vocab_size = settings.num_samples, settings.vocab_size
    # Each row has its own limit. The last token is not fed, so even a prompt that fills the context
    # gets one. Beside a longer prompt, a short one needs slots beyond the context.
    rooms = [model.context_length - len(ids) + 1 for ids in prompts for _ in range(samples)]
    limits = [min(settings.max_new_tokens, room) for room in rooms]
    if settings.max_new_tokens == 0:
        return
    if cache is None:
        cache = model.new_cache(len(prompts), max(map(len, prompts)) + max(limits) - 1)
    logits = prefill(model, prompts, cache, progress)[:, :vocab_size]
    if samples > 1:
        rows = torch.arange(len(prompts), device=logits.device).repeat_interleave(samples)
        logits = logits[rows]
        cache.reorder(rows)
    sampler = Sampler(settings, prompts, logits.device, getattr(model, "share", None))
    if settings.draft_lookup:
        lookup = PromptLookup(prompts[0], settings.draft_lookup, on_draft)
        yield from decode_with_drafts(model, cache, logits, limits[0], sampler, lookup)
        return
    if settings.cuda_graph:
        decode_step = cuda_graph.GraphDecoder(model, cache)
    else:
        decode_step = partial(model, cache=cache, logits_to_keep=1)
    live = [True] * len(logits)
    for n in range(max(limits)):
        tokens = sampler(logits)  # (b,)
        ids = with_logprobs(tokens, logits, settings.logprobs)
        live = [
            on and i not in settings.stop_ids and n < limit
            for on, i, limit in zip(live, ids, limits, strict=True)
        ]
        yield [i if on else None for on, i in zip(live, ids, strict=True)]
        if not any(live):
            return
        if n + 1 < max(limits):
            logits = decode_step(tokens[:, None])[:, -1, :vocab_size]


@torch.inference_mode()
def prefill(model, prompts, cache, progress=None):
    """Feed the prompts to the cache; the logits (b, vocab) after the last token of each.

    What the cache holds already must be the first tokens of the prompts.
    """
    longest, device = max(map(len, prompts)), cache.positions.device
    padding = torch.tensor([[longest - len(ids)] for ids in prompts])  # (b, 1)
    ids = torch.tensor([[0] * (longest - len(ids)) + ids for ids in prompts], device=device)
    is_token = torch.arange(longest) >= padding  # (b, t)
    mask = None if is_token.all() else is_token.to(device)
    if progress is not None:
        progress(cache.length, longest)
    for start in range(cache.length, longest, PIECE):
        piece = slice(start, start + PIECE)
        logits = model(
            ids[:, piece],
            cache=cache,
            attention_mask=None if mask is None else mask[:, piece],
            logits_to_keep=1,
        )
        if progress is not None:
            progress(cache.length, longest)
    return logits[:, -1]
