"""Devices: choice, names and memory. The rest of the program takes a `torch.device`."""

import torch

from utils.errors import UserError


def select_device(text: str = "", local_rank: int | None = None) -> torch.device:
    """Return the device that `--device` asks for.

    Args:
        text: `cpu`, a GPU number, `0,1,...` under torchrun, `cuda` for the first GPU, or empty for
            the first GPU, and for the CPU where the machine has none.
        local_rank: Place of this process among the processes of torchrun on this machine; picks one
            of the GPUs in `text`, or of all GPUs where `text` is empty. None without torchrun.

    Raises:
        UserError: A GPU that the machine does not have, several GPUs without torchrun, or more
            processes than GPUs.
    """
    given, count = text.strip().lower(), torch.cuda.device_count()
    text = given.removeprefix("cuda").removeprefix(":")
    if given == "cpu" or not (given or count):
        return torch.device("cpu")
    if not count:
        raise UserError(
            f"--device {given}: there is no GPU that torch can use on this machine; --device cpu"
            " would be right"
        )
    numbers = [word.strip() for word in text.split(",")] if text else [str(i) for i in range(count)]
    for number in numbers:
        if not _is_number(number) or int(number) >= count:
            raise UserError(
                f"--device {given}: there is no GPU '{number}' (this machine has {count}); cpu, 0"
                " or 0,1 would be right"
            )
    if local_rank is None:
        if text and len(numbers) > 1:
            raise UserError(
                f"--device {text}: several GPUs need torchrun: torchrun --nproc_per_node"
                f" {len(numbers)} train.py ..."
            )
        return torch.device("cuda", int(numbers[0]))
    if local_rank >= len(numbers):
        raise UserError(
            "torchrun started more processes on this machine than --device gives GPUs"
            f" ({len(numbers)})"
        )
    return torch.device("cuda", int(numbers[local_rank]))


def _is_number(word: str) -> bool:
    """Return whether a word is a number of plain digits, few enough for the name of a GPU."""
    return word.isascii() and word.isdecimal() and len(word) < 5


def device_name(device: torch.device) -> str:
    """Return the name of a device for logs: `CPU`, or the GPU's own name."""
    return "CPU" if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"


def gpu_memory(device: torch.device) -> str:
    """Return the reserved GPU memory as the progress bar shows it; `0G` on the CPU."""
    return f"{torch.cuda.memory_reserved(device) / 1e9:.3g}G" if device.type == "cuda" else "0G"


def free_gpu_memory(device: torch.device) -> None:
    """Give cached memory blocks back to the GPU, after running out of memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
