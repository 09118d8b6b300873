"""From files to pixels: decoding, unreadable images, relative paths, augmentation, evaluation."""

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest
import torch
from conftest import is_untouched, run_script
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from torchvision.transforms.v2 import functional as F
from transformers import ViTConfig, ViTForImageClassification

from ftloop import Config, UserError
from ftloop.data import Data, checks
from ftloop.data.images import UnreadableImage, decode_image
from ftloop.data.labels import Labels
from ftloop.loader import KeyedDataset, build_dataloader
from ftloop.sampler import TrainSampler
from ftloop.state import temporary_seed
from ftloop.tasks import ImageClassification, build_predictor
from ftloop.tasks.augmentation import AUGMENTATIONS, ImageTransform, parse_augmentations

GREY = numpy.arange(12 * 10, dtype=numpy.uint8).reshape(12, 10) * 2
RED, BLUE, WHITE = [255, 0, 0], [0, 0, 255], [255, 255, 255]


def encoded(image: Image.Image, kind: str = "png", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photo(seed: int, height: int = 40, width: int = 30) -> bytes:
    """A smooth random image."""
    small = numpy.random.default_rng(seed).integers(0, 256, (5, 4, 3), dtype=numpy.uint8)
    return encoded(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


@dataclass(frozen=True)
class Photos(Data):
    """24 images of two classes for train, 6 for validation."""

    def read(self) -> DatasetDict:
        features = Features({"image": Value("binary"), "label": ClassLabel(names=["a", "b", "c"])})
        splits = {}
        for split, first, count in (("train", 0, 24), ("validation", 100, 6)):
            images = [photo(first + row) for row in range(count)]
            labels = [row % 3 for row in range(count)]
            splits[split] = Dataset.from_dict({"image": images, "label": labels}, features)
        return DatasetDict(splits)


def small_vit(**options) -> ImageClassification:
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 8,
    }
    defaults = {"image_size": 16, "data": Photos(), "model_options": sizes}
    return ImageClassification(model="vit", init="random", **{**defaults, **options})


# Decoding


def test_grey_images_of_all_depths_give_the_same_pixels():
    grey = Image.fromarray(GREY)
    deep = Image.fromarray(GREY.astype(numpy.uint16) * 257)
    files = {
        "L": encoded(grey),
        "RGB": encoded(grey.convert("RGB")),
        "16 bits, PNG": encoded(deep),
        "16 bits, TIFF": encoded(deep, "tiff"),
        "32 bits holding 16": encoded(Image.fromarray(GREY.astype(numpy.int32) * 257), "tiff"),
        "32 bits holding 8": encoded(Image.fromarray(GREY.astype(numpy.int32)), "tiff"),
        "float to 255": encoded(Image.fromarray(GREY.astype(numpy.float32)), "tiff"),
        "float to 1": encoded(Image.fromarray(GREY.astype(numpy.float32) / 255), "tiff"),
        "palette": encoded(grey.convert("P")),
    }
    expected = torch.tensor(GREY).expand(3, -1, -1)
    for name, file in files.items():
        pixels = decode_image(file)
        assert (pixels.dtype, tuple(pixels.shape)) == (torch.uint8, (3, 12, 10)), name
        assert torch.equal(pixels, expected), name


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (numpy.array([[0, 300]], numpy.float32), "from 0 to 300, but must be in 0..1 or 0..255"),
        (numpy.array([[-0.5, 0.5]], numpy.float32), "from -0.5 to 0.5"),
        (
            numpy.array([[0, 70_000]], numpy.int32),
            "from 0 to 70000, but must be in 0..255 or 0..65535",
        ),
    ],
)
def test_values_out_of_range_are_not_clipped(values, message):
    file = encoded(Image.fromarray(values), "tiff")
    with pytest.raises(UnreadableImage) as error:
        decode_image(file)
    assert message in str(error.value.__cause__)


def test_one_bit_is_black_and_white():
    pixels = decode_image(encoded(Image.fromarray(GREY > 100)))
    expected = torch.tensor(GREY > 100).expand(3, -1, -1) * torch.tensor(255, dtype=torch.uint8)
    assert torch.equal(pixels, expected)


def test_transparency_becomes_white():
    rgba = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 2, 2))
    half = Image.new("RGBA", (4, 2), (0, 0, 255, 128))
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([0, 0, 0, *RED])
    palette.paste(0, (0, 0, 2, 2))
    grey = Image.new("LA", (4, 2), (10, 255))
    grey.paste((0, 0), (0, 0, 2, 2))
    files = [encoded(rgba), encoded(rgba, "webp", lossless=True), encoded(palette, transparency=0)]
    for file in files:
        pixels = decode_image(file)
        assert pixels[:, 0, 0].tolist() == WHITE
        assert pixels[:, 1, 3].tolist() == RED
    assert decode_image(encoded(grey))[:, 0].tolist() == [[255, 255, 10, 10]] * 3
    assert decode_image(encoded(half))[:, 0, 0].tolist() == [127, 127, 255]
    assert decode_image(encoded(palette, transparency=bytes([0, 255])))[:, 0, 0].tolist() == WHITE


def test_cmyk_and_other_colour_spaces_become_rgb():
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    files = [
        encoded(image.convert("CMYK"), "jpeg", quality=100),
        encoded(image.convert("CMYK"), "tiff"),
        encoded(image.convert("YCbCr"), "tiff"),
    ]
    for file in files:
        assert decode_image(file)[:, 8, 8].tolist() == pytest.approx([200, 100, 50], abs=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_rotated_by_its_exif_orientation(orientation):
    upright = Image.fromarray(numpy.arange(24, dtype=numpy.uint8).reshape(4, 6) * 10)
    turns = Image.Transpose
    stored = {  # how a camera stores an upright image
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_90,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_270,
    }
    image = upright.transpose(stored[orientation]) if orientation in stored else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert torch.equal(decode_image(encoded(image, exif=exif)), decode_image(encoded(upright)))


def test_paths_bytes_and_both_are_the_same(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(photo(1))
    first = decode_image(str(file))
    for cell in (photo(1), {"bytes": photo(1), "path": None}, {"bytes": None, "path": str(file)}):
        assert torch.equal(decode_image(cell), first)
    assert torch.equal(decode_image({"bytes": photo(1), "path": "nowhere.png"}), first)


def test_a_huge_image_leaves_only_what_the_model_sees():
    task = small_vit(image_size=64)
    file = encoded(Image.new("RGB", (3024, 3024), (1, 2, 3)), "jpeg")
    for strengths in ({}, {"crop": 0.08}, {"rotation": 15.0}):
        transform = ImageTransform("image", task.build_transform(strengths))
        pixels = transform({"image": file})["pixel_values"]
        assert tuple(pixels.shape) == (3, 64, 64)
        assert pixels.untyped_storage().nbytes() <= 3 * 64 * 64


BROKEN = {
    "cut.jpg": encoded(Image.effect_noise((64, 64), 90), "jpeg")[:-400],
    "cut.png": photo(1)[:-60],
    "text.jpg": b"this is no image",
    "empty.png": b"",
    "nan.tif": encoded(Image.fromarray(numpy.full((3, 3), numpy.nan, numpy.float32)), "tiff"),
}


@pytest.mark.parametrize("name", [*BROKEN, "nowhere.png"])
def test_an_image_that_cannot_be_decoded_is_one_error_that_names_the_file(tmp_path, name):
    if name in BROKEN:
        (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(UnreadableImage, match=name):
        decode_image(str(tmp_path / name))


def test_a_bomb_is_an_error_and_a_large_image_is_none(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    # PIL would warn about up to twice as many pixels.
    assert decode_image(encoded(Image.new("L", (16, 16)))).shape == (3, 16, 16)
    with pytest.raises(UnreadableImage, match="DecompressionBomb"):
        decode_image(encoded(Image.new("L", (32, 32))))


# Unreadable images are found before training


@pytest.fixture
def table(tmp_path: Path) -> list[str]:
    """Options for a table of 12 images with relative paths; rows 3 and 7 are broken."""
    (tmp_path / "scans").mkdir()
    lines = ["file,kind"]
    for row in range(12):
        name = "cut.png" if row == 3 else "text.jpg" if row == 7 else f"{row}.PNG"
        (tmp_path / "scans" / name).write_bytes(BROKEN.get(name, photo(row)))
        lines.append(f"scans/{name},{'even' if row % 2 == 0 else 'odd'}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    sizes = [f"{name}={value}" for name, value in small_vit().model_options.items()]
    model = ["--init", "random", "--model", "vit", "--model-options", *sizes, "--image-size", "16"]
    columns = ["--image", "file", "--label", "kind"]
    data = ["--data", str(tmp_path / "table.csv"), "--data.validation", "2"]
    run = ["--max-steps", "1", "--batch-size", "4", "--run-dir", str(tmp_path / "run")]
    return [*model, *data, *columns, *run]


def test_unreadable_images_are_named_and_stop_the_run(table, tmp_path):
    result = run_script("train.py", "configs/image.py", *table)
    assert result.code == 2
    assert result.err.count("error:") == 1
    expected = ("2 unreadable image(s)", "cut.png", "text.jpg", "rows 3, 7")
    for part in (*expected, "--data.drop-unreadable"):
        assert part in result.err
    assert is_untouched(tmp_path / "run")


def test_unreadable_images_are_dropped_on_request_and_named(table, tmp_path):
    result = run_script("train.py", "configs/image.py", *table, "--data.drop-unreadable")
    assert result.code == 0, result.err
    assert "data: train: dropped 2 unreadable image(s)" in result.err
    assert "cut.png" in result.err
    assert "1 optimizer steps of" in result.err
    plan = json.loads((tmp_path / "run" / "ledger.jsonl").read_text().splitlines()[0])
    assert plan["num_rows"] == 8  # 12 - 2 dropped - 2 for validation
    # The cache key has the times of the files, so a file that changed is checked again.
    (tmp_path / "scans" / "0.PNG").write_bytes(b"changed")
    words = ["configs/image.py", *table, "--data.drop-unreadable"]
    result = run_script("train.py", *words, "--run-dir", str(tmp_path / "b"))
    assert "dropped 3 unreadable" in result.err


# Where relative paths start


def decoded(task: ImageClassification) -> list[int]:
    """The grey value of each image of train."""
    return [decode_image(cell)[0, 0, 0].item() for cell in task.source["train"]["image"]]


def grey_table(folder: Path, value: int, kind: str = "csv") -> str:
    """A table with the relative path of one image of that value, beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(folder / "a.png")
    if kind == "csv":
        (folder / "rows.csv").write_text("image,label\na.png,x\n")
    else:
        image = {"bytes": Value("binary"), "path": Value("string")}
        features = Features({"image": image, "label": Value("string")})
        rows = {"image": [{"bytes": None, "path": "a.png"}], "label": ["x"]}
        Dataset.from_dict(rows, features).to_parquet(folder / "rows.parquet")
    return str(folder / f"rows.{kind}")


def test_relative_paths_start_where_their_table_is(tmp_path, monkeypatch):
    one, two = (grey_table(tmp_path / str(value), value) for value in (10, 20))
    sources = (Data(path=one), Data(path=two))
    assert decoded(small_vit(data=Data(sources=sources))) == [10, 20]
    parquet = Data(path=grey_table(tmp_path / "30", 30, "parquet"))
    assert decoded(small_vit(data=parquet)) == [30]
    monkeypatch.chdir(tmp_path / "10")
    rows = Dataset.from_dict({"image": ["a.png"], "label": ["x"]})
    assert decoded(small_vit(data=Data.from_memory(rows))) == [10]
    both = Data(files={"train": [one, two]})
    assert decoded(small_vit(data=both, image_folder=str(tmp_path / "20"))) == [20, 20]
    with pytest.raises(
        UserError, match="--image-folder is needed: the files of train are in several"
    ):
        _ = small_vit(data=both).source
    assert decoded(small_vit(data=Data(files={"train": [one, one]}))) == [10, 10]


def test_paths_of_the_same_bytes_are_duplicates(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / f"{name}.png").write_bytes(photo(seed))
    (tmp_path / "rows.csv").write_text("image,label\na.png,x\nb.png,y\nc.png,x\n,x\n")
    data = Data(path=str(tmp_path / "rows.csv"), validation=0, drop_empty=True)
    task = small_vit(data=data)
    findings = [finding.text for finding in checks.check_rows(task, full=True)]
    (same,) = [text for text in findings if "different labels" in text]
    assert "a.png' (train 0 x, train 1 y)" in same
    assert len(task.rows["train"]) == 3  # the empty one is dropped as such
    assert len(small_vit(data=replace(data, drop_duplicates=True)).rows["train"]) == 2


def test_new_tables_have_their_images_beside_them_or_in_the_folder_of_the_run(tmp_path):
    grey_table(tmp_path / "run", 10)
    task = small_vit(image_folder=str(tmp_path / "run"))
    rows = Dataset.from_dict({"image": ["a.png"]})
    for folder, value in ((tmp_path, 10), (tmp_path / "other", 20)):
        grey_table(tmp_path / "other", 20)
        (cell,) = build_predictor(task).shape_rows(rows, folder)["image"]
        assert decode_image(cell)[0, 0, 0].item() == value


# Augmentation


EVERYTHING = ("crop", "flip", "vertical-flip", "rotation", "jitter", "randaugment")
EVERYTHING = (*EVERYTHING, "trivialaugment", "erasing=0.9")


def digests(sampler: TrainSampler, task, workers: int = 0) -> dict[tuple[int, int], str]:
    """Digests of pixels and label as the model gets them, by (epoch, row)."""
    loader = build_dataloader(sampler.dataset, sampler, task.collate, seed=1, workers=workers)
    found = {}
    for keys, batch in zip(sampler, loader, strict=True):
        for place, (epoch, row) in enumerate(keys):
            if row >= 0:
                pixels, label = (batch[name][place].numpy() for name in ("pixel_values", "labels"))
                digest = hashlib.sha256(pixels.tobytes() + label.tobytes())
                found[epoch, row] = digest.hexdigest()
    return found


def read_rows(dataset, rows: list[int], seed: int = 0) -> list[dict]:
    """Examples of rows in epoch 0, as the loader reads them."""
    return KeyedDataset(dataset, seed).__getitems__([(0, row) for row in rows])[1]


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create 4 worker processes"
)  # more than there are cores
@pytest.mark.parametrize("augment", [EVERYTHING, ("crop", "mixup", "cutmix")], ids=["all", "mixed"])
def test_pixels_are_a_function_of_seed_epoch_and_row(augment):
    task = small_vit(augment=augment)
    dataset = task.load_datasets()["train"]

    def sampler(num_processes: int = 1, micro_batch_size: int = 4, start_step: int = 0):
        sizes = {"batch_size": 8, "micro_batch_size": micro_batch_size, "epochs": 2}
        config = Config(task=task, run_dir="-", seed=1, **sizes)
        sampler = TrainSampler(dataset, config, num_processes)
        sampler.start_step = start_step
        return sampler

    expected = digests(sampler(), task)
    assert len(expected) == len(set(expected.values())) == 48  # two epochs, and no image twice
    for workers in (2, 4):
        assert digests(sampler(), task, workers) == expected
    assert digests(sampler(num_processes=2, micro_batch_size=3), task) == expected
    resumed = digests(sampler(start_step=2), task, workers=2)
    assert len(resumed) == 32
    assert resumed == {key: expected[key] for key in resumed}
    one, other = (read_rows(dataset, [5], seed)[0]["pixel_values"] for seed in (1, 2))
    assert not torch.equal(one, other)


def test_without_crop_the_view_is_that_of_evaluation():
    train, evaluation = (small_vit(augment=words).build_transform({}) for words in (("flip",), ()))
    image = decode_image(photo(3))
    assert torch.equal(train(image), evaluation(image))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_changes_pixels(name):
    is_probability = AUGMENTATIONS[name].meaning == "probability"
    task = small_vit(augment=(f"{name}=1" if is_probability else name,))
    plain = small_vit(augment=()).load_datasets()["train"]
    examples = read_rows(task.load_datasets()["train"], list(range(5)))
    assert any(
        not torch.equal(example["pixel_values"], plain[row]["pixel_values"])
        for row, example in enumerate(examples)
    )
    assert {tuple(example["pixel_values"].shape) for example in examples} == {(3, 16, 16)}


def test_a_finished_run_is_evaluated_on_images_as_they_are(tmp_path):
    names = {"id2label": dict(enumerate("abc")), "label2id": {"a": 0, "b": 1, "c": 2}}
    config = ViTConfig(**small_vit().model_options, **names, image_size=16)
    config.problem_type = "single_label_classification"
    ViTForImageClassification(config).save_pretrained(tmp_path)
    task = small_vit(augment=("crop", "mixup"), image_size=None).from_finished_run(str(tmp_path))
    dataset = task.load_datasets()["train"]
    assert task.collate([dataset[0]])["labels"].dtype == torch.int64
    assert torch.equal(dataset[0]["pixel_values"], dataset[0]["pixel_values"])


def test_mixup_and_cutmix_give_the_exact_loss():
    """(Binary) cross-entropy with a mixed label is share * CE(own) + (1 - share) * CE(other)."""
    single, multi = "single_label_classification", "multi_label_classification"
    for problem, labels in ((single, [0, 2]), (multi, [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])):
        task = small_vit()
        vars(task)["labels"] = Labels(problem, ("a", "b", "c"))
        logits = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        outputs, transform = SimpleNamespace(logits=logits), task.build_transform({})
        for name in ("mixup", "cutmix"):
            partners = [{"image": photo(2), "labels": labels[1]}]
            mixing = ImageTransform("image", transform, {name: 1.0}, partners, num_labels=3)
            with temporary_seed(4):
                pixels, target = mixing.mix(transform(decode_image(photo(1))), labels[0])
            share = target[0].item()
            assert 0 < share < 1
            own, other = (
                task.losses(outputs, {"labels": torch.tensor([label])}) for label in labels
            )
            mixed = task.losses(outputs, {"labels": target.double()[None]})
            assert mixed.item() == pytest.approx(
                (share * own + (1 - share) * other).item(), rel=1e-6
            )
            assert tuple(pixels.shape) == (3, 16, 16)


def test_the_share_of_a_label_is_that_of_its_pixels():
    black = torch.zeros(3, 16, 16, dtype=torch.uint8)
    white, partners = torch.full_like(black, 255), [{"image": photo(1), "labels": 1}]
    for name in ("mixup", "cutmix"):
        for seed in range(20):
            mixing = ImageTransform("image", lambda _: white, {name: 0.5}, partners, num_labels=2)
            with temporary_seed(seed):
                pixels, target = mixing.mix(black, 0)
            assert pixels.float().mean().item() / 255 == pytest.approx(target[1].item(), abs=1e-6)
            assert target.sum().item() == pytest.approx(1)
            assert pixels.dtype == (torch.uint8 if name == "cutmix" else torch.float32)


def test_both_kinds_of_mixing_share_a_batch():
    task = small_vit(augment=("mixup", "cutmix"))
    batch = task.collate(read_rows(task.load_datasets()["train"], list(range(8))))
    assert batch["pixel_values"].dtype == batch["labels"].dtype == torch.float32
    assert batch["labels"].shape == (8, 3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("crap",), "did you mean 'crop'"),
        (("crop=2",), "above 0 and up to 1"),
        (("crop=x",), "smallest share of the area"),
        (("flip=nan",), "probability"),
        (("trivialaugment=3",), "takes no strength"),
        (("randaugment=0.5",), "a whole number from 1 to 30"),
        (("flip", "flip=0.2"), "given twice"),
    ],
)
def test_augmentations_are_checked(words, message):
    with pytest.raises(UserError, match=message):
        small_vit(augment=words).validate()


def test_augmentations_are_read_in_the_order_of_the_table():
    strengths = parse_augmentations(("mixup", "flip", "crop=0.3"))
    assert list(strengths.items()) == [("crop", 0.3), ("flip", 0.5), ("mixup", 0.2)]


def test_weights_of_rows_reach_the_batch():
    task = small_vit()
    dataset = task.load_datasets()["train"]
    examples = [{**example, "weights": 0.5 * row} for row, example in enumerate([dataset[3]] * 3)]
    assert task.collate(examples)["weights"].tolist() == [0.0, 0.5, 1.0]


# Evaluation


@pytest.mark.parametrize("shape", [(40, 30), (31, 64), (16, 16), (9, 50), (200, 33)])
def test_the_saved_processor_is_the_view_of_evaluation(shape, tmp_path):
    from transformers import AutoImageProcessor

    task = small_vit()
    task.processor.size = {"shortest_edge": 19}
    task.processor.save_pretrained(tmp_path)
    file = photo(7, *shape)
    pixels = task.build_transform({})(decode_image(file))
    ours = task.collate([{"pixel_values": pixels}])["pixel_values"]
    saved = AutoImageProcessor.from_pretrained(tmp_path)
    theirs = saved(Image.open(io.BytesIO(file)), return_tensors="pt")
    assert torch.allclose(ours, theirs["pixel_values"], atol=1e-5)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert settings["crop_size"] == {"height": 16, "width": 16}


def test_evaluation_keeps_shapes():
    """A wide image with a square in the middle: the square stays one."""
    image = numpy.zeros((40, 80), numpy.uint8)
    image[10:30, 30:50] = 255
    transform = small_vit(image_size=40).build_transform({})
    pixels = transform(decode_image(encoded(Image.fromarray(image))))
    assert torch.equal(pixels[0], F.crop(torch.tensor(image), 0, 20, 40, 40))
