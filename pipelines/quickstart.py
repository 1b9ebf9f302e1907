"""The whole chain on the built-in corpus: corpus -> shards -> training -> checkpoint -> evaluation -> tags -> report.

python pipelines/quickstart.py --out runs/quickstart

Draws pictures, trains a small CLIP on captions, SigRL and the MKT-style baseline on labels, measures both beside
zero-shot CLIP, and tags the test pictures. What is done is skipped, so the same command goes on where it stopped.
"""

import sys
from pathlib import Path

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.command_line import print_configuration, run
from sigrl_core.config import QuickstartConfig
from sigrl_core.on_ray.quickstart import quickstart
from sigrl_core.report.headline import print_table


def main() -> None:
    config = tyro.cli(QuickstartConfig, description=__doc__)
    print_configuration(config)
    print(print_table(quickstart(config)))
    print(f"report: {config.out}/report.html, {config.out}/metrics.json; tags: {config.out}/tags/tagging.html")


if __name__ == "__main__":
    run(main)
