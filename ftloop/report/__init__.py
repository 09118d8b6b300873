"""Pages about data and runs: what a person looks at before a training, while it runs, and after it.

Training, evaluation and prediction do not need this folder: a fork may delete it.

    run_report.py    the report of a run; its sections are the files *_section.py and curves.py
    explore.py       a page about the data of a config, before training
    compare.py       a page about several runs
    features.py      the features of a model as a Parquet file, with a linear probe
    reporter.py      the observer that writes the report of a run
    plots.py         the figures of predict.py --plot
    page.py          how a page is built: tables, figures, CSV links
    figures.py       drawings as SVG
    scored.py        a split with the outputs of a finished run, row by row
    statistics.py    intervals, differences, calibration, curves, thresholds
"""
