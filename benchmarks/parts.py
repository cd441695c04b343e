"""Split a file into parts that fit a size limit, and join them again."""

import hashlib
import json
from pathlib import Path

from runtime.checkpoint import CheckpointError, atomic_file

PART_BYTES = 15 * 2**20  # below 16 MiB
MANIFEST = "parts.json"


def split(file: Path, folder: Path, part_bytes: int = PART_BYTES) -> dict:
    """Writes the parts of a file and parts.json to a folder; returns the latter's contents.

    It has the file's name, size, SHA-256 and the names of the parts in order, and is written last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in [folder / MANIFEST, *folder.glob("*.part[0-9]*")]:
        old.unlink(missing_ok=True)
    names, digest = [], hashlib.sha256()
    with open(file, "rb") as source:
        while block := source.read(part_bytes):
            digest.update(block)
            names.append(f"{file.name}.part{len(names):03}")
            (folder / names[-1]).write_bytes(block)
    manifest = {"file": file.name, "bytes": file.stat().st_size, "sha256": digest.hexdigest(), "parts": names}
    with atomic_file(folder / MANIFEST) as target:
        target.write((json.dumps(manifest, indent=1) + "\n").encode())
    return manifest


def join(folder: Path, target_folder: Path) -> Path:
    """Joins the parts in a folder to the file they came from. Raises CheckpointError if its SHA-256 differs."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"no {MANIFEST} in {folder}: pass the folder with the parts") from error
    target = target_folder / Path(manifest["file"]).name
    target_folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with atomic_file(target) as file:
        for name in manifest["parts"]:
            part = folder / Path(name).name
            if not part.exists():
                raise CheckpointError(f"{part} is missing: copy all parts")
            block = part.read_bytes()
            digest.update(block)
            file.write(block)
        if digest.hexdigest() != manifest["sha256"]:
            raise CheckpointError(f"the parts in {folder} do not have the SHA-256 of {MANIFEST}: copy them again")
    return target
