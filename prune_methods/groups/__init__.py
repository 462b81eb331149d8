"""Which channels can only be removed together: dependency graph, opaque blocks, group norms, and
the index of all channels.
"""
