"""ModelOpt releases: every code as its bits say, scales where they belong, all else refused."""

import json

import numpy as np
import pytest
import torch
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import random_nemotron_h
from safetensors.torch import load_file, save_file

import convert_hf
import nanomodels
from nanomodels.checkpoint import modelopt
from nanomodels.checkpoint.modelopt import FP8, NVFP4, detect_modelopt, join_scales

# Zero, a float32 subnormal, ordinary ones, and some that overflow.
SCALES = (0.0, 1e-44, 1.1754944e-38, 3.3e-8, 0.0123, 1.0, 7.77, 1e30, 3e38)


def minifloat(code, exponent_bits, mantissa_bits):
    """The value of a code from its sign, exponent and mantissa; IEEE's rules but for infinity."""
    bias = 2 ** (exponent_bits - 1) - 1
    mantissa = code % 2**mantissa_bits / 2**mantissa_bits
    exponent = code >> mantissa_bits & 2**exponent_bits - 1
    magnitude = (
        (1 + mantissa) * 2.0 ** (exponent - bias) if exponent else mantissa * 2.0 ** (1 - bias)
    )
    return -magnitude if code >> exponent_bits + mantissa_bits else magnitude


E2M1 = np.array([minifloat(code, 2, 1) for code in range(16)])
E4M3 = np.array([np.nan if c & 0x7F == 0x7F else minifloat(c, 4, 3) for c in range(256)])


def rounded(values, dtype):
    """float64 -> float32, and for bfloat16 the upper half of its bits, to nearest, ties to even."""
    with np.errstate(over="ignore", under="ignore"):
        bits = values.astype(np.float32).view(np.uint32).astype(np.int64)
    if dtype == torch.bfloat16:
        bits = bits + 0x7FFF + (bits >> 16 & 1) >> 16 << 16
    return bits


def bits_of(tensor):
    return tensor.float().contiguous().view(torch.int32).numpy().astype(np.int64) & 0xFFFFFFFF


def assert_same_bits(weight, expected):
    """The weight as bfloat16 and as float32 against float64 numbers, NaN wherever they have it."""
    for dtype in (torch.bfloat16, torch.float32):
        w = weight.to("cpu", dtype)
        assert w.dtype == dtype and w.shape == weight.shape == expected.shape
        nan = np.isnan(expected)
        assert np.array_equal(w.isnan().numpy(), nan)
        same = bits_of(w) == rounded(expected, dtype)
        assert same[~nan].all()


def pack(codes):
    """e2m1 codes (n, k) two in a byte (n, k/2): the even column in the low four bits."""
    return torch.from_numpy((codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8))


def nvfp4(codes, scale_codes, scale_2):
    """NVFP4 of these codes (n, k) and (n, k/16), and its values in float64."""
    scale_2 = torch.tensor(scale_2)
    scale = torch.from_numpy(scale_codes.astype(np.uint8)).view(torch.float8_e4m3fn)
    expected = E2M1[codes] * E4M3[scale_codes].repeat(16, axis=1) * float(scale_2)
    return NVFP4(pack(codes), scale, scale_2), expected


@pytest.mark.parametrize("scale", SCALES)
def test_every_e4m3_code_is_read_as_its_bits_say(scale):
    scale = torch.tensor(scale)
    codes = np.arange(256).reshape(16, 16)
    weight = torch.from_numpy(codes.astype(np.uint8)).view(torch.float8_e4m3fn)
    for shape in ((), (1,)):
        assert_same_bits(FP8(weight, scale.view(shape)), E4M3[codes] * float(scale))


@pytest.mark.parametrize("scale_2", SCALES)
def test_every_e2m1_code_under_every_block_scale_is_read_as_its_bits_say(scale_2):
    codes = np.tile(np.arange(16), (256, 1))
    assert_same_bits(*nvfp4(codes, np.arange(256)[:, None], scale_2))


def test_the_low_four_bits_are_the_even_column():
    one = torch.ones(1, 1).to(torch.float8_e4m3fn)
    weight = NVFP4(
        torch.tensor([[0x21, 0xF7, *[0] * 6]], dtype=torch.uint8), one, torch.tensor(1.0)
    )
    assert weight.to("cpu", torch.bfloat16)[0, :5].tolist() == [0.5, 1.0, 6.0, -6.0, 0.0]


@settings(max_examples=examples(60), deadline=None)
@given(
    n=st.integers(1, 7),
    groups=st.integers(1, 6),
    piece=st.sampled_from((1, 40, 100, 2**18)),
    scale_2=st.floats(0, width=32, allow_infinity=False) | st.sampled_from(SCALES),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_shape_in_any_pieces_is_the_same(n, groups, piece, scale_2, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 16, (n, groups * 16))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modelopt, "CHUNK_WEIGHTS", piece)
        assert_same_bits(*nvfp4(codes, rng.integers(0, 256, (n, groups)), scale_2))
        codes = rng.integers(0, 256, (n, groups))
        weight = torch.from_numpy(codes.astype(np.uint8)).view(torch.float8_e4m3fn)
        scale = torch.tensor(scale_2)
        assert_same_bits(FP8(weight, scale), E4M3[codes] * float(scale))


def test_a_matrix_of_several_slices_is_whole():
    rng = np.random.default_rng(0)
    n, k = 401, 1040
    assert n * k > modelopt.CHUNK_WEIGHTS
    codes, scales = rng.integers(0, 16, (n, k)), rng.integers(0, 0x7F, (n, k // 16))
    assert_same_bits(*nvfp4(codes, scales, 0.0123))


def test_a_quantised_weight_looks_like_a_tensor():
    weight, scale = torch.zeros(3, 8, dtype=torch.uint8), torch.ones(3, 1).to(torch.float8_e4m3fn)
    four = NVFP4(weight, scale, torch.tensor(1.0))
    eight = FP8(torch.zeros(3, 5).to(torch.float8_e4m3fn), torch.tensor(1.0))
    assert (four.shape, four.dim(), four.numel(), four.nbytes) == ((3, 16), 2, 48, 24 + 3 + 4)
    assert (eight.shape, eight.dim(), eight.numel(), eight.nbytes) == ((3, 5), 2, 15, 15 + 4)
    assert four.dtype == eight.dtype == torch.bfloat16
    assert isinstance(four.shape, torch.Size)
    assert four.to("cpu", torch.float16).dtype == torch.float16


# What a folder says of itself.

MIXED = {
    "quant_algo": "MIXED_PRECISION",
    "quantized_layers": {
        "backbone.layers.0.mixer.in_proj": {"quant_algo": "FP8"},
        "backbone.layers.1.mixer.experts.0.up_proj": {"quant_algo": "NVFP4", "group_size": 16},
        "lm_head": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
    },
}
RECIPES = (
    {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]},
    {"quant_algo": "FP8", "group_size": None},
    {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": []},
    {"quant_algo": "nvfp4", "group_size": None},
    {"quant_algo": "W4A16_NVFP4", "ignore": ["lm_head"], "config_groups": {"group_0": {}}},
    MIXED,
)


def layers(**entry):
    return {"quant_algo": "MIXED_PRECISION", "quantized_layers": {"lm_head": entry}}


def write_sidecar(folder, content):
    (folder / "hf_quant_config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_modelopt_release_is_detected_by_either_file(recipe, tmp_path):
    for method in ("modelopt", "modelopt_fp8", "modelopt_fp4", "modelopt_mixed"):
        assert detect_modelopt(tmp_path, {"quant_method": method} | recipe)
    assert detect_modelopt(tmp_path, {"quant_method": "modelopt", "quantization": recipe})
    producer = {"name": "modelopt", "version": "0.29.0"}
    write_sidecar(tmp_path, {"producer": producer, "quantization": recipe})
    assert detect_modelopt(tmp_path, None)


def test_a_folder_that_says_nothing_is_not_quantised(tmp_path):
    assert detect_modelopt(tmp_path, None) is False


UNREAD_ALGOS = (
    *("W8A8_SQ_PER_CHANNEL", "FP8_PB_WO", "fp8_pb_wo", "MXFP8", "FP8_PER_CHANNEL_PER_TOKEN"),
    *("NVFP4_AWQ", "NVFP4_SVD", "W4A16_AWQ", "W4A8_NVFP4_FP8", "INT4", "", None, 4, [], {}, True),
    ["NVFP4"] * 1000,
)
ALL = "supported: FP8, NVFP4, W4A16_NVFP4"


@pytest.mark.parametrize("algo", UNREAD_ALGOS)
def test_another_algorithm_is_refused_by_name(algo, tmp_path):
    shown = repr(algo.upper() if isinstance(algo, str) else algo)[:80]
    for recipe, key, supported in (
        ({"quant_algo": algo}, "quant_algo", ALL + ", MIXED_PRECISION"),
        (layers(quant_algo=algo), "quantized_layers.lm_head.quant_algo", ALL),
    ):
        with pytest.raises(ValueError) as error:
            detect_modelopt(tmp_path, {"quant_method": "modelopt"} | recipe)
        message = f"{tmp_path}/config.json: {key} {shown} is not supported; {supported}"
        assert str(error.value) == message
        write_sidecar(tmp_path, {"producer": {"name": "modelopt"}, "quantization": recipe})
        with pytest.raises(ValueError) as error:
            detect_modelopt(tmp_path, None)
        assert str(error.value) == message.replace("/config.json", "/hf_quant_config.json")


@pytest.mark.parametrize(
    "method", ["gptq", "awq", "fp8", "compressed-tensors", "bitsandbytes", "MODELOPT", None, 3, []]
)
def test_another_method_is_refused_by_name(method, tmp_path):
    message = "quant_method .* is not supported; supported: modelopt, modelopt_fp8"
    with pytest.raises(ValueError, match=f"config.json: quantization_config.{message}"):
        detect_modelopt(tmp_path, {"quant_method": method, "quant_algo": "FP8"})
    write_sidecar(tmp_path, {"producer": {"name": method}, "quantization": {"quant_algo": "FP8"}})
    message = "producer.name .* is not supported; supported: modelopt$"
    with pytest.raises(ValueError, match=f"hf_quant_config.json: {message}"):
        detect_modelopt(tmp_path, None)


@pytest.mark.parametrize("size", [8, 32, 128, 0, -16, "16", 16.5, [16], {}, True])
@pytest.mark.parametrize("algo", ["NVFP4", "W4A16_NVFP4"])
def test_another_group_size_is_refused(size, algo, tmp_path):
    for recipe, key in (
        ({"quant_algo": algo, "group_size": size}, "group_size"),
        (layers(quant_algo=algo, group_size=size), "quantized_layers.lm_head.group_size"),
    ):
        with pytest.raises(ValueError) as error:
            detect_modelopt(tmp_path, {"quant_method": "modelopt"} | recipe)
        assert f"json: {key} {size!r} is not supported; supported: 16" in str(error.value)


@pytest.mark.parametrize("bad", [[], "NVFP4", 1, True, False, 0, "", ["x"] * 1000])
def test_json_of_another_layout_is_refused(bad, tmp_path):
    mixed = {"quant_algo": "MIXED_PRECISION"}
    for config, key in (
        (bad, "quantization_config"),
        ({"quant_method": "modelopt", "quantization": bad}, "quantization"),
        ({"quant_method": "modelopt", **mixed, "quantized_layers": bad}, "quantized_layers"),
        (
            {"quant_method": "modelopt", **mixed, "quantized_layers": {"lm_head": bad}},
            "quantized_layers.lm_head",
        ),
    ):
        with pytest.raises(ValueError) as error:
            detect_modelopt(tmp_path, config)
        assert f"json: {key} is {repr(bad)[:80]}; it must be an object" in str(error.value)
    for content, key in (
        ({"producer": bad}, "producer"),
        ({"producer": {"name": "modelopt"}, "quantization": bad}, "quantization"),
    ):
        write_sidecar(tmp_path, content)
        with pytest.raises(ValueError) as error:
            detect_modelopt(tmp_path, None)
        assert f"json: {key} is {repr(bad)[:80]}; it must be an object" in str(error.value)


def test_layers_of_a_mixture_must_be_named(tmp_path):
    with pytest.raises(ValueError, match="quantized_layers is None; it must be an object"):
        detect_modelopt(tmp_path, {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"})
    with pytest.raises(ValueError, match="lm_head.quant_algo 'MIXED_PRECISION' is not supported"):
        detect_modelopt(
            tmp_path, {"quant_method": "modelopt"} | layers(quant_algo="MIXED_PRECISION")
        )


def test_a_broken_sidecar_is_refused(tmp_path):
    (tmp_path / "hf_quant_config.json").write_text("{")
    with pytest.raises(ValueError, match="hf_quant_config.json: not valid JSON"):
        detect_modelopt(tmp_path, None)
    write_sidecar(tmp_path, {})
    with pytest.raises(ValueError, match="producer is None; it must be an object"):
        detect_modelopt(tmp_path, None)


# Tensors.


def fp8_parts(n=4, k=5):
    return {
        "a.weight": torch.ones(n, k).to(torch.float8_e4m3fn),
        "a.weight_scale": torch.tensor(0.5),
    }


def nvfp4_parts(n=4, k=32):
    return {
        "a.weight": torch.full((n, k // 2), 0x21, dtype=torch.uint8),
        "a.weight_scale": torch.ones(n, k // 16).to(torch.float8_e4m3fn),
        "a.weight_scale_2": torch.tensor(0.5),
    }


def test_what_is_not_quantised_passes_as_it_is():
    tensors = {
        "lm_head.weight": torch.ones(2, 3, dtype=torch.bfloat16),
        "mtp.layers.0.norm.weight": torch.ones(3),
        "strange": torch.ones(3, dtype=torch.uint8),
        "e5m2.weight": torch.ones(2, 2).to(torch.float8_e5m2),
        "a.bias": torch.ones(2).to(torch.float8_e4m3fn),
    }
    joined, unused_scales = join_scales(tensors)
    assert joined.keys() == tensors.keys() and unused_scales == {}
    assert all(joined[name] is tensor for name, tensor in tensors.items())


def test_a_scale_of_one_number_may_have_a_dimension():
    parts = nvfp4_parts() | {"a.weight_scale_2": torch.ones(1)}
    assert join_scales(parts)[0]["a.weight"].to("cpu", torch.bfloat16)[0, :2].tolist() == [0.5, 1.0]
    parts = fp8_parts() | {"a.weight_scale": torch.full((1,), 0.25)}
    assert (join_scales(parts)[0]["a.weight"].to("cpu", torch.bfloat16) == 0.25).all()


def test_scales_of_activations_and_the_cache_are_ignored_wherever_they_are():
    scales = {"a.input_scale": torch.ones(()), "mtp.b.k_scale": torch.ones(3)}
    assert join_scales(scales) == ({}, {"a.input_scale": 4, "mtp.b.k_scale": 12})


F8 = torch.float8_e4m3fn
BROKEN = (
    # What is wrong, the parts, what is changed (None: taken away), and the message.
    (fp8_parts, {"a.weight_scale": None}, "a.weight is quantised, but a.weight_scale is not there"),
    (nvfp4_parts, {"a.weight_scale": None}, "a.weight is quantised, but a.weight_scale is not"),
    (nvfp4_parts, {"a.weight_scale_2": None}, "a.weight is quantised, but a.weight_scale_2 is not"),
    (
        nvfp4_parts,
        {"a.weight_scale": None, "a.weight_scale_2": None},
        "a.weight is quantised, but a.weight_scale is not there",
    ),
    (
        fp8_parts,
        {"a.weight": None},
        "a.weight_scale scales nothing: a.weight is not there; float8_e4m3fn has a weight_scale, "
        "uint8 a weight_scale and a weight_scale_2",
    ),
    (fp8_parts, {"a.weight": torch.ones(4, 5)}, "scales nothing: a.weight is float32 [4, 5];"),
    (fp8_parts, {"a.weight": torch.ones(4, 5).to(torch.float8_e5m2)}, "is float8_e5m2 [4, 5];"),
    (fp8_parts, {"a.weight": torch.ones(4, 5, dtype=torch.int8)}, "a.weight is int8 [4, 5];"),
    (fp8_parts, {"a.weight_scale_2": torch.tensor(1.0)}, "a.weight_scale_2 scales nothing: a."),
    (fp8_parts, {"b.weight_scale": torch.tensor(1.0)}, "b.weight_scale scales nothing: b.weight"),
    (nvfp4_parts, {"mtp.b.weight_scale_2": torch.tensor(1.0)}, "mtp.b.weight_scale_2 scales noth"),
    (fp8_parts, {"weight_scale": torch.tensor(1.0)}, "weight_scale scales nothing: weight is not"),
    *(
        (
            fp8_parts,
            {"a.weight_scale": scale},
            f"a.weight_scale is {found}; it must be one float32, [] or [1]",
        )
        for scale, found in (
            (torch.ones(4), "float32 [4]"),
            (torch.ones(4, 1), "float32 [4, 1]"),
            (torch.ones(1, 1), "float32 [1, 1]"),
            (torch.ones(0), "float32 [0]"),
            (torch.ones((), dtype=torch.bfloat16), "bfloat16 []"),
            (torch.ones(()).to(F8), "float8_e4m3fn []"),
        )
    ),
    (
        nvfp4_parts,
        {"a.weight_scale_2": torch.ones(4)},
        "a.weight_scale_2 is float32 [4]; it must be one float32, [] or [1]",
    ),
    *(
        (
            nvfp4_parts,
            {"a.weight_scale": scale},
            f"a.weight_scale is {found}; of a.weight [4, 16] it must be float8_e4m3fn [4, 2], "
            "a scale for 16 columns",
        )
        for scale, found in (
            (torch.ones(4, 1).to(F8), "float8_e4m3fn [4, 1]"),
            (torch.ones(4, 4).to(F8), "float8_e4m3fn [4, 4]"),
            (torch.ones(2, 4).to(F8), "float8_e4m3fn [2, 4]"),
            (torch.ones(8).to(F8), "float8_e4m3fn [8]"),
            (torch.ones(4, 2), "float32 [4, 2]"),
            (torch.ones(4, 2, dtype=torch.uint8), "uint8 [4, 2]"),
        )
    ),
    (
        nvfp4_parts,
        {"a.weight": torch.ones(4, 12, dtype=torch.uint8)},
        "a.weight packs 24 columns, not a multiple of 16",
    ),
    (
        nvfp4_parts,
        {"a.weight": torch.ones(2, 4, 16, dtype=torch.uint8)},
        "a.weight is uint8 [2, 4, 16]; quantised weights have two dimensions",
    ),
    (fp8_parts, {"a.weight": torch.ones(2, 4, 5).to(F8)}, "a.weight is float8_e4m3fn [2, 4, 5];"),
    (fp8_parts, {"a.weight": torch.ones(4).to(F8)}, "a.weight is float8_e4m3fn [4]; quantised"),
)


@pytest.mark.parametrize(("parts", "change", "message"), BROKEN)
def test_scales_that_do_not_fit_are_refused_by_name(parts, change, message):
    tensors = {name: t for name, t in (parts() | change).items() if t is not None}
    with pytest.raises(ValueError) as error:
        join_scales(tensors)
    assert message in str(error.value)


# A whole checkpoint.


def quantise_fp8(weight):
    scale = weight.abs().max() / 448
    return (weight / scale).to(F8), {"scale": scale}


def quantise_nvfp4(weight):
    """To the nearest code, the scales as ModelOpt's calibration by maximum chooses them."""
    blocks = weight.unflatten(-1, (-1, 16))
    scale_2 = weight.abs().max() / (6 * 448)
    scale = (blocks.abs().amax(-1) / 6 / scale_2).to(F8)
    steps = blocks / (scale.float() * scale_2)[..., None]
    codes = (steps[..., None] - torch.tensor(E2M1)).abs().argmin(-1).flatten(1)
    return pack(codes.numpy()), {"scale": scale, "scale_2": scale_2}


def values(weight, parts):
    """Quantised parts as float64, by the tables of this file."""
    scale = parts["scale"]
    if weight.dtype == F8:
        return E4M3[weight.view(torch.uint8).numpy()] * float(scale)
    codes = np.stack((weight.numpy() & 15, weight.numpy() >> 4), axis=-1).reshape(len(weight), -1)
    scales = E4M3[scale.view(torch.uint8).numpy()].repeat(16, axis=1)
    return E2M1[codes] * scales * float(parts["scale_2"])


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A mixed release of a small Nemotron-H, the bfloat16 folder of its values, and of both the
    parts: the tensors released, those quantised from, the float64 values, and what is not used."""
    packed, plain = (tmp_path_factory.mktemp(name) for name in ("packed", "plain"))
    sizes = {"hidden_size": 48, "moe_intermediate_size": 32, "moe_latent_size": 16}
    random_nemotron_h(2, **sizes).bfloat16().save_pretrained(plain)
    original = load_file(plain / "model.safetensors")
    tensors, expected, unused = {}, {}, {}
    for name, tensor in original.items():
        module, _, leaf = name.rpartition(".")
        kind = module.rpartition(".")[2]
        if ".experts." in name and leaf == "weight":
            tensor, parts = quantise_nvfp4(tensor.float())
        elif kind in ("in_proj", "out_proj") and leaf == "weight":
            tensor, parts = quantise_fp8(tensor.float())
        else:
            parts = {}
        tensors[name] = tensor
        tensors |= {f"{name}_{scale}": part for scale, part in parts.items()}
        if parts:
            unused[f"{module}.input_scale"] = 4
            expected[name] = values(tensor, parts)
        if kind in ("k_proj", "v_proj") and leaf == "weight":
            unused[f"{module}.{kind[0]}_scale"] = 4
    tensors |= {name: torch.tensor(0.1) for name in unused}
    save_file(tensors, packed / "model.safetensors")
    exact = {
        name: torch.from_numpy(rounded(value, torch.bfloat16).astype(np.uint32).view(np.float32))
        for name, value in expected.items()
    }
    exact = {name: value.bfloat16() for name, value in exact.items()}
    save_file(original | exact, plain / "model.safetensors")
    config = json.loads((plain / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "modelopt"} | MIXED
    (packed / "config.json").write_text(json.dumps(config))
    return packed, plain, tensors, original, expected, unused


def test_a_mixed_nemotron_h_is_joined_whole(release):
    _, _, tensors, original, expected, unused = release
    # In any order, as they may be in other shards.
    tensors = {name: tensors[name] for name in sorted(tensors, key=lambda name: name[::-1])}
    joined, unused_scales = join_scales(tensors)
    assert joined.keys() == original.keys() and unused_scales == unused
    kinds = [type(joined[name]) for name in expected]
    assert kinds.count(NVFP4) >= 16 and kinds.count(FP8) >= 2 and len(unused) > len(expected)
    for name, tensor in joined.items():
        assert tensor.shape == original[name].shape
        if name in expected:
            assert_same_bits(tensor, expected[name])
            # Near what was quantised: half of e2m1's widest step is a sixth of its largest number.
            difference = tensor.to("cpu", torch.float32) - original[name].float()
            assert difference.abs().max() < 0.2 * original[name].float().abs().max()
        else:
            assert tensor is tensors[name]
    stored = sum(tensor.nbytes for tensor in joined.values()) + sum(unused_scales.values())
    assert stored == sum(tensor.nbytes for tensor in tensors.values())


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_a_release_loads_as_the_bfloat16_folder_of_its_values(release, dtype):
    packed, plain, *_, unused = release
    ours, theirs = (nanomodels.load(folder, dtype=torch.bfloat16) for folder in (packed, plain))
    if dtype is None:
        default = nanomodels.load(packed)
        assert all(map(torch.equal, default.parameters(), ours.parameters()))
    else:  # rounded to no bfloat16
        wide = dict(nanomodels.load(packed, dtype=dtype).named_parameters())
        assert all(torch.equal(wide[n].to(p.dtype), p) for n, p in ours.named_parameters())
    pairs = zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
    for (name, our), (same, their) in pairs:
        assert name == same and our.dtype == their.dtype and torch.equal(our, their)
    assert ours.skipped == unused and theirs.skipped == {}
    ids = torch.arange(20).view(2, 10)
    assert torch.equal(ours(ids), theirs(ids))


@pytest.mark.parametrize("layout", ["nanomodels", "hf"])
def test_a_release_is_converted_to_the_bfloat16_of_its_values(release, tmp_path, capsys, layout):
    packed, plain, *_ = release
    target = tmp_path / "ours"
    assert convert_hf.main([str(packed), str(target), "--to", layout, "--verify"]) == 0
    said = capsys.readouterr().out
    assert "NVFP4" in said and "FP8" in said and "*.input_scale, *.k_scale, *.v_scale" in said
    assert "quantization_config" not in json.loads((target / "config.json").read_text())
    ours, theirs = nanomodels.load(target), nanomodels.load(plain)
    assert ours.skipped == {}
    for (name, our), (same, their) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert name == same and our.dtype == their.dtype and torch.equal(our, their)
