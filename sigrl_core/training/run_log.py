"""The log of a training: metrics.jsonl with one line per epoch, and TensorBoard with the same metrics and images."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from sigrl_core.io import storage
from sigrl_core.training.state import Metrics
from sigrl_core.training.trainer import Example

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Writes the log of one run.

    Args:
        out: the run's folder, local or s3://.
        step: number of steps before; entries of later steps are dropped.
    """

    def __init__(self, out: str, step: int) -> None:
        self.out = out
        filesystem, path = storage.filesystem_for(out)
        self._upload = filesystem.type_name != "local"
        self._local = Path(tempfile.mkdtemp() if self._upload else path)
        self._writer = SummaryWriter(str(self._local / "tensorboard"), purge_step=step)
        self.history = read_metrics(out) if step else []

    def log_step(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"step/{name}", value, step)

    def log_epoch(self, metrics: Metrics, examples: Sequence[Example] = ()) -> None:
        epoch = int(metrics["epoch"])
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, epoch)
        for uri, label, pixels_HWC in examples:
            self._writer.add_image(f"images/{uri}", pixels_HWC, epoch, dataformats="HWC")
            self._writer.add_text(f"images/{uri}", label, epoch)
        self._writer.flush()
        self.history = [*(line for line in self.history if line["epoch"] < metrics["epoch"]), metrics]
        lines = (json.dumps(line, sort_keys=True) + "\n" for line in self.history)
        storage.write_bytes(storage.join(self.out, METRICS_FILE), "".join(lines).encode())
        if self._upload:
            for path in (self._local / "tensorboard").iterdir():
                storage.write_bytes(storage.join(self.out, "tensorboard", path.name), path.read_bytes())


def read_metrics(out: str) -> list[Metrics]:
    """Reads the metrics of every logged epoch of a run's folder."""
    where = storage.join(out, METRICS_FILE)
    return [json.loads(line) for line in storage.read_bytes(where).splitlines()] if storage.exists(where) else []
