"""From scores to masks that meet a target: the loop, what a mask costs in MACs or time, and PAGCP's
search.
"""
