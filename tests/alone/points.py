"""A task that uses the core alone: a torch Dataset, a plain module, and a metric of its own."""

import hashlib
from dataclasses import dataclass

import torch
from torch import nn

from ftloop import Task


class Points(torch.utils.data.Dataset):
    def __init__(self, points, labels, weights):
        self.points, self.labels, self.weights = points, labels, weights
        content = b"".join(tensor.numpy().tobytes() for tensor in (points, labels, weights))
        self.fingerprint = hashlib.sha256(content).hexdigest()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, row):
        return self.points[row] + torch.randn(4) / 10, self.labels[row], self.weights[row]


class Accuracy:
    def __init__(self):
        self.rows, self.correct = [], []

    def add_batch(self, predictions, references):
        self.rows += predictions[:, 1].tolist()
        self.correct += (predictions[:, 0] == references).tolist()

    def compute(self):
        accuracy = sum(self.correct) / len(self.correct)
        return {"accuracy": accuracy, "rows": len(self.rows), "distinct": len(set(self.rows))}


@dataclass(frozen=True)
class PointTask(Task):
    dropout: float = 0.2

    def load_datasets(self):
        return {split: Points(*rows) for split, rows in torch.load("points.pt").items()}

    def build_model(self):
        layers = nn.Linear(4, 16), nn.Tanh(), nn.Dropout(self.dropout), nn.Linear(16, 3)
        return nn.Sequential(*layers).double()

    def collate(self, examples):
        points, labels, weights = map(torch.stack, zip(*examples, strict=True))
        return {"input": points, "labels": labels, "weights": weights}

    def losses(self, outputs, batch):
        return nn.functional.cross_entropy(outputs, batch["labels"], reduction="none")

    def predict(self, outputs, batch):
        return {"predictions": torch.stack([outputs.argmax(dim=1), batch["row_ids"]], dim=1)}

    def build_metrics(self):
        return [Accuracy()]
