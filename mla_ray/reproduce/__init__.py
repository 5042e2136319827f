"""The paper's ablations on emoji data, for `mla reproduce`.

Modules:

    ablations.py      definitions of the variants and tables
    ablation_data.py  data sets, made once and shared by all runs
    runs.py           training and evaluation of one run
    tower.py          the baseline that tunes the whole text tower
    bert.py           a small multilingual BERT in place of M-BERT
    grid.py           execution of all runs on Ray, resumable
    records.py        storage of the measurements
    figures.py        means, differences and intervals from the records
    claims.py         verdicts on the paper's claims
    page.py           results page: tables, plot and text

"""
