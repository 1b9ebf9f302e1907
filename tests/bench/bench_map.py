"""Mean average precision over the size of NUS-WIDE's test: 50,000 images, 1,006 labels.

python tests/bench/bench_map.py
python tests/bench/bench_map.py --quick

The peer is scikit-learn's average_precision_score, label by label, on a part of the labels in the same run; both must
agree. Prints seconds, and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from sigrl_core.metrics import average_precision, mean_average_precision

PEER_LABELS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the images")
    images, labels = (5_000 if parser.parse_args().quick else 50_000), 1_006
    rng = np.random.default_rng(0)
    scores_NC = rng.normal(size=(images, labels)).astype(np.float32)
    states_NC = np.where(rng.random((images, labels)) < 0.02, 1, -1).astype(np.int8)
    started = time.monotonic()
    found = mean_average_precision(scores_NC, states_NC)
    ours = time.monotonic() - started
    started = time.monotonic()
    peer_C = [average_precision_score(states_NC[:, c] > 0, scores_NC[:, c]) for c in range(PEER_LABELS)]
    peer = (time.monotonic() - started) * labels / PEER_LABELS
    difference = float(np.abs(average_precision(scores_NC[:, :PEER_LABELS], states_NC[:, :PEER_LABELS]) - peer_C).max())
    if difference > 1e-9:
        sys.exit(f"differs from scikit-learn by {difference}")
    print(f"{images:,} images x {labels:,} labels: mAP {100 * found:.2f} % in {ours:.2f} s")
    print(f"scikit-learn, from {PEER_LABELS} labels: {peer:.2f} s, {peer / ours:.1f} times as long")
    figures = {"pictures": images, "labels": labels, "seconds": round(ours, 2), "scikit_learn": round(peer, 2)}
    print(json.dumps({**figures, "ratio": round(peer / ours, 2), "largest_difference": difference}))


if __name__ == "__main__":
    main()
