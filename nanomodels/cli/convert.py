"""Turn a checkpoint into the layout that loads fastest, or back into the Hub's.

SRC is a folder from the Hub (safetensors or pytorch_model*.bin, in one file or in shards, FP8 and
NVFP4 releases of ModelOpt among them), of a nanochat training run (model_*.pt, meta_*.json and
tokenizer.pkl), or one that this program wrote. DST gets one model.safetensors whose tensors have
the names of our parameters and begin at multiples of 64 bytes, so that loading is a memory map;
config.json, which says where it comes from; tokenizer and chat template. Tensors keep their values
to the bit, unless --dtype or --quantize asks for others; FP8 and NVFP4 become bfloat16.
DST appears when it is whole: until then the work is in a hidden folder beside it.
"""

import signal
import sys
from pathlib import Path

from nanomodels.cli.command import Parser, exit_status
from nanomodels.cli.start import catch_interrupts

EXAMPLES = """examples:
  python convert_hf.py ~/models/Minitron-4B-Base
  python convert_hf.py ~/.cache/nanochat/chatsft_checkpoints/d20 weights/d20 --dtype bfloat16
  python convert_hf.py ~/models/Nemotron-3-Nano-30B-A3B-NVFP4 --quantize int4 --verify
  python convert_hf.py weights/d20 ~/models/d20-hf --to hf

Exit status: 0, 2 for bad input, 130 after Ctrl-C, 1 for a fault of this program; with the
environment variable NANOMODELS_TRACEBACK=1 it says where.
"""
WEIGHTS = Path(__file__).resolve().parents[2] / "weights"


def parse_arguments(argv):
    parser = Parser("convert_hf.py", __doc__, EXAMPLES)
    add = parser.add_argument
    add("src", type=Path, metavar="SRC", help="folder of the checkpoint")
    add("dst", type=Path, metavar="DST", nargs="?", help="folder to write [weights/NAME]")
    add(
        "--to",
        choices=("nanomodels", "hf"),
        default="nanomodels",
        help="layout: ours, or the Hub's, which transformers, vLLM and llama.cpp read [nanomodels]",
    )
    dtypes = ("float32", "bfloat16", "float16")
    add("--dtype", choices=dtypes, help="of the weights [each tensor's own]")
    add("--quantize", choices=("int4", "int8"), help="make the weights of the linears smaller")
    add("--quantize-head", action="store_true", help="with --quantize: the head (lm_head), too")
    add("--step", type=int, metavar="N", help="of a nanochat training run [the highest]")
    add("--era", metavar="DATE", help="of a nanochat training run [told by its tensors]")
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add("--verify", action="store_true", help="read it again: all tensors, and some logits")
    add("--force", action="store_true", help="replace DST if there is a checkpoint")
    return parser.parse_args(argv)


def main(argv=None):
    return exit_status("convert_hf.py", lambda: run(parse_arguments(argv)))


def run(args):
    from nanomodels.checkpoint.convert import convert  # only here, so that --help is fast

    catch_interrupts()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up, as after Ctrl-C
    convert(**vars(args), weights=WEIGHTS)
