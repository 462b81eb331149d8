"""The bottom layer: knows no other package of this repository.

Nothing here is imported eagerly, so that option parsing (`utils.options.base`) never pays for
torch.
"""
