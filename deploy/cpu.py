"""What the CPU offers for INT8."""

import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
VNNI = {"avx512_vnni", "avx_vnni", "avxvnni", "amx_int8"}
DOT_PRODUCT = {"asimddp"}


def cpu_facts(cpuinfo: Path = CPUINFO) -> dict[str, str]:
    """Return the name and the flags of the first CPU; empty texts where they are unknown."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return {"name": platform.processor(), "flags": ""}
    found: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        found.setdefault(key.strip().lower(), value.strip())
    return {
        "name": found.get("model name", platform.machine()),
        "flags": found.get("flags", found.get("features", "")),
    }


def int8_note(cpuinfo: Path = CPUINFO) -> str:
    """Return a sentence on whether this CPU multiplies INT8 quickly."""
    facts = cpu_facts(cpuinfo)
    flags = set(facts["flags"].split())
    name = facts["name"] or "this CPU"
    if flags & VNNI:
        return f"{name}: has VNNI ({', '.join(sorted(flags & VNNI))}): INT8 is at its quickest here"
    if flags & DOT_PRODUCT:
        return f"{name}: has dot products of INT8 (asimddp): INT8 is at its quickest here"
    if flags:
        return (
            f"{name}: has no VNNI: INT8 multiplies by older instructions here, which gains little,"
            " or nothing, over float32; compare the ms below before you deploy it on such a CPU"
        )
    return f"{name}: its flags are unknown; compare the ms of float32 and INT8"
