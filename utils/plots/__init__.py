"""Pictures of a run: results, labels, evaluation, and how boxes are drawn."""
