"""The whole chain on the built-in corpus: corpus -> shards -> training -> checkpoint -> evaluation -> tags -> report.

The command is sigrl_core/cli/quickstart.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed

from sigrl_core.cli.quickstart import main

if __name__ == "__main__":
    main()
