"""Fill the memory of the GPU but for a little, run FlowEdge beside it, and print the error as a line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

import torch

from gpu.models import FLOWEDGE

LEFT: Final = 600 << 20  # bytes


def main() -> None:
    bundle, picture = sys.argv[1:]
    free, _ = torch.cuda.mem_get_info()
    held = torch.empty(free - LEFT, dtype=torch.uint8, device="cuda")
    held.fill_(1)
    torch.cuda.synchronize()
    command = [*FLOWEDGE, "run", bundle, picture, "--engine", "onnxruntime-cuda"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    print(json.dumps({"status": done.returncode, "printed": (done.stdout + done.stderr)[-600:]}))


if __name__ == "__main__":
    main()
