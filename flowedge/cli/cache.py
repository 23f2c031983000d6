"""``flowedge cache`` lists and deletes the engines that were compiled for this machine."""

from __future__ import annotations

from flowedge.cli.group import new_group
from flowedge.cli.output import RESULTS, Json, print_json, table
from flowedge.clock import local_minute

NAME = "cache"

app = new_group(NAME, help="List or delete the engines that were compiled for this machine.")


@app.command("list")
def list_files(json: Json = False) -> None:
    """List the cached engines and the files that speed up building and starting them."""
    from flowedge.runtime.device.device_cache import device_cache

    cache = device_cache()
    files = cache.files()
    if json:
        print_json(
            {"folder": str(cache.folder), "limit": cache.limit, "files": files, "problem": cache.problem}
        )
        return
    if cache.problem:
        RESULTS.print(f"there is no device cache: {cache.problem}", soft_wrap=True)
        return
    rows = table("engine", "precision", "device", "batches", ">MB", "last used")
    for entry in files:
        engine, precision, device, batches = entry.path.relative_to(cache.folder).parts[0], "-", "-", "-"
        if entry.facts is not None:
            engine = f"{entry.facts.engine} {entry.facts.version}"
            precision = entry.facts.precision
            device = f"{entry.facts.device} {entry.facts.capability}".strip()
            batches = ",".join(map(str, entry.facts.batches))
        used = local_minute(entry.used)
        rows.add_row(engine, precision, device, batches, f"{entry.size / 1e6:.1f}", used)
    RESULTS.print(rows)
    total = sum(entry.size for entry in files)
    RESULTS.print(f"{cache.folder}: {total / 1e6:.1f} MB of at most {cache.limit / 1e6:.0f} MB")


@app.command("clear")
def clear(json: Json = False) -> None:
    """Delete all files of the cache. Engines can be built again."""
    from flowedge.runtime.device.device_cache import device_cache

    cache = device_cache()
    deleted = cache.clear()
    if json:
        print_json({"folder": str(cache.folder), "deleted": deleted, "problem": cache.problem})
    else:
        RESULTS.print(f"{cache.folder}: {deleted / 1e6:.1f} MB deleted")
