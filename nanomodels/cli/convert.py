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

from nanomodels.checkpoint.finding import WEIGHTS
from nanomodels.cli.command import Parser, exit_status
from nanomodels.cli.progress import Progress
from nanomodels.cli.start import catch_interrupts

EXAMPLES = """examples:
  {command} ~/models/Minitron-4B-Base
  {command} ~/.cache/nanochat/chatsft_checkpoints/d20 weights/d20 --dtype bfloat16
  {command} nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-NVFP4 --quantize int4 --verify
  {command} weights/d20 ~/models/d20-hf --to hf

Exit status: 0, 2 for bad input, 130 after Ctrl-C, 1 for a fault of this program; with the
environment variable NANOMODELS_TRACEBACK=1 it says where.
"""


def parse_arguments(argv, prog):
    parser = Parser(prog, __doc__, EXAMPLES)
    add = parser.add_argument
    add("src", metavar="SRC", help="folder of the checkpoint, or org/name of the Hub")
    where = "weights/NAME, in the clone or where you are"
    add("dst", type=Path, metavar="DST", nargs="?", help=f"folder to write [{where}]")
    add(
        "--to",
        choices=("nanomodels", "hf"),
        default="nanomodels",
        help="layout: ours, or the Hub's: transformers and vLLM read every family of it; mlx-lm, "
        "llama.cpp and SGLang read Nemotron or Nemotron-H [nanomodels]",
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


def main(argv=None, prog="convert_hf.py"):
    return exit_status(prog, lambda: run(parse_arguments(argv, prog)))


def run(args):
    from nanomodels.checkpoint.convert import convert  # only here, so that --help is fast

    catch_interrupts()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up, as after Ctrl-C
    with Progress("writing: ", "GB") as progress:
        convert(**vars(args), weights=WEIGHTS, progress=progress)
