"""prune.py in parts: run, plan, stages, training, latency, gradients, PAGCP, and the reports."""
