"""Behind the options: the argparse parser of a dataclass, and the check of its values."""
