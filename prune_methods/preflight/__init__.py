"""What can be pruned, and of every other layer the reason why not; proved on a copy, within a time
limit.
"""
