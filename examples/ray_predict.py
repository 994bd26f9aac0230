"""Predict on a pool of machines with Ray Data: python examples/ray_predict.py DATA WEIGHTS OUT [ACTORS [GPUS]]."""

import sys

from lumbar.run import Collector
from lumbar.workers.predictor import Predictor


class Actor:
    """Holds the networks on one machine of the pool."""

    def __init__(self, data: str, weights: str, chain: object) -> None:
        self.predictor = Predictor(data, weights, chain=chain)

    def __call__(self, batch: dict) -> dict:
        """Predict the studies of a batch."""
        return {"outcome": [self.predictor.text(study_id) for study_id in batch["study_id"].tolist()]}


def main(data: str, weights: str, out: str, actors: str = "1", gpus: str = "0", chain: object = "main") -> None:
    """Predict what the journal beside OUT does not have yet, on ACTORS processes with GPUS GPUs each."""
    import ray  # an extra: python -m pip install -e '.[ray]'

    with Collector(data, weights, out, chain=chain) as run:
        print(f"{len(run.left)} studies to predict")
        if not run.left:
            return
        # One study a block: what is lost with a machine is one study, and another actor does it again
        studies = ray.data.from_items([{"study_id": study} for study in run.left], override_num_blocks=len(run.left))
        outcomes = studies.map_batches(
            Actor, fn_constructor_args=(data, weights, chain), batch_size=1, num_gpus=float(gpus),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=int(actors)), max_restarts=-1, max_task_retries=-1,
        )  # fmt: skip
        for row in outcomes.iter_rows():
            run.add(row["outcome"])


if __name__ == "__main__":
    sys.exit(__doc__) if len(sys.argv) not in (4, 5, 6) else main(*sys.argv[1:])
