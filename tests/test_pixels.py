"""From files to pixels: every kind of image decoded, unreadable ones named, augmentation a pure function."""

import hashlib
import io
import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import pytest
import torch
from conftest import run_script
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from PIL import Image
from torchvision.transforms.v2 import functional as F
from transformers import ViTConfig, ViTForImageClassification

from ftloop import Data, ImageClassification, UserError
from ftloop.checkpoint import TrainState
from ftloop.data import checks
from ftloop.data.images import UnreadableImage, decode_image
from ftloop.data.labels import Labels
from ftloop.loader import Rows, build_loader
from ftloop.sampler import TrainOrder, seeded
from ftloop.tasks.image import AUGMENTATIONS, View, parse_augment

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
        return DatasetDict(
            {
                split: Dataset.from_dict(
                    {"image": [photo(first + row) for row in range(count)], "label": [row % 3 for row in range(count)]},
                    features,
                )
                for split, first, count in (("train", 0, 24), ("validation", 100, 6))
            }
        )


def small_vit(**options) -> ImageClassification:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    defaults = {"image_size": 16, "data": Photos(), "model_options": {**sizes, "patch_size": 8}}
    return ImageClassification(model="vit", init="random", **{**defaults, **options})


# ---- decoding


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
        (numpy.array([[0, 300]], numpy.float32), "values from 0 to 300; 0..1 or 0..255 are read"),
        (numpy.array([[-0.5, 0.5]], numpy.float32), "values from -0.5 to 0.5"),
        (numpy.array([[0, 70_000]], numpy.int32), "values from 0 to 70000; 0..255 or 0..65535 are read"),
    ],
)
def test_values_out_of_range_are_not_clipped(values, message):
    file = encoded(Image.fromarray(values), "tiff")
    with pytest.raises(UnreadableImage) as error:
        decode_image(file)
    assert message in str(error.value.__cause__)


def test_one_bit_is_black_and_white():
    pixels = decode_image(encoded(Image.fromarray(GREY > 100)))
    assert torch.equal(pixels, torch.tensor(GREY > 100).expand(3, -1, -1) * torch.tensor(255, dtype=torch.uint8))


def test_transparency_becomes_white():
    rgba = Image.new("RGBA", (4, 2), (255, 0, 0, 255))
    rgba.paste((0, 0, 0, 0), (0, 0, 2, 2))
    half = Image.new("RGBA", (4, 2), (0, 0, 255, 128))
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([0, 0, 0, *RED])
    palette.paste(0, (0, 0, 2, 2))
    grey = Image.new("LA", (4, 2), (10, 255))
    grey.paste((0, 0), (0, 0, 2, 2))
    for file in (encoded(rgba), encoded(rgba, "webp", lossless=True), encoded(palette, transparency=0)):
        pixels = decode_image(file)
        assert pixels[:, 0, 0].tolist() == WHITE
        assert pixels[:, 1, 3].tolist() == RED
    assert decode_image(encoded(grey))[:, 0].tolist() == [[255, 255, 10, 10]] * 3
    assert decode_image(encoded(half))[:, 0, 0].tolist() == [127, 127, 255]
    assert decode_image(encoded(palette, transparency=bytes([0, 255])))[:, 0, 0].tolist() == WHITE


def test_cmyk_and_other_colour_spaces_become_rgb():
    image = Image.new("RGB", (16, 16), (200, 100, 50))
    for file in (encoded(image.convert("CMYK"), "jpeg", quality=100), encoded(image.convert("CMYK"), "tiff")):
        assert decode_image(file)[:, 8, 8].tolist() == pytest.approx([200, 100, 50], abs=3)
    assert decode_image(encoded(image.convert("YCbCr"), "tiff"))[:, 8, 8].tolist() == pytest.approx([200, 100, 50], abs=3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_its_exif_says(orientation):
    upright = Image.fromarray(numpy.arange(24, dtype=numpy.uint8).reshape(4, 6) * 10)
    turns = Image.Transpose
    stored = {  # how a camera stores what is to be shown upright
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
        made = View("image", task._pixels(strengths))({"image": [file]})["pixel_values"][0]
        assert tuple(made.shape) == (3, 64, 64)
        assert made.untyped_storage().nbytes() <= 3 * 64 * 64


BROKEN = {
    "cut.jpg": encoded(Image.effect_noise((64, 64), 90), "jpeg")[:-400],
    "cut.png": photo(1)[:-60],
    "text.jpg": b"this is no image",
    "empty.png": b"",
    "nan.tif": encoded(Image.fromarray(numpy.full((3, 3), numpy.nan, numpy.float32)), "tiff"),
}


@pytest.mark.parametrize("name", [*BROKEN, "nowhere.png"])
def test_what_cannot_be_decoded_is_one_error_that_names_the_file(tmp_path, name):
    if name in BROKEN:
        (tmp_path / name).write_bytes(BROKEN[name])
    with pytest.raises(UnreadableImage, match=name):
        decode_image(str(tmp_path / name))


def test_a_bomb_is_an_error_and_a_large_image_is_none(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    assert decode_image(encoded(Image.new("L", (16, 16)))).shape == (3, 16, 16)  # PIL would warn of up to twice as many
    with pytest.raises(UnreadableImage, match="DecompressionBomb"):
        decode_image(encoded(Image.new("L", (32, 32))))


# ---- unreadable images are found before training


@pytest.fixture
def table(tmp_path: Path) -> list[str]:
    """Options for a table of 12 images with paths relative to it, of which rows 3 and 7 are broken."""
    (tmp_path / "scans").mkdir()
    lines = ["file,kind"]
    for row in range(12):
        name = "cut.png" if row == 3 else "text.jpg" if row == 7 else f"{row}.PNG"
        (tmp_path / "scans" / name).write_bytes(BROKEN.get(name, photo(row)))
        lines.append(f"scans/{name},{'even' if row % 2 == 0 else 'odd'}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    options = ["hidden_size=16", "num_hidden_layers=1", "num_attention_heads=2", "intermediate_size=32", "patch_size=8"]
    return [
        *("--task.init", "random", "--task.model", "vit", "--task.model-options", *options, "--task.image-size", "16"),
        *("--task.data.path", str(tmp_path / "table.csv"), "--task.image-column", "file"),
        *("--task.label-column", "kind", "--task.data.validation", "2", "--max-steps", "1", "--batch-size", "4"),
        *("--run-dir", str(tmp_path / "run")),
    ]


def test_unreadable_images_are_named_and_stop_the_run(table, tmp_path):
    result = run_script("train.py", "configs/image.py", *table)
    assert result.code == 2
    assert result.err.count("error:") == 1
    for part in ("2 unreadable image(s)", "cut.png", "text.jpg", "rows 3, 7", "--task.data.drop-unreadable"):
        assert part in result.err
    assert not (tmp_path / "run").exists()


def test_unreadable_images_are_left_out_on_request_and_named(table, tmp_path):
    result = run_script("train.py", "configs/image.py", *table, "--task.data.drop-unreadable")
    assert result.code == 0, result.err
    assert "data: train: dropped 2 unreadable image(s)" in result.err
    assert "cut.png" in result.err
    assert "8 rows in random order, 1 steps" in result.err  # 12 - 2 dropped - 2 cut off
    # What is kept in the cache knows of a file that changed in its place.
    (tmp_path / "scans" / "0.PNG").write_bytes(b"changed")
    result = run_script(
        *("train.py", "configs/image.py", *table, "--task.data.drop-unreadable"), *("--run-dir", str(tmp_path / "b"))
    )
    assert "dropped 3 unreadable" in result.err


# ---- where relative paths start


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
        features = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, "label": Value("string")})
        rows = {"image": [{"bytes": None, "path": "a.png"}], "label": ["x"]}
        Dataset.from_dict(rows, features).to_parquet(folder / "rows.parquet")
    return str(folder / f"rows.{kind}")


def test_relative_paths_start_where_their_table_is(tmp_path, monkeypatch):
    one, two = (grey_table(tmp_path / str(value), value) for value in (10, 20))
    assert decoded(small_vit(data=Data(sources=(Data(path=one), Data(path=two))))) == [10, 20]
    assert decoded(small_vit(data=Data(path=grey_table(tmp_path / "30", 30, "parquet")))) == [30]
    monkeypatch.chdir(tmp_path / "10")
    assert decoded(small_vit(data=Data.from_memory(Dataset.from_dict({"image": ["a.png"], "label": ["x"]})))) == [10]
    both = Data(files={"train": [one, two]})
    assert decoded(small_vit(data=both, image_folder=str(tmp_path / "20"))) == [20, 20]
    with pytest.raises(UserError, match=r"--task\.image-folder is needed: the files of train lie in"):
        _ = small_vit(data=both).source
    assert decoded(small_vit(data=Data(files={"train": [one, one]}))) == [10, 10]


def test_paths_of_the_same_bytes_are_duplicates(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / f"{name}.png").write_bytes(photo(seed))
    (tmp_path / "rows.csv").write_text("image,label\na.png,x\nb.png,y\nc.png,x\n,x\n")
    data = Data(path=str(tmp_path / "rows.csv"), validation=0, drop_empty=True)
    task = small_vit(data=data)
    (same,) = [found.text for found in checks.check_rows(task, full=True) if "different labels" in found.text]
    assert "a.png' (train 0 x, train 1 y)" in same
    assert len(task.rows["train"]) == 3  # the empty one is dropped as such
    assert len(small_vit(data=replace(data, drop_duplicates=True)).rows["train"]) == 2


def test_new_tables_have_their_images_beside_them_or_in_the_folder_of_the_run(tmp_path):
    grey_table(tmp_path / "run", 10)
    task = small_vit(image_folder=str(tmp_path / "run"))
    rows = Dataset.from_dict({"image": ["a.png"]})
    for folder, value in ((tmp_path, 10), (tmp_path / "other", 20)):
        grey_table(tmp_path / "other", 20)
        assert [decode_image(cell)[0, 0, 0].item() for cell in task.place(rows, folder)["image"]] == [value]


# ---- augmentation


EVERYTHING = ("crop", "flip", "vertical-flip", "rotation", "jitter", "randaugment", "trivialaugment", "erasing=0.9")


def hashes(order: TrainOrder, data, task, workers: int) -> dict[tuple[int, int], str]:
    """(epoch, row): the hash of its pixels and label as the model gets them."""
    loader, found = build_loader(data, order, task.collate, seed=1, workers=workers), {}
    for keys, batch in zip(order, loader, strict=True):
        for place, (epoch, row) in enumerate(keys):
            if row >= 0:
                tensors = (batch[name][place].numpy() for name in ("pixel_values", "labels"))
                found[epoch, row] = hashlib.sha256(b"".join(tensor.tobytes() for tensor in tensors)).hexdigest()
    return found


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # more than there are cores
@pytest.mark.parametrize("augment", [EVERYTHING, ("crop", "mixup", "cutmix")], ids=["all", "mixed"])
def test_pixels_are_a_function_of_seed_epoch_and_row(augment):
    task = small_vit(augment=augment)
    data = task.load()["train"]

    def order(processes: int = 1, micro_batch_size: int = 4, state: TrainState | None = None) -> TrainOrder:
        return TrainOrder(24, 8, micro_batch_size, processes, 6, 1, state or TrainState())

    expected = hashes(order(), data, task, workers=0)
    assert len(expected) == len(set(expected.values())) == 48  # two epochs, and no image twice
    for workers in (2, 4):
        assert hashes(order(), data, task, workers) == expected
    assert hashes(order(processes=2, micro_batch_size=3), data, task, workers=0) == expected
    resumed = hashes(order(state=TrainState(step=2, epoch=0, window=2)), data, task, workers=2)
    assert len(resumed) == 32
    assert resumed == {key: expected[key] for key in resumed}
    other = Rows(data, seed=2).__getitems__([(0, 5)])[1][0]["pixel_values"]
    assert not torch.equal(other, Rows(data, seed=1).__getitems__([(0, 5)])[1][0]["pixel_values"])


def test_without_crop_the_view_is_that_of_evaluation():
    train, evaluation = (small_vit(augment=words)._pixels({}) for words in (("flip",), ()))
    image = decode_image(photo(3))
    assert torch.equal(train(image), evaluation(image))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_every_augmentation_changes_pixels(name):
    task = small_vit(augment=(f"{name}=1" if AUGMENTATIONS[name].meaning == "probability" else name,))
    plain = small_vit(augment=()).load()["train"]
    made = Rows(task.load()["train"], seed=0).__getitems__([(0, row) for row in range(5)])[1]
    assert any(not torch.equal(row["pixel_values"], plain[number]["pixel_values"]) for number, row in enumerate(made))
    assert {tuple(row["pixel_values"].shape) for row in made} == {(3, 16, 16)}


def test_a_finished_run_is_scored_on_images_as_they_are(tmp_path):
    config = ViTConfig(
        **small_vit().model_options, image_size=16, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2}
    )
    config.problem_type = "single_label_classification"
    ViTForImageClassification(config).save_pretrained(tmp_path)
    task = small_vit(augment=("crop", "mixup"), image_size=None).of_run(str(tmp_path))
    data = task.load()
    assert task.collate([data["train"][0]])["labels"].dtype == torch.int64
    assert torch.equal(data["train"][0]["pixel_values"], data["train"][0]["pixel_values"])


def test_mixup_and_cutmix_give_the_exact_loss():
    """Cross-entropy with the mixed label is share * CE(own) + (1 - share) * CE(other); so for binary cross-entropy."""
    single, multi = "single_label_classification", "multi_label_classification"
    for problem, labels in ((single, [0, 2]), (multi, [[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])):
        task = small_vit()
        vars(task)["labels"] = Labels(problem, ("a", "b", "c"))
        logits = torch.randn(1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        outputs = type("Outputs", (), {"logits": logits})()
        for name in ("mixup", "cutmix"):
            partners = [{"image": photo(2), "labels": labels[1]}]
            view = View("image", task._pixels({}), partners, 3, {name: 1.0})
            with seeded(4):
                pixels, target = view.mix(task._pixels({})(decode_image(photo(1))), labels[0])
            share = target[0].item()
            assert 0 < share < 1
            own, other = (task.losses(outputs, torch.tensor([label])) for label in labels)
            mixed = task.losses(outputs, target.double()[None])
            assert mixed.item() == pytest.approx((share * own + (1 - share) * other).item(), rel=1e-6)
            assert tuple(pixels.shape) == (3, 16, 16)


def test_the_share_of_a_label_is_that_of_its_pixels():
    black, white = torch.zeros(3, 16, 16, dtype=torch.uint8), torch.full((3, 16, 16), 255, dtype=torch.uint8)
    for name in ("mixup", "cutmix"):
        for seed in range(20):
            view = View("image", lambda _: white, [{"image": photo(1), "labels": 1}], 2, {name: 0.5})
            with seeded(seed):
                pixels, target = view.mix(black, 0)
            assert pixels.float().mean().item() / 255 == pytest.approx(target[1].item(), abs=1e-6)
            assert target.sum().item() == pytest.approx(1)
            assert pixels.dtype == (torch.uint8 if name == "cutmix" else torch.float32)


def test_both_kinds_of_mixing_share_a_batch():
    task = small_vit(augment=("mixup", "cutmix"))
    batch = task.collate(Rows(task.load()["train"], seed=0).__getitems__([(0, row) for row in range(8)])[1])
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
        small_vit(augment=words).check()


def test_augmentations_are_read_in_the_order_of_the_table():
    assert list(parse_augment(("mixup", "flip", "crop=0.3")).items()) == [("crop", 0.3), ("flip", 0.5), ("mixup", 0.2)]


# ---- evaluation


@pytest.mark.parametrize("shape", [(40, 30), (31, 64), (16, 16), (9, 50), (200, 33)])
def test_the_saved_processor_is_the_view_of_evaluation(shape, tmp_path):
    from transformers import AutoImageProcessor

    task = small_vit()
    task.processor.size = {"shortest_edge": 19}
    task.processor.save_pretrained(tmp_path)
    file = photo(7, *shape)
    ours = task.collate([{"pixel_values": task._pixels({})(decode_image(file))}])["pixel_values"]
    theirs = AutoImageProcessor.from_pretrained(tmp_path)(Image.open(io.BytesIO(file)), return_tensors="pt")
    assert torch.allclose(ours, theirs["pixel_values"], atol=1e-5)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["crop_size"] == {"height": 16, "width": 16}


def test_evaluation_keeps_the_shape_of_things():
    """A wide image with a square in the middle: the square stays one."""
    image = numpy.zeros((40, 80), numpy.uint8)
    image[10:30, 30:50] = 255
    pixels = small_vit(image_size=40)._pixels({})(decode_image(encoded(Image.fromarray(image))))
    assert torch.equal(pixels[0], F.crop(torch.tensor(image), 0, 20, 40, 40))
