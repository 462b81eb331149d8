"""Data workers: as many batches under way as shared memory holds, and an end that is said."""

import multiprocessing.queues
import os
import sys
from types import TracebackType

from torch import Tensor
from torch.utils.data import get_worker_info

from data.options import LoaderOptions
from utils.errors import UserError
from utils.log import LOGGER
from utils.worker_errors import SHARED_MEMORY_FULL

SHARED_MEMORY = "/dev/shm"  # where torch puts the batches that workers hand over
PREFETCH = 4  # batches that a worker makes ahead
KEPT = 2  # batches that the main process holds: the one in use and the next
USABLE = 0.9  # share of the free space; the rest is for targets and for other programs


def free_shared_memory() -> int | None:
    """Return the free bytes of shared memory, None where the system has no such folder."""
    try:
        found = os.statvfs(SHARED_MEMORY)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def batch_bytes(opt: LoaderOptions) -> int:
    """Return the most bytes that the images of a batch take."""
    side = opt.imgsz + int(2 * opt.pad * opt.stride)
    return opt.batch_size * 3 * side * side


def fitting(workers: int, most: int) -> tuple[int, int]:
    """Return how many workers, and batches ahead for each, keep `most` batches under way.

    Workers are kept as long as each has a batch; 0, 0 where not even one batch fits.
    """
    if most >= workers:
        return workers, min(PREFETCH, most // workers) if workers else 0
    return (most, 1) if most > 0 else (0, 0)


def plan_workers(opt: LoaderOptions, batches: int) -> tuple[int, int]:
    """Return the number of workers and of batches ahead that shared memory has room for.

    A line says what is changed and how to have more. Without the check, a worker that finds no room
    loses its batch, and the main process waits for the batch for ever.

    Args:
        opt: Options of the loader.
        batches: Number of batches of an epoch; more workers than that are useless.
    """
    workers, free = min(opt.workers, batches), free_shared_memory()
    if not workers or free is None:
        return workers, PREFETCH if workers else 0
    size = batch_bytes(opt)
    most = int(USABLE * free / opt.world_size) // size - KEPT
    found = fitting(workers, most)
    if found != (workers, PREFETCH):
        wanted = (workers * PREFETCH + KEPT) * size * opt.world_size / USABLE
        each = f", {found[1]} batches ahead each" if found[0] else ", slower"
        LOGGER.warning(
            f"--workers {workers}: want {wanted / 2**20:.0f} MB of shared memory,"
            f" {SHARED_MEMORY} has {free / 2**20:.0f} MB free: going on with {found[0]}{each}"
            " (docker run --shm-size 2g gives a container more)"
        )
    return found


def shared(tensor: Tensor) -> Tensor:
    """Return a tensor of a batch; in a data worker, put it into shared memory at once.

    Otherwise a thread of `multiprocessing` would do so when it hands the batch over, and would lose
    the batch where there is no room.

    Raises:
        UserError: The shared memory is full.
    """
    if get_worker_info() is None:
        return tensor
    try:
        return tensor.share_memory_()
    except (RuntimeError, OSError) as error:
        text = str(error).splitlines()[0]
        reason = SHARED_MEMORY_FULL if "No space left" in text else text
        raise UserError(f"a data worker cannot hand over its batch: {reason}") from None


def prepare_worker(worker: int) -> None:
    """Prepare a data worker: see `expect_hang_ups` and `_give_up`; called in the worker."""
    expect_hang_ups()
    queue = multiprocessing.queues.Queue
    queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]


def _give_up(error: BaseException, batch: object) -> None:
    """End a worker that cannot hand a batch over: the main process would wait for it for ever."""
    if not isinstance(error, ConnectionError | EOFError):
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"data worker: a batch cannot be handed over: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def expect_hang_ups() -> None:
    """In a data worker: say nothing where the main process ends while it is being handed a batch.

    A thread of `multiprocessing` hands it over and prints a traceback then. The interrupted program
    has said all there is to say; what fails in making a batch takes another way, with the batch.
    Other exceptions are printed as before.
    """

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, (ConnectionError, EOFError)):
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook
