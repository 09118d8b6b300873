"""The noise of a row, and the order of rows, are functions of the seed, the epoch and the row."""

import torch
from points import PointTask

from ftloop.loader import make_batch
from ftloop.sampler import random_order

task = PointTask()
train = task.load_datasets()["train"]


def read(*keys, seed=7):
    return make_batch(train, list(keys), task.collate, seed)["input"]


# Neither the other rows of the batch, nor their order, nor what was drawn before, changes a row.
first = read((0, 3))[0]
torch.randn(5)
assert torch.equal(read((0, 5), (0, 3), (0, 8))[1], first)
assert torch.equal(read((0, 3), (0, 5))[0], first)
assert torch.equal(read((0, ~3))[0], first)  # a padding row repeats row 3
# Another epoch, another seed and another row do.
assert not torch.equal(read((1, 3))[0], first)
assert not torch.equal(read((0, 3), seed=8)[0], first)
noise = read((0, 3), (0, 4)) - train.points[3:5]
assert not torch.equal(noise[0], noise[1])

order = list(random_order(train, 7, 1))
assert sorted(order) == list(range(len(train)))
assert list(random_order(train, 7, 0)) != order != list(random_order(train, 8, 1))
assert list(random_order(train, 7, 1)) == order
