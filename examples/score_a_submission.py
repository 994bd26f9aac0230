"""Score a submission, with its error bar: ``python examples/score_a_submission.py train.csv submission.csv``."""

import sys

import numpy as np

from lumbar.metric import align_submission, read_labels, read_table, score_arrays

N_BOOTSTRAP = 1000


def main(solution: str, submission: str) -> None:
    """Print the metric, its four terms, and the total's 95 % bootstrap interval over studies."""
    study_ids, labels = read_labels(read_table(solution, "the solution"))
    probs = align_submission(read_table(submission, "a submission"), study_ids)
    result = score_arrays(labels, probs)
    for name in ("spinal", "foraminal", "subarticular", "any_severe"):
        print(f"{name:<13}{getattr(result, name):.4f}")
    rng = np.random.default_rng(0)
    draws = rng.integers(len(labels), size=(N_BOOTSTRAP, len(labels)))
    totals = [score_arrays(labels[draw], probs[draw]).total for draw in draws]
    low, high = np.percentile(totals, [2.5, 97.5])
    print(f"{'total':<13}{result.total:.4f} (95 % interval {low:.4f} to {high:.4f}, {len(labels)} studies)")


if __name__ == "__main__":
    sys.exit(__doc__) if len(sys.argv) != 3 else main(*sys.argv[1:])
