"""What the command line says when something goes wrong: one short message where a user can mend it, else everything.

It imports nothing heavy, so that it can stand around all else.
"""

import dis
import errno
import io
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType

__all__ = ["ShownFailures", "short_failure"]

PACKAGE = str(Path(__file__).resolve().parent.parent)
INTERRUPTED = 130
"""Status of a process that was interrupted, as shells have it."""
TOLD_TO_END = 143
"""Status of a process that was told to end (SIGTERM), likewise."""
SIGTERM_ERROR = "SIGTERMException"
"""What Lightning raises then, which by itself would end in status 0, as if a run had come to its end."""

SETTINGS_ERROR = "MisconfigurationException"
"""Lightning's error about settings, whoever's they are."""
OF_TRAINER = re.compile(r"lightning/pytorch/(trainer/(connectors/)?|loops/fit_)\w+\.py$")
"""Where a ``ValueError`` of Lightning's is about the trainer's settings: ``val_check_interval`` above the number of batches."""

ADVICE = {
    errno.ENOSPC: "free some space there, or set {setting} to a folder on another disk",
    errno.EDQUOT: "free some space there, or set {setting} to a folder with another quota",
    errno.EROFS: "nothing can be written there: set {setting} to a folder on another disk",
    errno.EACCES: "allow it, or set {setting} to a folder of yours",
    errno.EPERM: "allow it, or set {setting} to a folder of yours",
    errno.EMFILE: "raise the limit (ulimit -n), or use fewer workers (data.loader.num_workers)",
    errno.ENAMETOOLONG: "set {setting} to a shorter path",
}
"""What to do about an error of the system."""

FRAME = re.compile(r'^ *File "(.+)", line \d+, in .*(?:\n ++(?!File ")(.*))?$', re.MULTILINE)
"""A function in a traceback: its file, and the line of code where it is to be had."""
WORKERS = (
    (
        re.compile(r"DataLoader (worker \(pid.*?\)) (?:is killed by signal: (.*?)\.|exited unexpectedly)"),
        (
            "a process that makes batches ended before its time ({0}{1}): most often the machine, or the memory that the job may use, "
            "was full; use fewer (data.loader.num_workers, 0 for none), and go on from the last checkpoint (--ckpt_path last)"
        ),
    ),
    (
        re.compile(r"DataLoader timed out after (\S+) seconds()"),
        (
            "no batch came within data.loader.worker_timeout ({0} s): a process that makes batches hangs, or what it reads from "
            "does; look at that disk, raise the timeout, or go on without such processes (data.loader.num_workers=0, --ckpt_path last)"
        ),
    ),
)
"""What torch says of processes that make batches, and what to say of it."""
TOLD = re.compile(r"^(?:\w+\.)*(\w+): (.*)\Z", re.MULTILINE | re.DOTALL)
"""The last lines of a traceback that another process wrote: type and message."""


class ShownFailures:
    """A context in which a verb runs: what goes wrong is said on standard error, and ends in an exit status.

    The status is 1 after an error, 130 if it was interrupted, 143 if it was told to end (138 by SIGUSR1), and what the verb
    says if it stops by itself.
    """

    def __init__(self, verb: str, *, full: bool = False) -> None:
        """Know what runs.

        Args:
            verb: Which verb.
            full: Show the traceback of what needs none, too.
        """
        self.name, self.full = f"pluralign {verb}", full

    def __enter__(self) -> None:
        """Begin."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Say what went wrong.

        Raises:
            SystemExit: If anything did.
        """
        if isinstance(error, SystemExit) and type(error).__name__ == SIGTERM_ERROR:
            status = error.code if isinstance(error.code, int) else TOLD_TO_END
            if status:  # else another process speaks for this one
                print(f"{self.name}: ended by {signal.Signals(status - 128).name}", file=sys.stderr)
            raise SystemExit(status) from None
        if isinstance(error, SystemExit):
            error = error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else None
        if isinstance(error, KeyboardInterrupt):  # where Lightning was interrupted it stops with status 1
            print(f"{self.name}: interrupted", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        if isinstance(error, Exception):
            self._say(error)
            raise SystemExit(1) from None

    def _say(self, error: Exception) -> None:
        message = short_failure(error)
        if self.full or message is None:
            traceback.print_exception(error)
        if message is None:
            message = (
                f"{type(error).__name__}; a fault of pluralign, or of a library: the lines above say where"
            )
        print(f"{self.name}: error{_rank()}: {message}", file=sys.stderr)


def short_failure(error: BaseException) -> str | None:
    """What a user needs to know of an error; None if that is its traceback.

    An error is told in short if a ``raise`` of pluralign's raised it, here or in another process, if it is Lightning's
    about settings (``MisconfigurationException``, or a ``ValueError`` of its trainer), or if it is the system's about a file. It counts wherever it stands among the causes of an error.
    """
    for link in _chain(error):
        if told := _of_workers(str(link)):
            return told
        if _is_told(type(link).__name__, _raised_in(link)):
            return str(link).strip()
        if isinstance(link, OSError) and link.errno is not None:
            return _of_system(link)
        if told := _of_another_process(str(link)):
            return told
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error, what caused it, and so on."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _frames(trace: TracebackType | None) -> list[TracebackType]:
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    return frames


def _is_told(kind: str, file: str | None) -> bool:
    """Whether an error of a type speaks to a user, if a ``raise`` in a file raised it, or (None) something else did."""
    if kind == SETTINGS_ERROR:
        return True
    return file is not None and (_is_ours(file) or (kind == "ValueError" and _is_of_trainer(file)))


def _raised_in(error: BaseException) -> str | None:
    """The file with the ``raise`` that raised it; None if it came of something else, such as a function in C."""
    frames = _frames(error.__traceback__)
    if not frames:
        return None
    code, last = frames[-1].tb_frame.f_code, frames[-1].tb_lasti
    if not (_is_ours(code.co_filename) or _is_of_trainer(code.co_filename)):
        return None  # nobody asks, and there may be much to read
    raises = any(
        each.offset == last and each.opname == "RAISE_VARARGS" for each in dis.get_instructions(code)
    )
    return code.co_filename if raises else None


def _is_of_trainer(file: str) -> bool:
    return OF_TRAINER.search(Path(file).as_posix()) is not None


def _is_ours(file: str) -> bool:
    return Path(os.path.realpath(file)).is_relative_to(PACKAGE)


def _of_workers(message: str) -> str | None:
    """What to say where a process that makes batches has died or hangs."""
    for pattern, told in WORKERS:
        if found := pattern.search(message):
            name, signal = found.groups()
            return told.format(name, f", by a signal: {signal}" if signal else "")
    return None


def _of_another_process(message: str) -> str | None:
    """What an error says that a worker or a rank raised; torch sends its traceback as the message of another error."""
    frames = FRAME.findall(message)
    if not frames:
        return None
    file, line = frames[-1]
    told = TOLD.search(message[message.rindex(line) + len(line) :])
    if told is None:
        return None
    return told[2].strip() if _is_told(told[1], file if line.startswith("raise ") else None) else None


# Files -------------------------------------------------------------------------------------------------


def _of_system(error: OSError) -> str:
    """The file, what is wrong with it, and the setting to change."""
    assert error.errno is not None  # the caller asked
    names = (error.filename2, error.filename)  # of a copy the second is written
    named = next((os.fsdecode(name) for name in names if isinstance(name, str | bytes)), None)
    file = named or _file_at_hand(error)
    path = None if file is None else Path(file)
    where = "" if path is None else f"{path}: "
    advice = ADVICE.get(error.errno, "--traceback shows what asked for it")
    return f"{where}{os.strerror(error.errno)}; {advice.format(setting=_setting(path))}"


def _file_at_hand(error: BaseException) -> str | None:
    """What was open where it happened, else what pluralign was about; an error while writing names no file."""
    frames = [trace.tb_frame for trace in reversed(_frames(error.__traceback__))]
    for frame in frames:
        for value in _values(frame):
            name = getattr(value, "name", None) if isinstance(value, io.IOBase) else None
            if isinstance(name, str) and not name.startswith("<"):
                return name
    ours = (frame for frame in frames if _is_ours(frame.f_code.co_filename))
    return next((str(value) for frame in ours for value in _values(frame) if isinstance(value, Path)), None)


def _values(frame: FrameType) -> Iterator[object]:
    """What a function had at hand, and the attributes of its object."""
    values = dict(frame.f_locals)
    yield from values.values()
    yield from getattr(values.get("self"), "__dict__", {}).values()


def _setting(path: Path | None) -> str:
    """The setting that says where a file goes."""
    run = "--trainer.default_root_dir"
    if path is None:
        return f"{run} (the run's files), PLURALIGN_CACHE (caches) or TMPDIR (temporary files)"
    caches = Path.home() / ".cache"
    cache = os.environ.get("PLURALIGN_CACHE") or caches / "pluralign"
    hub = os.environ.get("HF_HOME") or caches / "huggingface"
    if path.parent == Path(tempfile.gettempdir()):
        return "TMPDIR"
    for folder, setting in ((cache, "PLURALIGN_CACHE (or --data.cache_dir)"), (hub, "HF_HOME")):
        if path.absolute().is_relative_to(Path(folder).absolute()):
            return setting
    return f"{run} (or the option that names the file)"


def _rank() -> str:
    """Which process speaks, where several do."""
    rank = os.environ.get("LOCAL_RANK", "0")
    return "" if rank == "0" else f" (process {rank})"
