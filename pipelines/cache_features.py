"""shards -> features of a frozen backbone, to train heads on many times faster.

The command is sigrl_core/cli/cache_features.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.cli.cache_features import main

if __name__ == "__main__":
    main()
