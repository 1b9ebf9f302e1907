"""Shards -> the configuration that does best on them.

The command is sigrl_core/cli/tune.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.cli.tune import main

if __name__ == "__main__":
    main()
