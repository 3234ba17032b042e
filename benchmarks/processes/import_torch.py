"""Import PyTorch and end: no program that uses it starts faster."""

import torch  # noqa: F401
