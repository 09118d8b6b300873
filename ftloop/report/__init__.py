"""Pages about data and runs: what a person looks at before a training, while it runs, and after it.

Training, evaluation and prediction do not need this folder: a fork may delete it.

Pages

    run_report.py       the report of a run; its sections are the files *_section.py and curves.py
    explore.py          a page about the data of a config, before training
    compare.py          a page about several runs
    reporter.py         the observer that writes the report of a run
    page.py             how a page is built: tables, figures, CSV links
    figures.py, svg.py  drawings as SVG
    plots.py            the figures of predict.py --plot

Numbers

    scored.py           a split with the outputs of a finished run, row by row
    statistics.py       scores per class, confusion, calibration, precision over recall
    bootstrap.py        intervals of scores, and of the difference of two runs
    thresholds.py       from which probability a label is predicted
    baselines.py        what a run is compared with: majority class, TF-IDF, frozen features
    label_errors.py     rows whose labels are likely wrong
    features.py         the features of a model as a Parquet file, with a linear probe
"""
