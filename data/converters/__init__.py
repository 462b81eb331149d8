"""Converters of annotations to YOLO's texts, one file a format; `base` says what one has to do."""
