"""Predict rows by pipelines of transformers: python pipelines.py FILE reads and prints JSON.

FILE holds a list of {"kind": the kind of pipeline, "models": {name: folder}, "rows": inputs of a
pipeline}. Printed are, for each of them, {name: [predictions in batches of 1, and of 64 rows]}.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    import transformers

    transformers.logging.set_verbosity_error()
    jobs = json.loads(Path(sys.argv[1]).read_text())
    printed = []
    for job in jobs:
        scores = {}
        for name, folder in job["models"].items():
            predict = transformers.pipeline(job["kind"], model=folder, device="cpu")
            found = [predict(job["rows"], top_k=3, batch_size=size) for size in (1, 64)]
            scores[name] = [
                [{row["label"]: row["score"] for row in rows} for rows in batch] for batch in found
            ]
        printed.append(scores)
    print(json.dumps(printed))


if __name__ == "__main__":
    main()
