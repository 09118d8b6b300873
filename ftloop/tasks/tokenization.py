"""Tokenize batches of rows: functions of the module, whose results `datasets` can cache.

Each takes {column: cells} and returns columns for the model, and

    length      int per row: its cost in tokens
    truncated   bool per row: whether tokens are missing

`TextTask.cache_key` identifies the results in the cache, by the source code of the function too; a
function here therefore calls no other one of this module.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Columns = dict[str, list[Any]]


def tokenize_texts(
    rows: Columns,
    tokenizer: "PreTrainedTokenizerBase",
    text_columns: tuple[str, ...],
    max_length: int,
) -> Columns:
    """Tokenize texts, or pairs of texts, and truncate them to `max_length` tokens."""
    texts = [rows[column] for column in text_columns]
    encoded = tokenizer(*texts, truncation=True, max_length=max_length)
    return {
        **encoded,
        "length": list(map(len, encoded["input_ids"])),
        "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings],
    }


def tokenize_head_and_tail(
    rows: Columns,
    tokenizer: "PreTrainedTokenizerBase",
    text_columns: tuple[str, ...],
    max_length: int,
) -> Columns:
    """Tokenize texts. Of a longer one, keep the first and the last `max_length` / 2 tokens."""
    (column,) = text_columns
    encoded = tokenizer(rows[column], verbose=False)  # no warning about the length of a text
    truncated = [len(ids) > max_length for ids in encoded["input_ids"]]
    # Special tokens are at both ends, so they are kept.
    head, tail = max_length // 2, max_length - max_length // 2
    columns = {}
    for name, cells in encoded.items():
        columns[name] = [
            cell[:head] + cell[-tail:] if is_long else cell
            for cell, is_long in zip(cells, truncated, strict=True)
        ]
    columns["length"] = list(map(len, columns["input_ids"]))
    return {**columns, "truncated": truncated}


def tokenize_windows(
    rows: Columns,
    tokenizer: "PreTrainedTokenizerBase",
    text_columns: tuple[str, ...],
    max_length: int,
    overlap: int,
    max_windows: int,
) -> Columns:
    """Tokenize texts into overlapping windows of at most `max_length` tokens.

    Each cell is a list with one list per window; "length" is the number of tokens of all windows. A
    text with more than `max_windows` windows is truncated.
    """
    (column,) = text_columns
    encoded = tokenizer(
        rows[column],
        truncation=True,
        max_length=max_length,
        stride=overlap,
        return_overflowing_tokens=True,
    )
    owners = encoded.pop("overflow_to_sample_mapping")  # the text of each window
    columns: Columns = {name: [[] for _ in rows[column]] for name in encoded}
    for name, cells in columns.items():
        for text, window in zip(owners, encoded[name], strict=True):
            cells[text].append(window)
    truncated = [len(windows) > max_windows for windows in columns["input_ids"]]
    columns = {name: [cell[:max_windows] for cell in cells] for name, cells in columns.items()}
    columns["length"] = [sum(map(len, windows)) for windows in columns["input_ids"]]
    return {**columns, "truncated": truncated}


def tokenize_words(
    rows: Columns,
    tokenizer: "PreTrainedTokenizerBase",
    text_columns: tuple[str, ...],
    max_length: int,
) -> Columns:
    """Tokenize lists of words and truncate them to `max_length` tokens.

    A column "starting_words" holds for each token the number of the word that starts there, or -1.
    A word that the tokenizer drops, such as a space, becomes its unknown token, so that each word
    has a first token.
    """
    (column,) = text_columns
    options = {"is_split_into_words": True, "truncation": True, "max_length": max_length}
    texts = [list(words) for words in rows[column]]
    unknown = tokenizer.unk_token or tokenizer.eos_token
    unique = sorted({word for words in texts for word in words})
    if unique and unknown is not None:
        alone = tokenizer(
            [[word] for word in unique], is_split_into_words=True, add_special_tokens=False
        )
        dropped = {word for word, ids in zip(unique, alone["input_ids"], strict=True) if not ids}
        texts = [[unknown if word in dropped else word for word in words] for words in texts]
    encoded = tokenizer(texts, **options)
    starting_words = []
    for encoding in encoded.encodings:
        starts, previous = [], None
        for word in encoding.word_ids:
            starts.append(-1 if word is None or word == previous else word)
            previous = word
        starting_words.append(starts)
    return {
        **encoded,
        "starting_words": starting_words,
        "length": list(map(len, encoded["input_ids"])),
        "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings],
    }
