"""Write a table that looks like pathology reports with codes, for configs/pathology_codes.py.

    python -m benchmarks.pathology reports.pkl --rows 1000
    python -m benchmarks.pathology reports.pkl                      93 039 rows, 15 seconds

The file is a pickled dictionary: `total` -> `X` is a DataFrame with eleven columns of texts, half
of whose cells are missing, and `y` one with 38 columns of 0 and 1, named by ICD-O topography codes.
A report has one to three codes, some far more often than others, and at least one section names the
site of each. Reports also mention other sites ("no metastasis in the liver"), so that a search for
words is not enough. The same rows and seed give the same texts.
"""

import pickle
import random
import time
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated

import pandas as pd
import tyro

SITES = {
    "C01.9": "base of tongue",
    "C02.9": "tongue",
    "C07.9": "parotid gland",
    "C09.9": "tonsil",
    "C11.9": "nasopharynx",
    "C15.9": "oesophagus",
    "C16.9": "stomach",
    "C17.0": "duodenum",
    "C18.0": "caecum",
    "C18.2": "ascending colon",
    "C18.4": "transverse colon",
    "C18.7": "sigmoid colon",
    "C20.9": "rectum",
    "C21.0": "anus",
    "C22.0": "liver",
    "C23.9": "gallbladder",
    "C25.0": "head of pancreas",
    "C25.9": "pancreas",
    "C32.0": "glottis",
    "C34.1": "upper lobe of lung",
    "C34.3": "lower lobe of lung",
    "C38.4": "pleura",
    "C42.1": "bone marrow",
    "C44.3": "skin of face",
    "C44.5": "skin of trunk",
    "C44.7": "skin of leg",
    "C48.2": "peritoneum",
    "C50.4": "upper outer quadrant of breast",
    "C50.9": "breast",
    "C53.9": "uterine cervix",
    "C54.1": "endometrium",
    "C56.9": "ovary",
    "C61.9": "prostate gland",
    "C62.9": "testis",
    "C64.9": "kidney",
    "C67.9": "urinary bladder",
    "C73.9": "thyroid gland",
    "C77.3": "axillary lymph node",
}
# The share of reports that have each section, and its sentences. {site} belongs to a code of the
# report, {other} to none.
SECTIONS: dict[str, tuple[float, tuple[str, ...]]] = {
    "Clinical history": (
        0.8,
        ("Mass in the {site}, known for {number} weeks.", "Previous treatment of the {other}."),
    ),
    "Specimen": (
        0.9,
        ("Biopsy of the {site}, {number} fragments.", "Resection specimen of the {site}."),
    ),
    "Gross description": (
        0.7,
        ("A grey, firm nodule of {number} mm in the {site}.", "Cut surface is homogeneous."),
    ),
    "Microscopy": (
        0.85,
        (
            "Infiltrating atypical cells in the {site}.",
            "{number} mitoses per 10 high power fields.",
        ),
    ),
    "Frozen section": (
        0.15,
        ("Margins of the {site} are free of tumour.", "Deferred to permanent sections."),
    ),
    "Immunohistochemistry": (
        0.4,
        ("Ki-67 is {number} %.", "Positive for CK7, negative for CK20 and TTF-1."),
    ),
    "Molecular findings": (0.15, ("No mutation of EGFR or KRAS.", "Microsatellites are stable.")),
    "Staging": (0.35, ("pT2 pN0, {number} lymph nodes examined.", "No metastasis in the {other}.")),
    "Diagnosis": (0.95, ("Malignant neoplasm of the {site}.", "Carcinoma in the {site}, grade 2.")),
    "Comment": (
        0.3,
        ("A primary tumour of the {other} was ruled out.", "Correlation with imaging is advised."),
    ),
    "Addendum": (0.1, ("Outside review agrees.", "Additional levels of the {site} were cut.")),
}


@dataclass(frozen=True)
class Options:
    """Write a pickled table that looks like pathology reports."""

    file: Annotated[str, tyro.conf.Positional]  # to write, such as reports.pkl
    rows: int = 93_039  # reports
    seed: int = 42  # of everything drawn


def draw_report(
    rng: random.Random, codes: list[str], other_codes: list[str]
) -> dict[str, str | None]:
    """Return the sections of a report; a missing section is None. One names each of its codes."""
    sections: dict[str, str | None] = dict.fromkeys(SECTIONS)
    unnamed_sites = [SITES[code] for code in codes]
    for name, (share, templates) in SECTIONS.items():
        if rng.random() < share:
            sentences = []
            for template in rng.sample(templates, rng.randint(1, len(templates))):
                site = SITES[rng.choice(codes)]
                if "{site}" in template and unnamed_sites:
                    site = unnamed_sites.pop()
                other, number = SITES[rng.choice(other_codes)], rng.randint(2, 40)
                sentences.append(template.format(site=site, other=other, number=number))
            sections[name] = " ".join(sentences)
    if unnamed_sites:
        sentences = [f"Malignant neoplasm of the {site}." for site in unnamed_sites]
        sections["Diagnosis"] = " ".join([sections["Diagnosis"] or "", *sentences]).strip()
    return sections


def draw_tables(num_rows: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the texts, (rows, 11), and the codes, (rows, 38) of 0 and 1."""
    rng, codes = random.Random(seed), list(SITES)
    # The n-th most frequent code is n times as rare as the first.
    weights = list(accumulate(1 / rank for rank in range(1, len(codes) + 1)))
    by_frequency = rng.sample(codes, len(codes))
    texts, labels = [], []
    for _ in range(num_rows):
        num_codes = rng.choices((1, 2, 3), (80, 15, 5))[0]
        drawn = rng.choices(by_frequency, cum_weights=weights, k=num_codes)
        own_codes = list(dict.fromkeys(drawn))
        other_codes = [code for code in codes if code not in own_codes]
        texts.append(draw_report(rng, own_codes, other_codes))
        labels.append([int(code in own_codes) for code in codes])
    text_table = pd.DataFrame(texts, columns=list(SECTIONS))
    return text_table, pd.DataFrame(labels, columns=codes, dtype="int8")


def main() -> None:
    options = tyro.cli(Options, prog="python -m benchmarks.pathology", description=__doc__)
    began = time.perf_counter()
    texts, labels = draw_tables(options.rows, options.seed)
    with Path(options.file).open("wb") as stream:
        pickle.dump({"total": {"X": texts}, "y": labels}, stream)
    missing, num_codes = texts.isna().to_numpy().mean(), labels.to_numpy().sum() / len(labels)
    seconds = time.perf_counter() - began
    print(
        f"{options.file}: {len(texts)} reports, {missing:.0%} of the cells are missing, "
        f"{num_codes:.2f} codes per report ({seconds:.0f} s)"
    )


if __name__ == "__main__":
    main()
