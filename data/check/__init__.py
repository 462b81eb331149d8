"""Find what is wrong with a data set: `python -m data.check my.yaml`."""
