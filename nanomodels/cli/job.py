"""generate.py under torchrun: several processes, the ranks, run one model (linears/parallel.py).

All run the same code. Rank 0 reads what is typed or piped, and all files but the model's, and tells
the others. It alone writes: the others' stdout and stderr go nowhere, so that they may report as it
does. Of errors the first one is written, whichever rank has it.

torchrun turns Ctrl-C into a signal to each rank, which then leaves at once.
"""

import functools
import json
import os
import sys
from datetime import timedelta

from nanomodels.text.files import one_line, say

# A rank waits so long for another, which waits for what somebody types. When a process ends,
# torchrun ends the others.
PATIENCE = timedelta(days=30)


@functools.cache
def this_job():
    """The Job of this process."""
    return Job()


class Job:
    """The processes of this run; without torchrun there is one."""

    def __init__(self, environment=os.environ):
        launched = {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environment.keys()
        self.rank = int(environment["RANK"]) if launched else 0
        self.count = int(environment["WORLD_SIZE"]) if launched else 1
        self.local_rank = int(environment.get("LOCAL_RANK", 0)) if launched else 0
        self.local_count = int(environment.get("LOCAL_WORLD_SIZE", self.count))
        self.store, self.keys, self.stderr = None, 0, sys.stderr
        if self.rank:
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115

    @property
    def is_parallel(self):
        return self.count > 1

    @property
    def ranks(self):
        """The parallel.Ranks; None if the model is whole here."""
        from nanomodels.linears.parallel import Ranks

        return Ranks(self.rank, self.count) if self.is_parallel else None

    def meet(self):
        """Find the store, through which processes talk before they are a process group."""
        if self.is_parallel:
            import torch.distributed as dist

            self.store, *_ = next(iter(dist.rendezvous("env://")))

    def device(self, kind):
        """The device of this process, for "cpu" or "cuda"."""
        return f"cuda:{self.local_rank}" if kind == "cuda" and self.is_parallel else kind

    def connect(self, kind):
        """Begin the process group, for models on "cpu" or "cuda"."""
        if not self.is_parallel:
            return
        import torch
        import torch.distributed as dist

        if kind == "cuda":
            torch.cuda.set_device(self.local_rank)
        elif os.environ.get("OMP_NUM_THREADS") == "1":  # torchrun's default
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // self.local_count))
        dist.init_process_group(
            "nccl" if kind == "cuda" else "gloo",
            store=self.store,
            rank=self.rank,
            world_size=self.count,
            timeout=PATIENCE,
        )

    def shared(self, make):
        """What make() returns on rank 0, which JSON can say; its ValueError or EOFError as well."""
        if not self.is_parallel:
            return make()
        told = {}
        if self.rank == 0:
            try:
                told["value"] = make()
            except EOFError:
                told["end"] = True
            except (ValueError, OSError) as error:
                told["error"] = one_line(error)
        told = json.loads(self.broadcast(json.dumps(told)))
        if "end" in told:
            raise EOFError
        if "error" in told:
            raise ValueError(told["error"])
        return told["value"]

    def broadcast(self, text):
        """Rank 0's text, on every rank."""
        key = self.next_key()
        if self.rank == 0:
            self.store.set(key, text)
            return text
        self.store.wait([key], PATIENCE)
        return self.store.get(key).decode()

    def largest(self, number):
        """On rank 0 the largest of all ranks' whole numbers."""
        if not self.is_parallel:
            return number
        keys = [f"{key}/{n}" for key in [self.next_key()] for n in range(self.count)]
        self.store.set(keys[self.rank], str(number))
        if self.rank:
            return number
        self.store.wait(keys, PATIENCE)
        return max(int(self.store.get(key)) for key in keys)

    def next_key(self):
        """A key of the store; on each rank the n-th call gives the same."""
        self.keys += 1
        return f"nanomodels/{self.keys}"

    def speak(self, line):
        """Write an error, unless another process has."""
        if self.store is None:
            say(line)
        elif self.store.add("nanomodels/errors", 1) == 1:
            sys.stderr = self.stderr
            say(line)
