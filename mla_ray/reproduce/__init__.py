"""The paper's ablations, remade on emoji: `mla reproduce`.

ablations.py      what is compared, as data
ablation_data.py  the data sets, made once and shared by all runs
runs.py           one run: train, measure
tower.py          the baseline that tunes the whole text tower
bert.py           a vocabulary and embeddings as M-BERT's, for want of M-BERT
grid.py           all runs on Ray; goes on where it was stopped
records.py        what was measured
figures.py        means, differences and intervals from the records
page.py           tables, plot and text

"""
