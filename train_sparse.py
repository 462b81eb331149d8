"""Train a detector so that pruning costs little: `python train_sparse.py --weights x.pt --data demo
--method slim --reg auto`.

See docs/sparse_training.md.
"""

from utils.cli import run_script
from utils.options.sparse import SparseOptions


def main(opt: SparseOptions) -> None:
    """Check the options, then hand over to the recipe, which imports torch."""
    opt.check()
    from recipes.train_sparse import train_sparse

    train_sparse(opt)


if __name__ == "__main__":
    run_script(SparseOptions, main, __doc__)
