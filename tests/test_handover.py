"""convert_hf.py --to hf: other programs find every key and tensor that they ask for.

What each of them asks for was read in its source:
- transformers 5.23.0; transformers 4.57.6 models/nemotron/configuration_nemotron.py
- mlx-lm 0.32.2 models/nemotron.py, models/nemotron_h.py (ModelArgs; weights load strictly)
- llama.cpp @0c1e57098 conversion/base.py, granite.py, mamba.py, nemotron.py; common/jinja/
- vLLM @0531c22 transformers_utils/configs/nemotron.py; @0036026 for Nemotron-H
- SGLang @0114448 configs/nemotron_h.py
"""

import atexit
import importlib.util
import json
import re
import shutil
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from chats import FOLDERS
from reference import FAMILIES, ROPE_TYPES, random_nemotron, random_nemotron_h
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import convert_hf
import nanomodels
from nanomodels.checkpoint.names import pattern
from nanomodels.text.chat_template import NANOCHAT_TEMPLATE

pytestmark = pytest.mark.cpu

# Keys without which a program stops, or computes something else.
ASKED = {
    ("nanochat", "transformers 5"): [
        *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size"),
        *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
        *("max_position_embeddings", "rope_theta", "attention_bias", "tie_word_embeddings"),
    ],
    ("nemotron", "mlx-lm"): [
        *("model_type", "hidden_size", "hidden_act", "num_hidden_layers", "intermediate_size"),
        *("num_attention_heads", "norm_eps", "vocab_size", "num_key_value_heads", "head_dim"),
        *("attention_bias", "mlp_bias", "partial_rotary_factor", "rope_theta"),
        "tie_word_embeddings",
    ],
    ("nemotron", "transformers 4 and vLLM"): [
        *("architectures", "rope_theta", "partial_rotary_factor", "head_dim"),
        "max_position_embeddings",
    ],
    ("nemotron", "llama.cpp"): [
        *("architectures", "vocab_size", "num_hidden_layers", "max_position_embeddings"),
        *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
        *("norm_eps", "partial_rotary_factor", "rope_theta"),
    ],
    ("nemotron_h", "mlx-lm"): [
        *("model_type", "vocab_size", "hidden_size", "intermediate_size", "use_conv_bias"),
        *("max_position_embeddings", "num_attention_heads", "num_key_value_heads", "use_bias"),
        *("attention_bias", "mamba_num_heads", "mamba_head_dim", "mamba_proj_bias", "head_dim"),
        *("ssm_state_size", "conv_kernel", "n_groups", "mlp_bias", "layer_norm_epsilon"),
        *("hybrid_override_pattern", "num_hidden_layers"),
    ],
    ("nemotron_h", "llama.cpp"): [
        *("architectures", "num_hidden_layers", "hybrid_override_pattern", "head_dim", "n_groups"),
        *("mamba_head_dim", "mamba_num_heads", "conv_kernel", "ssm_state_size", "vocab_size"),
        *("num_attention_heads", "num_key_value_heads", "hidden_size", "intermediate_size"),
        *("layer_norm_epsilon", "max_position_embeddings"),
    ],
    ("nemotron_h", "SGLang"): ["mamba_n_groups", "hybrid_override_pattern", "chunk_size"],
}
EXPERTS_ASKED = [
    *("num_experts_per_tok", "moe_intermediate_size", "moe_shared_expert_intermediate_size"),
    *("n_routed_experts", "n_shared_experts", "norm_topk_prob", "routed_scaling_factor"),
    *("n_group", "topk_group"),
]
HYBRID = [  # the sizes that llama.cpp has kernels for, without what it does not know
    *[("vocab_size", 96), ("hidden_size", 64), ("num_attention_heads", 4), ("head_dim", 32)],
    *[("num_key_value_heads", 2), ("mamba_num_heads", 4), ("mamba_head_dim", 32), ("n_groups", 2)],
    *[("ssm_state_size", 32), ("conv_kernel", 4), ("use_bias", False), ("use_conv_bias", True)],
    *[("mlp_bias", False), ("time_step_limit", (0.0, float("inf"))), ("moe_latent_size", None)],
    *[("n_group", 1), ("topk_group", 1), ("num_experts_per_tok", 3), ("intermediate_size", 96)],
    *[("moe_intermediate_size", 32), ("moe_shared_expert_intermediate_size", 64)],
]
DENSE = ["linear_attention", "mlp", "full_attention", "mlp"]
SPARSE = ["linear_attention", "moe", "full_attention", "moe"]


def hand_over(source, target, *args):
    """Run convert_hf.py --to hf; return the new config.json."""
    assert convert_hf.main([str(source), str(target), "--to", "hf", *args]) == 0
    return json.loads((target / "config.json").read_text())


def change(folder, **keys):
    """Set keys of a config.json; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | keys
    left = {key: value for key, value in config.items() if key not in keys or value is not None}
    path.write_text(json.dumps(left))


def logits(folder):
    ids = torch.arange(40)[None] * 31 % 89
    return nanomodels.load(folder)(ids)


# --------------------------------------------------------------------------------------------------
# Keys


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_that_a_program_asks_for_is_there(tmp_path, family, seed):
    """Also those that the source leaves to a default."""
    FAMILIES[family](seed).save_pretrained(tmp_path / "hub")
    absent = ("architectures", "hidden_act", "attention_bias", "mlp_hidden_act", "n_shared_experts")
    change(tmp_path / "hub", **dict.fromkeys(absent[1:3] if seed % 2 else absent))
    if json.loads((tmp_path / "hub" / "config.json").read_text()).get("attention_bias") is None:
        bias = [n for n in load_file(tmp_path / "hub" / "model.safetensors") if "q_proj.bias" in n]
        change(tmp_path / "hub", attention_bias=bool(bias))
    config = hand_over(tmp_path / "hub", tmp_path / "back")
    for (asking, program), keys in ASKED.items():
        if asking == family:
            missing = [key for key in keys if config.get(key) is None]
            assert not missing, program
    if family == "nemotron_h":
        assert all(key in config for key in EXPERTS_ASKED)
        assert "layers_block_type" not in config  # SGLang and transformers 5 name kinds otherwise
    assert torch.equal(logits(tmp_path / "back"), logits(tmp_path / "hub"))


def test_a_hybrid_is_spelled_as_every_program_reads_it(tmp_path):
    theirs = random_nemotron_h(2, **dict(HYBRID), layers_block_type=DENSE)
    theirs.save_pretrained(tmp_path / "hub")
    change(tmp_path / "hub", mamba_proj_bias=True, num_hidden_layers=None)
    config = hand_over(tmp_path / "hub", tmp_path / "back")
    assert (config["hybrid_override_pattern"], config["num_hidden_layers"]) == ("M-*-", 4)
    assert config["mamba_proj_bias"] is config["use_bias"] is False
    assert config["mamba_n_groups"] == config["n_groups"] == 2
    # llama.cpp's converter takes a model with this key for one with experts
    assert not [key for key in config if "expert" in key or key.startswith(("moe_", "topk"))]
    # transformers 5 writes {"__float__": "Infinity"}, of which mlx-lm cannot make a number
    assert "time_step_limit" not in config
    change(tmp_path / "hub", time_step_limit=[0.01, {"__float__": "Infinity"}])
    config = hand_over(tmp_path / "hub", tmp_path / "limited")
    assert config["time_step_limit"] == [0.01, 1e308]
    json.dumps(config, allow_nan=False)
    assert torch.equal(logits(tmp_path / "limited"), logits(tmp_path / "hub"))


@pytest.mark.parametrize("rope_type", ROPE_TYPES)
def test_a_rotation_is_read_by_those_who_look_at_the_top_or_they_stop(tmp_path, rope_type):
    seed = ROPE_TYPES.index(rope_type)
    theirs = random_nemotron(seed)
    theirs.save_pretrained(tmp_path / "hub")
    nested = theirs.config.rope_parameters
    config = hand_over(tmp_path / "hub", tmp_path / "back")
    for key in ("rope_theta", "partial_rotary_factor"):
        assert config[key] == config["rope_parameters"][key] == nested[key]
    # mlx-lm and vLLM's own config read these two keys, and refuse a type that they do not know
    scaling = config.get("rope_scaling")
    if rope_type == "default":
        assert scaling is None
    elif rope_type in ("linear", "dynamic"):
        assert scaling == {"type": rope_type, "factor": nested["factor"]}
        assert type(scaling["factor"]) is float
    else:
        assert scaling["rope_type"] == rope_type
    ids = torch.arange(40)[None]
    expected, found = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto")(ids).logits
        for name in ("hub", "back")
    )
    assert torch.equal(found, expected)
    assert torch.equal(logits(tmp_path / "back"), logits(tmp_path / "hub"))


def test_older_spellings_get_the_usual_one_beside_them(tmp_path):
    random_nemotron(0).save_pretrained(tmp_path / "hub")
    hub = json.loads((tmp_path / "hub" / "config.json").read_text())
    rope = hub["rope_parameters"]
    older = {"rope_percent": rope["partial_rotary_factor"], "rope_theta": rope["rope_theta"]}
    older |= {"kv_channels": hub["head_dim"], "layer_norm_eps": hub["norm_eps"]}
    absent = dict.fromkeys(("rope_parameters", "head_dim", "norm_eps"))
    change(tmp_path / "hub", **older, **absent)
    config = hand_over(tmp_path / "hub", tmp_path / "back")
    assert config["partial_rotary_factor"] == older["rope_percent"]
    assert (config["head_dim"], config["norm_eps"]) == (hub["head_dim"], hub["norm_eps"])
    assert torch.equal(logits(tmp_path / "back"), logits(tmp_path / "hub"))


def test_a_language_model_of_a_multimodal_checkpoint_gets_its_class(tmp_path):
    theirs = random_nemotron_h(2, **dict(HYBRID), layers_block_type=DENSE)
    theirs.save_pretrained(tmp_path / "hub")
    path = tmp_path / "hub" / "model.safetensors"
    tensors = load_file(path)
    save_file({f"language_model.{name}": tensor for name, tensor in tensors.items()}, path)
    inner = json.loads((tmp_path / "hub" / "config.json").read_text())
    del inner["architectures"]
    whole = {"model_type": "vl", "llm_config": inner, "architectures": ["NemotronH_Nano_VL_V2"]}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(whole))
    config = hand_over(tmp_path / "hub", tmp_path / "back")
    assert config["architectures"] == ["NemotronHForCausalLM"]
    assert load_file(tmp_path / "back" / "model.safetensors").keys() == tensors.keys()


# --------------------------------------------------------------------------------------------------
# Tensors


# Names that mlx-lm, llama.cpp's converter and vLLM ask for; {} is the layer, then the expert.
TENSORS = {
    "nemotron": {
        *("model.embed_tokens.weight", "model.norm.weight", "model.norm.bias", "lm_head.weight"),
        *(
            f"model.layers.{{}}.{name}"
            for name in (
                *("input_layernorm.weight", "input_layernorm.bias"),
                *("post_attention_layernorm.weight", "post_attention_layernorm.bias"),
                *(f"self_attn.{letter}_proj.weight" for letter in "qkvo"),
                *("mlp.up_proj.weight", "mlp.down_proj.weight"),
            )
        ),
    },
    "nemotron_h": {
        *("backbone.embeddings.weight", "backbone.norm_f.weight", "lm_head.weight"),
        *("backbone.layers.{}.norm.weight",),
        *(
            f"backbone.layers.{{}}.mixer.{name}"
            for name in (
                *("in_proj.weight", "conv1d.weight", "conv1d.bias", "A_log", "D", "dt_bias"),
                *("norm.weight", "out_proj.weight"),
                *(f"{letter}_proj.weight" for letter in "qkvo"),
                *("gate.weight", "gate.e_score_correction_bias"),
                *("experts.{}.up_proj.weight", "experts.{}.down_proj.weight"),
                *("shared_experts.up_proj.weight", "shared_experts.down_proj.weight"),
            )
        ),
    },
}


def test_tensors_have_the_names_that_programs_ask_for(tmp_path):
    hybrid = random_nemotron_h(2, **dict(HYBRID), layers_block_type=SPARSE)
    hybrid.save_pretrained(tmp_path / "hub", save_original_format=False)  # stacked, as in memory
    sources = {"nemotron": FOLDERS["nemotron"], "nemotron_h": tmp_path / "hub"}
    for family, source in sources.items():
        hand_over(source, tmp_path / family)
        names = load_file(tmp_path / family / "model.safetensors")
        assert {pattern(name) for name in names} == TENSORS[family]
    models = {"nanochat": FOLDERS["nanochat"]} | sources
    for family, source in models.items():
        if family == "nanochat":
            hand_over(source, tmp_path / family)
        _, found = AutoModelForCausalLM.from_pretrained(tmp_path / family, output_loading_info=True)
        assert not any(found.values())


def draft_head(model):
    """Random tensors of a head that drafts tokens, as in Nemotron 3 Super."""
    m, x, e = (
        getattr(model.config, key) for key in ("hidden_size", "moe_latent_size", "n_routed_experts")
    )
    shapes = {
        "0.enorm.weight": (m,),
        "0.eh_proj.weight": (m, 2 * m),
        "0.mixer.q_proj.weight": (m, m),
        "1.mixer.gate.weight": (e, m),
        "1.mixer.gate.e_score_correction_bias": (e,),
        "1.mixer.experts.7.up_proj.weight": (5, x or m),
        "1.final_layernorm.weight": (m,),
    }
    rng = torch.Generator().manual_seed(0)
    return {f"mtp.layers.{n}": torch.randn(s, generator=rng) for n, s in shapes.items()}


@pytest.fixture
def drafting(tmp_path):
    """A folder with a head that drafts, and the tensors of it."""
    theirs = random_nemotron_h(2, **dict(HYBRID), layers_block_type=SPARSE)
    theirs.save_pretrained(tmp_path / "hub")
    path = tmp_path / "hub" / "model.safetensors"
    head = draft_head(theirs)
    save_file(load_file(path) | head, path, {"format": "pt"})
    kinds = ["full_attention", "moe"]
    change(tmp_path / "hub", num_nextn_predict_layers=1, mtp_layers_block_type=kinds)
    return tmp_path / "hub", head


def test_the_head_that_drafts_goes_along_with_its_keys(drafting, tmp_path, capsys):
    source, head = drafting
    config = hand_over(source, tmp_path / "back", "--verify")
    assert "left out" not in capsys.readouterr().out
    assert config["num_nextn_predict_layers"] == 1
    assert config["mtp_hybrid_override_pattern"] == "*E"
    assert "mtp_layers_block_type" not in config  # SGLang knows other names of kinds
    written = load_file(tmp_path / "back" / "model.safetensors")
    for name, tensor in head.items():
        assert torch.equal(written[name], tensor)
    assert written.keys() == load_file(source / "model.safetensors").keys()
    assert torch.equal(logits(tmp_path / "back"), logits(source))


def test_the_head_that_drafts_gets_the_dtype_but_what_must_be_exact_stays(drafting, tmp_path):
    source, head = drafting
    hand_over(source, tmp_path / "back", "--dtype", "bfloat16")
    written = load_file(tmp_path / "back" / "model.safetensors")
    exact = {name for name in head if written[name].dtype == torch.float32}
    assert exact == {name for name in head if ".gate." in name}
    for name in head.keys() - exact:
        assert torch.equal(written[name], head[name].bfloat16())


def test_the_head_of_a_multimodal_checkpoint_loses_its_prefix(drafting, tmp_path):
    source, head = drafting
    path = source / "model.safetensors"
    tensors = {f"language_model.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(tensors | {"vision_model.weight": torch.zeros(3)}, path)
    inner = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({"model_type": "vl", "llm_config": inner}))
    hand_over(source, tmp_path / "back")
    written = load_file(tmp_path / "back" / "model.safetensors")
    assert head.keys() == {name for name in written if not name.startswith(("backbone.", "lm_"))}


def test_without_the_head_that_drafts_its_keys_go(drafting, tmp_path, capsys):
    """In our layout it is left out."""
    assert convert_hf.main([str(drafting[0]), str(tmp_path / "ours")]) == 0
    assert "left out  mtp.*: 7 tensors" in capsys.readouterr().out
    config = hand_over(tmp_path / "ours", tmp_path / "back")
    assert config["num_nextn_predict_layers"] == 0
    assert not [key for key in config if key.startswith("mtp_")]


# --------------------------------------------------------------------------------------------------
# The tokenizer


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("has_key", [True, False])
def test_others_put_before_a_text_what_we_put_there(tmp_path, name, has_key):
    """transformers does what add_bos_token says; llama.cpp adds a BOS if SentencePiece lacks it."""
    shutil.copytree(FOLDERS[name], tmp_path / "hub")
    path = tmp_path / "hub" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    if not has_key:
        config.pop("add_bos_token", None)
        path.write_text(json.dumps(config))
    hand_over(tmp_path / "hub", tmp_path / "back")
    ours, theirs = (
        nanomodels.Tokenizer.load(tmp_path / "hub"),
        AutoTokenizer.from_pretrained(tmp_path / "back"),
    )
    written = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text())
    assert written["add_bos_token"] is (name == "nanochat")
    for text in ("Once upon a time", " x\n", "<s>"):
        assert theirs(text)["input_ids"] == ours.encode(text, special=True)
    if name == "nanochat":
        ids = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=True)
        assert ids["input_ids"].count(ours.bos_id) == 1


def test_a_tokenizer_that_puts_other_tokens_first_keeps_them(tmp_path):
    shutil.copytree(FOLDERS["nemotron"], tmp_path / "hub")
    path = tmp_path / "hub" / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    unknown = {"SpecialToken": {"id": "<extra_id_0>", "type_id": 0}}
    first = next(t["id"] for t in tokenizer["added_tokens"] if t["content"] == "<extra_id_0>")
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [unknown, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            "<extra_id_0>": {"id": "<extra_id_0>", "ids": [first], "tokens": ["<extra_id_0>"]}
        },
    }
    path.write_text(json.dumps(tokenizer))
    path = tmp_path / "hub" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["add_bos_token"]
    path.write_text(json.dumps(config))
    hand_over(tmp_path / "hub", tmp_path / "back")
    assert (tmp_path / "back" / "tokenizer_config.json").read_bytes() == path.read_bytes()
    theirs = AutoTokenizer.from_pretrained(tmp_path / "back")
    assert theirs("a")["input_ids"] == nanomodels.Tokenizer.load(tmp_path / "hub").encode("a")


def test_the_template_that_nanochats_get_uses_what_llama_cpps_jinja_has():
    """It has these attributes of a loop; with loop.cycle it refused every chat."""
    known = {"index", "index0", "revindex", "revindex0", "first", "last", "length"}
    assert {*re.findall(r"\bloop\.(\w+)", NANOCHAT_TEMPLATE)} <= known | {"previtem", "nextitem"}


# --------------------------------------------------------------------------------------------------
# Logits, in the programs that are installed


def in_transformers(folder, ids):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    return model(ids).logits[0]


def in_mlx(folder, ids):
    core = import_module("mlx.core")
    model, _ = import_module("mlx_lm.utils").load_model(folder)
    return torch.tensor(model(core.array(ids.tolist())).tolist())[0]


def in_llama_cpp(folder, ids):
    """Through a GGUF file of the keys and tensors that its converter reads."""
    import_module("benchmark.gguf_writer").write_gguf(folder, folder / "x.gguf", as_converter_reads)
    utils = import_module("llama_cpp._utils")  # it leaves these open
    atexit.register(utils.outnull_file.close), atexit.register(utils.errnull_file.close)
    llama = import_module("llama_cpp").Llama(
        str(folder / "x.gguf"),
        **{"n_ctx": 64, "logits_all": True, "n_threads": 1, "verbose": False},
        **{"flash_attn": False, "type_k": 0, "type_v": 0},  # keys and values in float32
    )
    llama.eval(ids[0].tolist())
    return torch.tensor(llama.scores[: ids.shape[1]])


def as_converter_reads(hub):
    """config.json as conversion/nemotron.py, granite.py and base.py read it."""
    sizes = SimpleNamespace(**hub)
    if hub["architectures"] == ["NemotronForCausalLM"]:
        width = int(hub["partial_rotary_factor"] * hub["hidden_size"]) // hub["num_attention_heads"]
        sizes.rope = SimpleNamespace(dim=width, rope_theta=hub["rope_theta"])
        return sizes
    sizes.layers = hub["hybrid_override_pattern"]
    if "num_experts_per_tok" in hub:  # then it knows no MLP
        sizes.layers = sizes.layers.replace("-", "M")
    return sizes


PROGRAMS = {
    "transformers": (in_transformers, ["transformers"], ("nanochat", *TENSORS)),
    "mlx-lm": (in_mlx, ["mlx_lm"], TENSORS),
    "llama.cpp": (in_llama_cpp, ["llama_cpp", "gguf"], TENSORS),
}
INSTALLED = [
    (program, family)
    for program, (_, packages, families) in PROGRAMS.items()
    if all(map(importlib.util.find_spec, packages))
    for family in families
]


@torch.inference_mode()
@pytest.mark.parametrize(("program", "family"), INSTALLED)
def test_programs_that_are_installed_give_our_logits(tmp_path, program, family):
    sources = [tmp_path / "one"]
    if family == "nemotron_h":  # the shipped one has experts and MLPs, which llama.cpp never has
        sources.append(tmp_path / "two")
        for source, kinds in zip(sources, (DENSE, SPARSE), strict=True):
            theirs = random_nemotron_h(2, **dict(HYBRID), layers_block_type=kinds)
            theirs.save_pretrained(source)
    else:
        shutil.copytree(FOLDERS[family], sources[0])
        rope = {"rope_type": "default", "rope_theta": 500.0}
        if family == "nemotron":  # what all programs read only where they look for it
            rope["partial_rotary_factor"] = 0.25
        change(sources[0], rope_parameters=rope, partial_rotary_factor=None)
    for source in sources:
        target = tmp_path / f"{source.name}-back"
        hand_over(source, target, "--dtype", "float32")
        ids = torch.arange(40)[None] * 31 % 89
        found, expected = PROGRAMS[program][0](target, ids), nanomodels.load(target)(ids)[0]
        assert expected.std() > 1
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
