"""Prompt-lookup decoding: the model checks several drafted tokens in one call.

    draft = lookup.draft(...)                 copied from earlier in the text
    logits = model(last token + draft)        one call for all of them
    repeat:  token = sample(logits)           as long as the token is the drafted one

Every token is chosen from the model's own logits, so the text is the same as without drafts.
"""

import torch

from nanomodels.generation.logprobs import with_logprobs


class PromptLookup:
    """Drafts what followed the last few tokens when they last occurred in the text.

    It predicts each token of the text, drafted or not, so it always knows how well it predicts. A
    draft is one token longer than the current run of right predictions: in a passage that is
    copied, drafts soon have full length. A draft that did not pay makes the next one wait for a
    longer run: in a text that does not repeat itself, there are hardly any drafts.
    """

    SIZES = 3, 2  # how many last tokens are looked up; the first size with a match counts
    # The part of a draft that must be right. Each drafted token costs 1/25 of a call (d20 shape,
    # bfloat16, CPU), up to 2/5 where each token reads its own experts (Nemotron-3 Nano).
    PAYS = 1 / 4
    LONGEST_WAIT = 6

    def __init__(self, ids, most, on_draft=None):
        self.most, self.on_draft = most, on_draft  # most: tokens of a draft
        self.text = []
        self.after = {}  # last few tokens: index in the text of what followed their last occurrence
        self.source = None  # index in the text of the token predicted next
        self.run = 0  # right predictions in a row
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
        """The tokens predicted next, at most `room` of them; often none."""
        if self.source is None or self.run < self.wait:
            return []
        period = len(self.text) - self.source  # the copy may continue into itself
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


def decode_with_drafts(model, cache, logits, limit, sampler, lookup):
    """The decode loop for one row, with drafts from a PromptLookup that has read the prompt.

    logits (1, v) are those after the prompt, and limit is the most tokens to yield. The same random
    numbers choose the tokens as without drafts. While the tokens of a draft are yielded, the cache
    is ahead of them. When the loop ends, the cache is put right.
    """
    settings, text, prompt = sampler.settings, lookup.text, len(lookup.text)
    savepoint, draft, accepted = cache.savepoint(), [], 0
    try:
        for left in reversed(range(limit)):  # tokens that may follow this one
            row = logits[accepted : accepted + 1]  # (1, v)
            chosen = sampler(row)
            token = int(chosen)
            lookup.push(token)
            if token in settings.stop_ids:
                yield [None]
                return
            yield with_logprobs(chosen, row, settings.logprobs)
            if draft[accepted : accepted + 1] == [token]:
                accepted += 1
            elif left > 0:
                lookup.learn(len(draft), accepted)
                rollback_to(cache, savepoint, len(text) - 1)
                new = text[cache.length :]
                # What the text and the cache have room for, and at most lookup.most + 1 a call.
                room = min(left - 1, cache.max_length - len(text), lookup.most + 1 - len(new))
                draft, accepted, savepoint = lookup.draft(room), 0, cache.savepoint()
                ids = torch.tensor([new + draft], device=cache.positions.device)
                logits = model(ids, cache=cache, logits_to_keep=len(draft) + 1)[0]
                logits = logits[:, : settings.vocab_size]
    finally:
        # However it ended, the cache then holds all tokens but the last, or but the stop id.
        lookup.learn(len(draft), accepted)
        length = max(len(text) - 1, prompt)
        rollback_to(cache, savepoint, length)
        if new := text[cache.length : length]:
            model(torch.tensor([new], device=cache.positions.device), cache=cache, logits_to_keep=1)


def rollback_to(cache, savepoint, length):
    """Keep at most the first `length` tokens of the cache.

    A cache with SSM states can only go back to the savepoint, so it may keep fewer. The next call
    must then feed the rest.
    """
    if cache.length > length:
        if cache.has_ssm:
            cache.rollback(savepoint)
        else:
            cache.truncate(length)
