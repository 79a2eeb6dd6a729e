"""Files that a kill cannot spoil: written whole, or line by line.

write_atomic("scores.json", b"...")          # the old file or the new one, never half of it
Journal("answers.jsonl", {"judge": "Q"}).write({"image": "0_0.png", "output": "..."})
"""

import contextlib
import errno
import functools
import itertools
import json
import logging
import operator
import os
import shutil
import threading
from pathlib import Path

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows: two processes over one journal are not kept apart there
    fcntl = None

warn_of_no_locks = functools.cache(logging.getLogger(__name__).warning)  # once of each kind
# How file systems say that they know no locks: Lustre without -o flock, some FUSE and NFS mounts.
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP}


def write_atomic(path, content: bytes) -> None:
    """Writes a file such that a reader, or a kill, never meets half of it."""
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            os.replace(part, path)
        except OSError:  # a full disk: the half that was written would take up what is left
            part.unlink(missing_ok=True)
            raise


def check_outputs(outputs, inputs) -> None:
    """Raises ValueError if a file that is to be written is a folder, or is one that is read, by
    whatever name."""
    for out in filter(os.path.isdir, outputs):
        raise ValueError(f"'{out}' is a folder; name a file to write")
    for out, path in itertools.product(map(Path, outputs), map(Path, inputs)):
        # os.path: False, and no error, for a name that no file can have
        if os.path.exists(out) and os.path.exists(path) and out.samefile(path):
            raise ValueError(
                f"'{out}' is read here and would be written over; choose another output"
            )


def hold(path, wait: bool = False):
    """The file, open and locked until it is closed or this process ends, however it ends.

    wait: for another process that holds it, instead of raising BlockingIOError. Where the file
    system knows no locks it goes on without, and warns once.
    """
    file = open(path, "a+b")  # noqa: SIM115
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            file.close()
            raise
        warn_of_no_locks(
            f"outputs are on a file system without locks ({error.strerror}): nothing keeps a "
            "second process from writing to the same ones, so start only one"
        )
    return file


def free_bytes(path) -> int:
    """Room on the disk of a path, or of the nearest folder above it that is there."""
    path = Path(path).absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


@contextlib.contextmanager
def writing(path):
    """What a full or broken disk raises, in the libraries' many ways, as one OSError."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error).strip().splitlines()[0]
        free = free_bytes(path) / 1e9
        raise OSError(f"cannot write '{path}': {reason} ({free:.2f} GB are free there)") from None


class Journal:
    """Lines of JSON, each on disk as soon as it is written; the first says what the file is for.

    same(old, new): whether a file that was begun with one header goes on with another.
    A torn last line, of a process that was killed, is cut off. Raises ValueError if the file was
    begun for something else, is damaged, or is being written by another process.
    """

    def __init__(self, path, header: dict, same=operator.eq):
        path, self.lock = Path(path), threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.file = hold(path)
        except BlockingIOError:
            raise ValueError(f"another process is writing {path}") from None
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        try:
            lines = [dict(json.loads(line)) for line in whole.splitlines()]
        except (ValueError, TypeError) as error:
            self.file.close()
            raise ValueError(f"{path} is damaged ({error}); remove it to begin anew") from None
        first, *self.lines = lines or [None]
        if first is not None and not same(first, header):
            self.file.close()
            raise ValueError(
                f"{path} was begun for {first}, not for {header}; choose another --out"
            )
        self.file.truncate(len(whole))
        if first is None:
            self.write(header)

    def write(self, line: dict) -> None:
        with self.lock, writing(self.file.name):
            try:
                self.file.write(json.dumps(line, ensure_ascii=False).encode() + b"\n")
                self.file.flush()  # to the system, which outlives this process
            except OSError:
                self.file.raw.close()  # else its end would try once more, and name no file
                raise


def stem_of(path: Path) -> str:
    """The name without its suffix. What holds more than letters is none: `flux.1-dev` is a name."""
    return path.stem if path.suffix[1:].isalpha() else path.name


def journal_path(out: Path) -> Path:
    return out.with_name(f"{stem_of(out)}.journal.jsonl")


def journal_of(out: Path) -> Path:
    """The path of the journal beside an output. Raises ValueError if the output is there without
    it: it may be another evaluator's, or made by hand."""
    journal = journal_path(out)
    if out.exists() and not journal.exists():
        raise ValueError(
            f"{out} is there, but not its journal {journal.name}; choose another --out"
        )
    return journal
