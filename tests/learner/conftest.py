"""One torch thread: the machine is shared, and bits must not depend on it."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
