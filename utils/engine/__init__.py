"""The one training loop: trainer, tasks, hooks, optimizer, averaged model, precision, devices,
processes, seeds.
"""
