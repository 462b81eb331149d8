"""One score for every channel of a coupled group: the methods, a file a family, and what sums their
saliency up (`scoring`).
"""
