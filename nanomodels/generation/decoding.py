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

    draft_lookup, if not 0, is the most tokens that are drafted at once (see Lookup; 8 to 16 pay on
    a CPU) for one call of the model to check. Text and cache become what they are without, though
    in bfloat16 a call with several tokens rounds otherwise than calls with one, and a close choice
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
    lookup = Lookup(prompts[0], draft_lookup, on_draft) if draft_lookup else None
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
        yield from drafted_steps(
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


class Lookup:
    """Guesses how a text goes on: as it did the last time that it had its last few tokens.

    Every token of the text is guessed, drafted or not, so how well it can be guessed shows at no
    cost. A draft is one token longer than the run of right guesses before it, so a copy is soon
    drafted at full length, and one that did not pay makes the next wait for a longer run: a text
    that only seems to repeat itself is left alone.
    """

    SIZES = 3, 2  # tokens that are looked up, the first that are found
    # Part of a draft that must be right: a token more in a call costs 1/25 of the call (d20 shape,
    # bfloat16, CPU), up to 2/5 where each token reads experts of its own (Nemotron-3 Nano).
    PAYS = 1 / 4
    LONGEST_WAIT = 6

    def __init__(self, ids, most, on_draft=None):
        self.most, self.on_draft = most, on_draft
        self.text = []
        self.after = {}  # a few tokens: where in the text stands what came after them the last time
        self.source = None  # where in the text stands the guess for the next token
        self.run = 0  # guesses in a row that were right
        self.wait = 0  # the run that a draft needs
        for token in ids:
            self.push(token)

    def push(self, token):
        """Add the next token of the text."""
        here = len(self.text)
        if self.source is not None and self.text[self.source] == token:
            self.run, self.source = self.run + 1, self.source + 1
        else:
            self.run, self.source = 0, None
        for size in self.SIZES:
            if here >= size:
                self.after[tuple(self.text[here - size :])] = here
        self.text.append(token)
        if self.source is None:
            ends = (tuple(self.text[-size:]) for size in self.SIZES)
            self.source = next((self.after[end] for end in ends if end in self.after), None)

    def draft(self, room):
        """The tokens that may come next, at most `room` of them and often none."""
        if self.source is None or self.run < self.wait:
            return []
        period = len(self.text) - self.source  # what is copied may go on into the copy
        length = min(self.most, self.run + 1, room)
        return [self.text[self.source + i % period] for i in range(length)]

    def learn(self, drafted, accepted):
        """Note how many tokens of a draft were right."""
        if drafted == 0:
            return
        paid = accepted >= self.PAYS * drafted
        self.wait = max(self.wait - 1, 0) if paid else min(self.wait + 1, self.LONGEST_WAIT)
        if self.on_draft is not None:
            self.on_draft(drafted, accepted)


def drafted_steps(model, logits, seen, limit, sampler, stop_ids, vocab_size, cache, lookup):
    """`steps` from the prompt's logits on, for one row, with drafts from a Lookup.

    Every token is chosen from the model's logits as in `steps`, by the same random numbers. A draft
    saves a call where the token chosen is the one drafted: the logits behind it are there already.
    While tokens of a draft are given out the cache is ahead of them; at the end it is put right.
    """
    text, prompt = lookup.text, len(lookup.text)
    savepoint, draft, accepted = cache.savepoint(), [], 0
    try:
        for left in reversed(range(limit)):  # so many tokens may follow this one
            token = int(sampler(logits[accepted : accepted + 1], seen))
            lookup.push(token)
            if token in stop_ids:
                yield [None]
                return
            yield [token]
            if seen is not None:
                seen[0, token] = True
            if draft[accepted : accepted + 1] == [token]:
                accepted += 1
            elif left > 0:
                lookup.learn(len(draft), accepted)
                rollback_to(cache, savepoint, len(text) - 1)
                new = text[cache.length :]
                # No further than the text and the cache may go, nor what a call is to be given.
                room = min(left - 1, cache.max_length - len(text), lookup.most + 1 - len(new))
                draft, accepted, savepoint = lookup.draft(room), 0, cache.savepoint()
                ids = torch.tensor([new + draft], device=cache.positions.device)
                logits = model(ids, cache=cache, logits_to_keep=len(draft) + 1)[0, :, :vocab_size]
    finally:
        # However it ended: a cache that holds all tokens but the last, or but the stop id.
        lookup.learn(len(draft), accepted)
        held = max(len(text) - 1, prompt)
        rollback_to(cache, savepoint, held)
        if new := text[cache.length : held]:
            model(torch.tensor([new], device=cache.positions.device), cache=cache, logits_to_keep=1)


def rollback_to(cache, savepoint, length):
    """Keep at most the first `length` tokens of the cache.

    A cache with SSM states goes back to the savepoint, so it may keep fewer: the rest must be part
    of the next call.
    """
    if cache.length > length:
        if cache.has_ssm:
            cache.rollback(savepoint)
        else:
            cache.truncate(length)


# Special tokens without which a text makes no sense; all others are left out of it.
OPEN, CLOSE = "<think>", "</think>"
MARKUP = (OPEN, CLOSE, "<tool_call>", "</tool_call>", "<TOOLCALL>", "</TOOLCALL>")


class TextStream:
    """Tokens in, text out as soon as it is certain: whole characters, and no part of a stop string.

    stop is a list of strings; the text ends before the first that appears, and `stopped` says so.
    With a Splitter the text is the answer alone, and stop strings count from its beginning on.
    """

    def __init__(self, tokenizer, stop=(), splitter=None):
        self.decoder = tokenizer.stream(keep=MARKUP)
        self.splitter = splitter
        self.stop = [text for text in stop if text]
        self.held = ""  # may yet become a stop string
        self.stopped = False

    def push(self, token):
        """The text that is certain now that `token` has come."""
        text = self.decoder.push(token)
        return self.release(self.splitter.push(text) if self.splitter else text)

    def finish(self):
        """The rest, once no token is to come."""
        text = self.decoder.finish()
        if self.splitter:
            text = self.splitter.push(text) + self.splitter.finish()
        text = self.release(text)
        text, self.held = text + self.held, ""
        return text

    def release(self, text):
        if self.stopped:
            return ""
        self.held += text
        starts = [at for at in map(self.held.find, self.stop) if at >= 0]
        if starts:
            self.stopped = True
            text, self.held = self.held[: min(starts)], ""
            return text
        cut = len(self.held) - begun(self.held, self.stop)
        text, self.held = self.held[:cut], self.held[cut:]
        return text


def begun(text, marks):
    """The length of the longest end of a text that is the beginning, but no more, of a mark."""
    lengths = (n for mark in marks for n in range(1, len(mark)) if text.endswith(mark[:n]))
    return max(lengths, default=0)


class Splitter:
    """Text in, the answer's part of it out; what the model thinks before it goes to `reasoning`.

    A text is reasoning up to </think> if it begins with <think>, or if that stands in the prompt
    already (opened); the white space behind </think> belongs to neither. `state` is "start",
    "reasoning", "gap" or "answer"; one that is "reasoning" at the end has no answer.
    """

    def __init__(self, opened=False):
        self.state = "reasoning" if opened else "start"
        self.reasoning = ""  # so far
        self.held = ""  # may yet become a mark

    def push(self, text):
        """The part of the answer that is certain now that `text` has come."""
        self.held += text
        if self.state == "start":
            start = self.held.lstrip()
            if start.startswith(OPEN):
                self.state, self.held = "reasoning", start.removeprefix(OPEN)
            elif not OPEN.startswith(start):
                self.state = "answer"
        if self.state == "reasoning":
            before, mark, after = self.held.partition(CLOSE)
            if mark:
                self.state = "gap"
            else:
                cut = len(self.held) - begun(self.held, [CLOSE])
                before, after = self.held[:cut], self.held[cut:]
            self.reasoning, self.held = self.reasoning + before, after
        if self.state == "gap":
            self.held = self.held.lstrip()
            if self.held:
                self.state = "answer"
        if self.state != "answer":
            return ""
        text, self.held = self.held, ""
        return text

    def finish(self):
        """The rest of the answer, once no text is to come."""
        rest, self.held = self.held, ""
        if self.state == "reasoning":
            self.reasoning, rest = self.reasoning + rest, ""
        return rest
