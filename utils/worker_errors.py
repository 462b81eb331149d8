"""What to say of a data worker that has ended. Standard library only."""

import re
from collections.abc import Iterator

WORKER = re.compile(r"DataLoader worker \(pid")
SIGNAL = re.compile(r"killed by signal: ([\w ]+)")
SHARED_MEMORY_FULL = (
    "the shared memory (/dev/shm) is full: start the container with more (docker run --shm-size"
    " 2g), or use fewer --workers (0 needs none) or a smaller --batch-size"
)


def worker_reason(error: BaseException) -> str:
    """Return what to say of an error of torch that a data worker has caused; "" for other errors.

    Torch raises it wherever the main process is when the worker ends.
    """
    text = "\n".join(_texts(error))
    if "Too many open files" in text:
        return (
            "too many open files: raise the limit (ulimit -n 65536), or use fewer --workers or a"
            " smaller --batch-size"
        )
    if not WORKER.search(text):
        return ""
    found = SIGNAL.search(text)
    name = found.group(1).strip() if found else ""
    if name == "Bus error":
        return f"a data worker was ended: {SHARED_MEMORY_FULL}"
    if name == "Killed":
        return (
            "a data worker was killed, most likely because the memory ran out: fewer --workers, a"
            " smaller --batch-size or no --cache ram would need less"
        )
    how = f"was ended by a signal ({name})" if name else "ended before its batch was done"
    return f"a data worker {how}; its own line says why if it could, --workers 0 would show more"


def _texts(error: BaseException | None) -> Iterator[str]:
    """Yield the texts of an error and of its causes: the signal is that of the cause."""
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__
