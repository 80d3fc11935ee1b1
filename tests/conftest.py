"""Settings that all tests share."""

import signal

import torch

# The models here are tiny: a second thread costs more than it brings.
torch.set_num_threads(1)
# A shell's background job ignores Ctrl-C, and so would the programs that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
