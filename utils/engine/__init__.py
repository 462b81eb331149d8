"""The one training loop and its parts.

Trainer, tasks, hooks, optimizer, averaged model, precision, devices, processes and seeds.
"""
