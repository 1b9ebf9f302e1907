"""Checks every key of a reference file against the package.

    python tests/parity/check_reference.py tests/parity/sigrl_reference.npz [--strict]

Prints one line per key: the norm of the difference over the norm of the reference, and `ok` or `FAIL`. Exit status 1
where a key is beyond its bound or the file cannot be used; with --strict also where the package has no counterpart yet.

A bound is relative, plus 1e-12 absolute (gradients of the coefficient biases are zero up to rounding). Two metrics were
computed in float32 by the reference itself and cannot agree closer: F1 at k, and average precision, whose sum of
precisions is float32.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sigrl_core.config import GraphConfig, LossConfig, ReconstructionConfig, ScoringConfig
from sigrl_core.metrics import average_precision, precision_recall_f1_at_k
from sigrl_core.model.label_set import LabelSet
from sigrl_core.model.sigrl import SigRL
from sigrl_core.training.losses import LOSSES, BatchReducer, Targets
from sigrl_core.training.optim import compute_learning_rate

MODULES = {
    "semantic": "semantic",
    "recon": "reconstruction",
    "gat1": "graph.layers.0",
    "gat2": "graph.layers.1",
}
"""Reference name -> ours."""
GROUP_INPUTS = {"patch", "glob", "labels", "cotangent", "topk", "heads"}
SPML_INPUTS = ("logits", "true", "observed", "pseudo", "soft_observed", "estimator_logits")
SPML_LOSSES = {
    **{name: name for name in ("an", "an_ls", "wan", "epr", "role")},
    **{"EM": "em", "EM_PL": "em_pl", "EM_APL": "em_apl", "iun": "bce", "pr": "pairwise"},
}
"""Reference name -> ours."""
SPML_CONSTANTS = LossConfig(entropy_weight=0.2, soft_weight=0.02, pseudo_weight=0.7, expected_positives=2.9)
LOSS_INPUTS = {
    "rank_scores",
    "rank_labels",
    "metric_scores",
    "metric_labels",
    *(f"spml_{name}" for name in SPML_INPUTS),
}
RELATIVE, ABSOLUTE = 1e-9, 1e-12
RELATIVE_OF = {"loss/metric_ap": 2.0**-22, "loss/metric_f1": 1e-6}
Arrays = dict[str, NDArray]


def is_input(key: str) -> bool:
    group, name = key.split("/", 1)
    if group == "loss":
        return name in LOSS_INPUTS
    return name in ({"lr_epochs"} if group == "lr" else GROUP_INPUTS) or name.startswith("param:")


def ours(arrays: Arrays) -> Arrays:
    """What the package makes of the inputs in the file, under the file's keys; may hold more keys than the file."""
    values: Arrays = {}
    for group in sorted({key.split("/", 1)[0] for key in arrays}):
        inside = {key.split("/", 1)[1]: array for key, array in arrays.items() if key.startswith(group + "/")}
        compute = {"loss": losses_and_metrics, "lr": schedule}.get(group, model_group)
        values |= {f"{group}/{name}": value for name, value in compute(inside)}
    return values


def model_group(arrays: Arrays) -> Iterator[tuple[str, NDArray]]:
    """Forward pass of one model, then the gradients of sum(logits * cotangent)."""
    if "patch" not in arrays:
        return
    model = load_model(arrays)
    patches, glob, labels = (torch.from_numpy(arrays[name]).requires_grad_() for name in ("patch", "glob", "labels"))
    scores = model(patches, glob, LabelSet(labels))
    outputs = {
        "graph_embed": model.graph(labels),
        "semantic": model.semantic(patches, labels),
        "reconstructed": model.reconstruct(patches, LabelSet(labels)),
        "local_score": scores.local_BC,
        "global_score": scores.global_BC,
        "logits": scores.logits_BC,
    }
    yield from ((name, tensor.detach().numpy()) for name, tensor in outputs.items())
    (scores.logits_BC * torch.from_numpy(arrays["cotangent"])).sum().backward()
    for name, tensor in {"grad_patch": patches, "grad_glob": glob, "grad_labels": labels}.items():
        yield name, gradient(tensor)
    parameters = dict(model.named_parameters())
    for name in arrays:
        if name.startswith("param:"):
            yield name.replace("param:", "grad:"), gradient(parameters[our_name(name)])


def load_model(arrays: Arrays) -> SigRL:
    """The model whose weights are the `param:` arrays, in float64, dropout off."""
    hidden, dim = arrays["param:gat1.linear.weight"].shape
    graph = GraphConfig(hidden=hidden, heads=int(arrays["heads"]))
    model = SigRL(dim, graph, ReconstructionConfig(), ScoringConfig(top_k_patches=int(arrays["topk"]))).double().eval()
    weights = {our_name(name): torch.from_numpy(array) for name, array in arrays.items() if name.startswith("param:")}
    model.load_state_dict(weights)
    return model


def our_name(parameter: str) -> str:
    module, rest = parameter.removeprefix("param:").split(".", 1)
    return f"{MODULES[module]}.{rest}"


def gradient(tensor: torch.Tensor) -> NDArray:
    return (torch.zeros_like(tensor) if tensor.grad is None else tensor.grad).numpy()


def losses_and_metrics(arrays: Arrays) -> Iterator[tuple[str, NDArray]]:
    if {"rank_scores", "rank_labels"} <= arrays.keys():
        scores = torch.from_numpy(arrays["rank_scores"]).requires_grad_()
        known = Targets(states_BC=torch.from_numpy(arrays["rank_labels"]).to(torch.int8))
        loss = LOSSES["ranking"](scores, known, LossConfig(), BatchReducer())
        loss.backward()
        yield "rank_loss", loss.detach().numpy()
        yield "rank_grad", gradient(scores)
    if {f"spml_{name}" for name in SPML_INPUTS} <= arrays.keys():
        yield from single_positive_losses(arrays)
    if {"metric_scores", "metric_labels"} <= arrays.keys():
        scores, states = arrays["metric_scores"], arrays["metric_labels"]
        yield "metric_ap", average_precision(scores, states)
        for name in arrays:
            if name.startswith("metric_f1@"):
                at_k = precision_recall_f1_at_k(scores, states, int(name.partition("@")[2]))
                yield name, np.array([at_k.f1, at_k.precision, at_k.recall])  # the order of the reference


def single_positive_losses(arrays: Arrays) -> Iterator[tuple[str, NDArray]]:
    for reference, name in SPML_LOSSES.items():
        logits, true, observed, pseudo, soft, estimate = (
            torch.from_numpy(arrays[f"spml_{name}"]).clone() for name in SPML_INPUTS
        )
        states = (observed > 0).to(torch.int8)
        if reference == "iun":  # the upper bound sees the true absences
            states[true == 0] = -1
        known = Targets(
            states_BC=states,
            pseudo_BC=pseudo > 0,
            soft_BC=torch.where(soft < 0, -soft, torch.nan),
            estimate_BC=estimate.requires_grad_(),
        )
        loss = LOSSES[name](logits.requires_grad_(), known, SPML_CONSTANTS, BatchReducer())
        loss.backward()
        yield f"spml_{reference}_loss", loss.detach().numpy()
        yield f"spml_{reference}_grad", gradient(logits)
        if reference == "role":
            yield "spml_role_estimator_grad", gradient(estimate)


def schedule(arrays: Arrays) -> Iterator[tuple[str, NDArray]]:
    """The published recipe: 20 epochs, two of warm-up, peak 1e-4, end 1e-7."""
    recipe = {"peak": 1e-4, "epochs": 20, "warmup_epochs": 2, "final": 1e-7}
    if "lr_epochs" in arrays:
        yield "lr_values", np.array([compute_learning_rate(epoch, **recipe) for epoch in arrays["lr_epochs"]])


def report(arrays: Arrays, strict: bool) -> int:
    """Prints the table; the exit status."""
    computed, failed, missing = ours(arrays), [], []
    expected = [key for key in arrays if not is_input(key)]
    for key in expected:
        if key not in computed:
            missing.append(key)
            continue
        error, holds = compare(key, computed[key], arrays[key])
        print(f"{'ok  ' if holds else 'FAIL'} {error:9.2e}  {key}")
        failed += [] if holds else [key]
    print(f"{len(expected) - len(failed) - len(missing)} agree, {len(failed)} beyond the bound, {len(missing)} missing")
    if missing:
        print(f"not in the package yet: {', '.join(missing)}")
    return int(bool(failed) or (strict and bool(missing)))


def compare(key: str, value: NDArray, reference: NDArray) -> tuple[float, bool]:
    """Relative error, and whether it is within the key's bound; another shape or a nan never is."""
    if value.shape != reference.shape:
        return float("inf"), False
    difference, size = float(np.linalg.norm(value - reference)), float(np.linalg.norm(reference))
    relative = RELATIVE_OF.get(key.partition("@")[0], RELATIVE)
    return difference / size if size else difference, difference <= relative * size + ABSOLUTE


def main() -> int:
    parser = argparse.ArgumentParser(description="Checks every key of a reference file against the package.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--strict", action="store_true", help="a key the package has no counterpart for is a failure")
    arguments = parser.parse_args()
    try:
        with arguments.file.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        if not arrays or any("/" not in key for key in arrays):
            raise ValueError(f"expected keys like tiny/logits, found {sorted(arrays)[:3]}")
        return report(arrays, arguments.strict)
    except (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        print(f"{arguments.file}: not a usable reference file: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
