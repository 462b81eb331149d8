"""Do work on parts of a list in several processes, with the results in the order of the parts."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

from utils.errors import UserError

Part = TypeVar("Part")
Result = TypeVar("Result")
MOST = 8  # processes


def in_order(
    parts: Callable[[], Iterable[Part]], work: Callable[[Part], Result], processes: int = 0
) -> Iterator[Result]:
    """Yield the result of each part in the order of the parts.

    Each process goes through all parts itself and works on every n-th, so that nothing but results
    is sent, and none is ahead by more than a pipe holds. A process whose reader has ended ends too.

    Args:
        parts: Called in each process for the parts, the same ones in each.
        work: Called with a part; what a result holds must be picklable.
        processes: Number of processes; 0: one for each CPU, at most `MOST`. One, and systems that
            cannot fork, work in this process.

    Raises:
        UserError: One that the work raised, or a process was killed.
    """
    number = processes or min(MOST, os.cpu_count() or 1)
    if number == 1 or "fork" not in multiprocessing.get_all_start_methods():
        yield from map(work, parts())
        return
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(number)]
    workers = [
        context.Process(target=_work, args=(parts, work, place, pipes), daemon=True)
        for place in range(number)
    ]
    try:
        for worker in workers:
            worker.start()
        for _, sender in pipes:
            sender.close()
        yield from _results([receiver for receiver, _ in pipes])
    finally:
        for receiver, _ in pipes:
            receiver.close()
        for worker in workers:
            worker.terminate()
            worker.join()


def _results(receivers: list[Any]) -> Iterator[Any]:
    """Yield what the processes send, in turn, until the first that has no further part."""
    while True:
        for receiver in receivers:
            try:
                kind, value = receiver.recv()
            except EOFError:
                raise UserError(
                    "a process that reads files has ended, most likely because the memory ran out"
                ) from None
            if kind == "end":
                return
            if kind == "error":
                raise UserError(value)
            yield value


def _work(
    parts: Callable[[], Iterable[Any]],
    work: Callable[[Any], Any],
    place: int,
    pipes: list[tuple[Any, Any]],
) -> None:
    """Work on the parts of one process; an interrupt is left to the main process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sender = pipes[place][1]
    for number, (receiver, other) in enumerate(pipes):
        receiver.close()
        if number != place:
            other.close()
    try:
        for part in islice(parts(), place, None, len(pipes)):
            sender.send(("result", work(part)))
        sender.send(("end", None))
    except UserError as error:
        sender.send(("error", str(error)))
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)


def batches(items: Iterable[Part], size: int) -> Iterator[list[Part]]:
    """Yield the items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while part := list(islice(iterator, size)):
        yield part
