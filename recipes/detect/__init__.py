"""detect.py in parts: run, detector, outputs, videos, names, tally, window."""
