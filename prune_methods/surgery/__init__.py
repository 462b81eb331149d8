"""The cut itself, its proof, and what makes up for it: folded constants, fresh batch norm
statistics.
"""
