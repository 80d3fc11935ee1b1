"""Byte-pair encoding on tiktoken, and the codec for byte-level BPE.

    text --split by a regex--> pieces --merge neighbours, lowest rank first--> ids

A tokenizer.json lists the merges as pairs of tokens, and its ids can be in any order. tiktoken has
one rank for each token and merges any two neighbours that spell a token. `live_merges` finds ranks
with which both give the same ids for every text.

A codec turns plain text into ids and ids into text; a Tokenizer adds BOS, added tokens and chats.
There are two: ByteLevel, and SentencePiece in sentencepiece.py. Both have:

    token_bytes            a Vocabulary, {id: bytes}
    normalise(text)        changes spaces, for example; added tokens with the flag "normalized" are
                           searched in its result
    symbols_everywhere     whether these are searched in every text, also with special=False
    encode(text, first)    the ids of a normalised piece; first: whether the text begins with it
    stream(hidden)         ids in, text out: push(id), then finish(); hidden ids give no text
"""

import codecs
import heapq
import re

from tiktoken import Encoding

from nanomodels.text.files import one_line, refusal

# The split of a ByteLevel pre-tokenizer with use_regex: tokenizers 0.23 byte_level.rs.
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# The regex syntax with one meaning in Oniguruma (tokenizers) and in Rust's fancy-regex (tiktoken).
# It leaves out, for example, \p{N}{1,3}+ (possessive in Rust only), $ (end of line or of text), \w.
SHARED_SYNTAX = re.compile(
    r"""(?x) (?: \\p\{\w+\} | \\[rntsSd] | \\\W                   # \p{L}, \s, an escaped sign
    | \[ \^? (?: \\p\{\w+\} | \\[rntsSd] | \\\W | [^][\\&^] )+ \]    # [^\s\p{L}]
    | \( (?: \?(?: i?: | <?[=!] ) | (?!\?) ) | [)|.?*+]
    | \{\d+(?:,\d*)?\}(?![+?]) | [^][\\(){}|.?*+^$] )+"""
)

# tiktoken's regex engine can remember 1,000,000 steps; \s+(?!\S) takes one for each character.
LONGEST_WHITESPACE = 500_000

# Tokens of a vocabulary: so many take 10 s to read. The largest one published has 262,144.
MOST_TOKENS = 500_000

# The characters of \s in Rust's regex crate; Python's str.isspace adds U+001C to U+001F.
WHITESPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)


def byte_alphabet():
    """{character: byte}: the printable characters that spell bytes in a vocabulary (GPT-2's)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}


ALPHABET = byte_alphabet()


def spell(token):
    """Return the bytes of a vocabulary token: of each character in ALPHABET, else UTF-8."""
    try:
        return bytes(map(ALPHABET.__getitem__, token))
    except KeyError:
        return token.encode()


class Vocabulary(dict):
    """{id: the bytes or the text of its token}. An id behind the last one raises ValueError.

    A model can generate an id that no token has, if there are gaps between the ids. It gives `gap`.
    """

    def __init__(self, tokens, gap):
        super().__init__(tokens)
        self.gap, self.last = gap, max(tokens)

    def __missing__(self, token):
        if 0 <= token <= self.last:
            return self.gap
        raise ValueError(f"token id {token} is not in the vocabulary, whose ids end at {self.last}")


class BytePairs:
    """tiktoken's byte-pair encoding, for a regex that nobody has tested.

    tiktoken panics where a regex matches no text: it writes to stderr and raises no Exception.
    Here the empty piece is a token, `empty`, so that it can be found and refused.
    """

    def __init__(self, path, pattern, ranks):
        """ranks: {bytes: rank}. ValueError, without the path, for a regex that is not one."""
        self.path, self.empty = path, max(ranks.values()) + 1
        # Encoding.encode reports a regex that gives up; encode_ordinary panics. encode needs a
        # special token to search for. It never becomes that token.
        special = {"<|nanomodels|>": self.empty + 1}
        ranks = ranks | {b"": self.empty}
        name = str(path)
        self.encoding = Encoding(
            name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special
        )
        self.encode("a 1.\n")

    def encode(self, text):
        """Return the ranks of a text. ValueError where the regex gives up or matches no text."""
        try:
            ranks = self.encoding.encode(text, disallowed_special=())
        except ValueError as error:
            raise ValueError(
                f"{self.path}: the regex fails on this text ({one_line(error)})"
            ) from None
        except BaseException as error:  # older versions of tiktoken panic here, too
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"{self.path}: the regex fails on this text") from None
        if self.empty in ranks:
            raise ValueError(
                f"{self.path}: the regex matches no text; each piece needs a character"
            )
        return ranks


class ByteLevel:
    """The codec for byte-level BPE. Every byte is a token, so every text has ids."""

    symbols_everywhere = False

    def __init__(self, pairs, token_bytes, *, ids_of_ranks=None, prefix_space=False):
        """pairs: BytePairs; its ranks are ids, unless ids_of_ranks lists their ids.

        prefix_space: whether a piece that does not begin with a space gets one.
        """
        self.pairs, self.token_bytes = pairs, Vocabulary(token_bytes, "\ufffd".encode())
        self.ids_of_ranks, self.prefix_space = ids_of_ranks, prefix_space

    def normalise(self, text):
        return text

    def encode(self, text, _):
        """Return the ids of a piece of text. ValueError for too long a run of white space."""
        if len(text) > LONGEST_WHITESPACE:
            longest = max(map(len, re.findall(r"\s+", text)), default=0)
            if longest > LONGEST_WHITESPACE:
                raise ValueError(
                    f"the text has {longest:,} characters of white space in a row; "
                    f"at most {LONGEST_WHITESPACE:,} can be encoded"
                )
        if self.prefix_space and text and not text.startswith(" "):
            text = " " + text
        ids = self.pairs.encode(text)
        return ids if self.ids_of_ranks is None else [self.ids_of_ranks[rank] for rank in ids]

    def stream(self, hidden):
        return ByteStream(self.token_bytes, hidden)


class ByteStream:
    """Ids in, text out as soon as a character is complete; wrong UTF-8 becomes U+FFFD."""

    def __init__(self, token_bytes, hidden):
        self._token_bytes, self._hidden = token_bytes, hidden
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Take one id; return the text that it completes, "" within a character."""
        if token in self._hidden:
            return ""
        return self._utf8.decode(self._token_bytes[token])

    def finish(self) -> str:
        """Return what an unfinished character leaves: U+FFFD or nothing."""
        return self._utf8.decode(b"", final=True)


def live_merges(path, vocab, pairs, whole, alphabet):
    """List the tokens that byte-pair encoding can make, in the order of their merges.

    alphabet: the tokens of which every text is made; they come first in the list.
    whole: the tokens that a piece of text becomes if it is equal to them, with or without merges
    (ignore_merges). Those that no merge makes come last in the list.

    tokenizers merges only the pairs in `pairs`, lowest index first; tiktoken merges any neighbours
    that spell a token, lowest rank first. What a stretch of text becomes depends on that stretch
    alone, as long as nothing merges across its ends. So a token is always made by the same pair, or
    never. If each token that is made has the index of its pair as its rank, tiktoken takes the same
    steps as tokenizers: it never meets a pair that is not listed.

    A pair merges if both parts are made, and if no earlier merge joins the end of the left part to
    the beginning of the right part; `stay_apart` checks this. A pair can also be listed before the
    pairs of its parts; converters do this with "</s>", if other pieces spell it. Its token is made
    as soon as both parts are. For such tokens, and those that contain one, `join` runs the merges.

    Raises ValueError if no ranks give the same ids.
    """
    rank = {char: n for n, char in enumerate(alphabet)}
    base = len(rank)
    firsts, lasts = list(range(base)), list(range(base))  # the two parts of a token, by its rank
    many = base + len(pairs)
    joined = {}  # first * many + last: the token that the two make
    order = {}  # token: the index of the pair that makes it
    unmade = []
    for n, (left, right) in enumerate(pairs):
        token, a, b = left + right, rank.get(left), rank.get(right)
        if token in rank:
            if a is not None and b is not None and a * many + b in joined:
                raise refusal(path, "model.merges", [left, right], "each pair once")
        elif a is None or b is None or not stay_apart(a, b, base, many, firsts, lasts, joined):
            unmade.append(token)
        else:
            rank[token] = joined[a * many + b] = len(firsts)
            order[token] = n
            firsts.append(a)
            lasts.append(b)
    if unknown := {*rank, *unmade} - vocab.keys():
        raise refusal(path, "model.merges", sorted(unknown)[:3], "merges that make tokens")

    rest = [token for token in [*unmade, *whole] if token not in rank]
    rest = [token for token in dict.fromkeys(rest) if alphabet.keys() >= set(token)]
    index = {(left, right): n for n, (left, right) in enumerate(pairs)} if rest else {}
    alone = {token: join(token, index.get) for token in rest}
    early = {token for token, (parts, _) in alone.items() if len(parts) == 1}
    for token in [token for token in order if holds_one(token, early)]:
        del order[token]
        alone[token] = join(token, index.get)
    order |= {token: n for token, (parts, n) in alone.items() if len(parts) == 1}
    others = [token for token, (parts, _) in alone.items() if token in whole and len(parts) > 1]
    for token in others:
        # tiktoken merges two parts at a time, so it never makes a token of three parts or more.
        if len(alone[token][0]) == 2:
            raise refusal(path, "model.ignore_merges with a token without merge", token, "none")
    return [*alphabet, *sorted(order, key=order.get), *others]


def stay_apart(left, right, base, many, firsts, lasts, joined):
    """Whether no earlier merge joins the end of one token to the beginning of the next.

    Undoes the merges of both tokens, the latest first. At each step it checks whether the two
    parts at the border would have merged before. Of two equal merges, the left one happens first.
    """
    limit = many
    while joined.get(left * many + right, limit) >= limit:
        if left < base and right < base:
            return True
        if left > right:
            limit, left = left, lasts[left]
        else:
            limit, right = right + 1, firsts[right]
    return False


def join(token, order, until=1):
    """Merge the characters of a token, lowest order first, until so many parts are left.

    order(pair): a number, or None for a pair that does not merge. If none merges, more parts stay.
    Returns the parts and the order of the last merge, None without a merge.
    """
    # A heap of the pairs, because a token can have thousands of characters. A part that has been
    # joined to the one before it is None; a pair whose parts have changed is skipped.
    end = left = len(token)
    parts, last = [*token, None], None
    before, after, heap = list(range(-1, end)), list(range(1, end + 2)), []

    def offer(first):
        pair = parts[first], parts[after[first]]
        if None not in pair and (number := order(pair)) is not None:
            heapq.heappush(heap, (number, first, pair))

    for first in range(end):
        offer(first)
    while heap and left > until:
        number, first, pair = heapq.heappop(heap)
        second = after[first]
        if (parts[first], parts[second]) != pair:
            continue
        parts[first], parts[second] = pair[0] + pair[1], None
        after[first], before[after[second]] = after[second], first
        left, last = left - 1, number
        offer(first)
        if first > 0:
            offer(before[first])
    return [part for part in parts if part is not None], last


def holds_one(token, parts):
    """Whether one of a set of texts is in the token; fast for many of them."""
    sizes = {len(part) for part in parts}
    return any(token[at : at + n] in parts for n in sizes for at in range(len(token) - n + 1))
