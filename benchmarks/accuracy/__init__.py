"""The paper's experiments: how well L0-SIGN and others predict, over several seeds.

    python -m benchmarks.accuracy EXPERIMENT --data DIRECTORY

`experiments.py` lists them with their protocols, `models.py` what can be trained, `records.py` keeps what is
done, so that a run that was interrupted goes on, and `kept.py` writes the result from the records.
"""
