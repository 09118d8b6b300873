"""Tasks: classify texts, images and tokens; their batches, losses, metrics and predictions."""

from ftloop.tasks.classification import Classification
from ftloop.tasks.image import ImageClassification
from ftloop.tasks.predictor import Predictor, build_predictor
from ftloop.tasks.pretrained import PretrainedTask
from ftloop.tasks.rows import DataTask
from ftloop.tasks.text import TextTask
from ftloop.tasks.text_classification import TextClassification
from ftloop.tasks.token_classification import TokenClassification

__all__ = [
    "Classification",
    "DataTask",
    "ImageClassification",
    "Predictor",
    "PretrainedTask",
    "TextClassification",
    "TextTask",
    "TokenClassification",
    "build_predictor",
]
