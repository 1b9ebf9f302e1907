"""checkpoint x held-out labelled shards -> probabilities and thresholds, written into the checkpoint.

The command is sigrl_core/cli/calibrate.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.cli.calibrate import main

if __name__ == "__main__":
    main()
