"""Sparse training: the hook, its penalties, the estimate of how far they get, statistics and
pictures of batch norms.
"""
