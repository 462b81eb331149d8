"""Options of the scripts that work on data sets."""
