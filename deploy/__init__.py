"""The last mile: export a deployed model to other formats, and run files of any format alike."""

from deploy.runtimes import RUNTIMES, Runtime, load_runtime

__all__ = ["RUNTIMES", "Runtime", "load_runtime"]
