"""Label new rows or images with a finished run.

python predict.py runs/quickstart "Return the mean of an array along an axis."
python predict.py runs/mrpc "He left." "He went away."                 a sentence pair per row
python predict.py runs/digits a.png scans/*.jpg                        images, or folders of images
python predict.py runs/quickstart --file new.csv --out labelled.csv   any format that training reads
python predict.py runs/quickstart --file new.jsonl.gz --out labelled.parquet
python predict.py runs/quickstart - < lines.txt               standard input: a text per line
zcat new.jsonl.gz | python predict.py runs/quickstart - --format jsonl --out labelled.jsonl.gz
python predict.py runs/digits scans --plot bars.png                    also plot the probabilities

Rows are read, labelled and written block by block, so that any number of them fits into memory.
"""

import sys

from ftloop.cli.exit_codes import run_main
from ftloop.cli.predict import main

if __name__ == "__main__":
    sys.exit(run_main(main))
