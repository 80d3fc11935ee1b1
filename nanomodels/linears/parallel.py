"""One model over several processes: tensor parallelism on torch.distributed.

Each of N processes, the ranks, has the same class with 1/N of the heads, groups and MLP widths, and
fills it with its part of each weight:

    by rows      q_proj, k_proj, v_proj, up_proj, in_proj ...: some of the outputs
    by columns   o_proj, down_proj, out_proj: some of the inputs, so the output is one of N summands
    experts      whole, 1/N of them on each rank; what the router sends to others is 0 here
    embedding    1/N of the vocabulary; of other ids the rows are 0
    head         1/N of the vocabulary
    the rest     whole on every rank: norms, routers, the projections of latent experts

A forward call is the decoder's own. Hooks add what ranks tell each other: after the embedding, each
attention, MLP and mixer the N summands are added, in float32; after the head the logits are joined.
So each rank has all logits, equal to the bit, and runs the same decode loop.

Rows of one product are computed as ever. A sum over columns is rounded in other places: in float32
logits differ by about 1e-6 of the largest, in bfloat16 by as much as bfloat16 itself.

Sources: arXiv 1909.08053 (Megatron-LM), section 3; NVIDIA/Megatron-LM @d98e8a6 core/ssm/
mamba_mixer.py (the five blocks of in_proj).

Shapes: N processes; h heads, g key/value heads or groups, d head width, p head width of Mamba-2,
n its state width, v vocabulary, m model width.
"""

import re
from dataclasses import dataclass, fields, replace

import torch
import torch.distributed as dist
from torch import nn

from nanomodels.linears.stored import StoredWeight, take

# Sizes of a Config of which each rank has 1/N.
CUT_SIZES = (
    *("num_attention_heads", "intermediate_size", "mamba_num_heads", "n_groups"),
    "moe_shared_expert_intermediate_size",
)
# Modules by the last part of their name; what is nowhere here is whole.
ROWS = ("embed_tokens", "embeddings", "lm_head", "q_proj", "up_proj", "fc1")
KEY_VALUE_ROWS = ("k_proj", "v_proj", "ve_gate")
COLUMNS = ("o_proj", "down_proj", "fc2", "out_proj")
PER_HEAD = ("A_log", "D", "dt_bias")  # of Mamba-2
SUMMANDS = (*COLUMNS, "fc2_latent_proj")  # their bias is added once, on rank 0
MOST_PROCESSES = 64  # that an error message tries


@dataclass(frozen=True)
class Ranks:
    """Which process this is, and how many there are."""

    rank: int
    count: int  # N


def ranks_here():
    """The Ranks of the default process group; ValueError if there is none."""
    if not dist.is_initialized():
        raise ValueError("parallel needs torch.distributed.init_process_group before")
    return Ranks(dist.get_rank(), dist.get_world_size())


# --- Sizes ---


def sizes_to_cut(config):
    """The sizes of a Config that N must divide: {field: size}."""
    names = ["vocab_size"]
    kinds = getattr(config, "layers", "*-")  # of a hybrid; other decoders have attention and MLPs
    if "*" in kinds:
        names.append("num_attention_heads")
    if "-" in kinds:
        names.append("intermediate_size")
    if "M" in kinds:
        names += ["mamba_num_heads", "n_groups"]
    if "E" in kinds:
        names += ["n_routed_experts", "moe_shared_expert_intermediate_size"]
    return {name: getattr(config, name) for name in names}


def uncut(config, count):
    """What cannot be cut for `count` processes: a list of "field size"."""
    found = [f"{name} {size}" for name, size in sizes_to_cut(config).items() if size % count]
    g = config.num_key_value_heads
    if "*" in getattr(config, "layers", "*") and g % count and count % g:
        found.append(f"num_key_value_heads {g}")
    return found


def check_sizes(config, count):
    """Raise ValueError for a Config that cannot be cut for `count` processes."""
    if found := uncut(config, count):
        works = [n for n in range(1, MOST_PROCESSES + 1) if not uncut(config, n)]
        raise ValueError(
            f"{' and '.join(found)} cannot be cut for {count} processes; numbers of processes that "
            f"work: {', '.join(map(str, works))}"
        )


def local_config(config, count):
    """The Config of one rank's model; the vocabulary and the number of experts stay whole."""
    known = {field.name for field in fields(config)}
    local = {name: getattr(config, name) // count for name in CUT_SIZES if name in known}
    return replace(config, num_key_value_heads=max(1, config.num_key_value_heads // count), **local)


# --- Weights ---


class Cut:
    """One rank's part of a tensor or StoredWeight: some of its rows or columns. Not read yet.

    Like a tensor, it has shape, dtype, nbytes and to(). dim: 0 rows, 1 columns. pieces: slices of
    that dimension, of which the part is made.
    """

    def __init__(self, whole, dim, pieces):
        self.whole, self.dim, self.pieces = whole, dim, pieces
        self.shape = torch.Size(
            sum(piece.stop - piece.start for piece in pieces) if i == dim else size
            for i, size in enumerate(whole.shape)
        )
        self.dtype = whole.dtype
        self.nbytes = whole.nbytes * self.numel() // max(1, whole.numel())

    def numel(self):
        return self.shape.numel()

    @property
    def parts(self):
        """The tensors of the file that it is read from."""
        return self.whole.parts if isinstance(self.whole, StoredWeight) else (self.whole,)

    def read(self, dtype):
        """A tensor, or a StoredWeight; dtype: of a tensor that had to be dequantised first.

        Rows in one piece are a view of the file.
        """
        if isinstance(self.whole, StoredWeight):
            weight = self.whole.cut(self.dim, self.pieces)
            if weight is not None:
                return weight
            return take(self.whole.to("cpu", dtype), self.dim, self.pieces)
        return take(self.whole, self.dim, self.pieces)

    def to(self, device, dtype):
        return self.read(dtype).to(device, dtype)


class Once(Cut):
    """A bias that rank 0 adds: zeros for the others."""

    def __init__(self, whole):
        super().__init__(whole, 0, [slice(0, len(whole))])

    def read(self, dtype):
        return torch.zeros_like(self.whole)


def cut_model(model, config, named, ranks):
    """The tensors of one rank: as Source.tensors, with Cuts, and experts by their numbers here.

    model: of local_config, on the meta device; it gets the rank's embedding, head and experts.
    config: the whole one.
    """
    cut_vocabulary(model, ranks)
    own = cut_experts(model, config, ranks)
    result = {}
    for name, entries in named.items():
        expert = re.search(r"(?<=\.experts\.)\d+(?=\.)", name)
        if expert and own is not None:
            number = int(expert[0])
            if number not in own and number < config.n_routed_experts:
                continue  # another rank's
            here = number - own.start if number in own else number
            local = name[: expert.start()] + str(here) + name[expert.end() :]
            result[local] = entries
        else:
            result[name] = [(n, cut_tensor(name, n, t, config, ranks)) for n, t in entries]
    return result


def cut_tensor(name, stored_name, tensor, config, ranks):
    """A rank's part of a tensor: a Cut, or the tensor itself if every rank has it whole.

    name: the parameter's; stored_name: for errors.
    """
    parent, module, leaf = ["", "", *name.split(".")][-3:]
    if module in SUMMANDS and leaf == "bias":
        return Once(tensor) if ranks.rank else tensor
    dim = 1 if module in COLUMNS or module == "value_embed" else 0
    size = tensor.shape[dim]
    if module in KEY_VALUE_ROWS or module == "value_embed":
        pieces = [key_value_slice(size, config.num_key_value_heads, ranks)]
    elif {module, leaf} & {*ROWS, *COLUMNS, *PER_HEAD} or (parent, module) == ("mixer", "norm"):
        pieces = slices([size], ranks)
    elif module in ("in_proj", "conv1d"):
        inner = config.mamba_num_heads * config.mamba_head_dim
        xBC = (inner, *(config.n_groups * config.ssm_state_size,) * 2)
        blocks = (inner, *xBC, config.mamba_num_heads) if module == "in_proj" else xBC
        pieces = slices(blocks if sum(blocks) == size else (), ranks)
    else:
        return tensor
    if not pieces or None in pieces:
        raise ValueError(f"{stored_name} is {list(tensor.shape)}; the config asks for another size")
    return Cut(tensor, dim, pieces)


def slices(blocks, ranks):
    """A rank's slice of each of several blocks that lie one after another; None: not divisible."""
    found, first = [], 0
    for size in blocks:
        width = size // ranks.count
        start = first + ranks.rank * width
        found.append(None if size % ranks.count else slice(start, start + width))
        first += size
    return found


def key_value_slice(size, heads, ranks):
    """A rank's slice of the rows of all key/value heads; None: not divisible.

    Of fewer heads than processes, each is on several ranks.
    """
    if size % heads:
        return None
    d, count = size // heads, max(1, heads // ranks.count)
    first = ranks.rank * heads // ranks.count
    return slice(first * d, (first + count) * d)


def cut_experts(model, config, ranks):
    """Leave a rank's experts in each MoE; returns their numbers, None if there are no experts."""
    if "E" not in getattr(config, "layers", ""):
        return None
    count = config.n_routed_experts // ranks.count
    for layer in model.layers:
        experts = getattr(layer.mixer, "experts", None)
        if experts is not None:
            layer.mixer.experts = nn.ModuleList([*experts[:count], Elsewhere()])
    return range(ranks.rank * count, (ranks.rank + 1) * count)


def cut_vocabulary(model, ranks):
    """Give a model a rank's part of the embedding and of the head; tied ones stay tied."""
    name, whole = next(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and not name.endswith("value_embed")
    )
    v, m = whole.weight.shape
    v //= ranks.count
    with torch.device("meta"):
        part = PartOfEmbedding(v, m, ranks.rank * v)
        head = nn.Linear(m, v, bias=False)
    model.set_submodule(name, part)
    if hasattr(model, "lm_head"):
        if model.lm_head.weight is whole.weight:
            head.weight = part.weight
        model.lm_head = head


# --- Modules and hooks ---


class PartOfEmbedding(nn.Embedding):
    """The rows of the ids from `first` on; other ranks have the others."""

    def __init__(self, count, width, first):
        super().__init__(count, width)
        self.first = first

    def forward(self, ids):
        """ids (...) -> (..., m), on every rank those of all."""
        ids = ids - self.first
        others = (ids < 0) | (ids >= self.num_embeddings)
        x = super().forward(ids.masked_fill(others, 0))
        return add_up(x.masked_fill_(others[..., None], 0))


class Elsewhere(nn.Module):
    """Stands for all experts of other ranks, which compute them."""

    up_proj = None  # for experts.can_stack

    def forward(self, x):
        return torch.zeros_like(x)


def connect(model, ranks):
    """Add the hooks that exchange what ranks tell each other, to a model with its weights."""
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        if last in ("self_attn", "mlp", "mixer"):
            module.register_forward_hook(lambda module, args, y: add_up(y))
        elif last == "gate" and hasattr(module, "e_score_correction_bias"):
            count = module.config.n_routed_experts // ranks.count
            module.register_forward_hook(local_numbers(ranks.rank * count, count))
    if hasattr(model, "lm_head"):
        model.lm_head.register_forward_hook(lambda module, args, y: join(y, ranks.count))
    model.share = share


def local_numbers(first, count):
    """A hook for a Router: experts by their numbers on this rank; others have number `count`."""

    def hook(router, args, output):
        chosen, weights = output[0] - first, output[1]
        return chosen.masked_fill((chosen < 0) | (chosen >= count), count), weights

    return hook


def add_up(y):
    """The sum of all ranks' y, in float32; in y's dtype."""
    if y.requires_grad:
        raise ValueError("a model that is cut over processes cannot be trained")
    whole = y.to(torch.float32).contiguous()
    exchange(dist.all_reduce, whole)
    return whole.to(y.dtype)


def join(y, count):
    """All ranks' y (..., v / N), in their order: (..., v)."""
    parts = [torch.empty_like(y, memory_format=torch.contiguous_format) for _ in range(count)]
    exchange(dist.all_gather, parts, y.contiguous())
    return torch.cat(parts, dim=-1)


def share(tokens):
    """Rank 0's tokens, on every rank. Equal logits could still be drawn from differently."""
    exchange(dist.broadcast, tokens, 0)
    return tokens


def exchange(collective, *args):
    """Call a collective function. Raises ConnectionError if another process has ended."""
    try:
        collective(*args)
    except RuntimeError as error:
        raise ConnectionError(f"another process of this job has ended: {error}") from None
