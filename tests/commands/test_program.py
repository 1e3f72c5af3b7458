"""The command line as a program: errors in a line, quiet libraries, and what a run says at its end."""

import logging
import os
import shlex
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import lightning as L
import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader, Dataset

from pluralign.commands.failures import ShownFailures, short_failure
from pluralign.commands.program import SWITCHES, run_program
from pluralign.commands.quiet import HIDDEN_MESSAGES, quiet
from pluralign.datamodules.checks import check_range
from pluralign.datamodules.records import PreferenceRecord
from pluralign.train import main

ROOT = Path(__file__).parent.parent.parent
CONF = ROOT / "tests" / "conf" / "bradley_terry_synthetic.yaml"
WORDS = ["--config", str(CONF), "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def program(monkeypatch, capsys):
    """What the program prints on both streams, and its status."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["pluralign", *words])
        status = 0
        try:
            main()
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return printed.out, printed.err, status

    return run


def ours():
    check_range("loader.users.unseen_share", 2.5, at_most=1)


def record():
    PreferenceRecord(id="", prompt="Why?", responses=(), comparisons=())


def theirs():
    int("x")


def of_lightning():
    raise MisconfigurationException("`devices` must be positive")


class Rows(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, place):
        record()


def worker():
    list(DataLoader(Rows(), num_workers=1, multiprocessing_context="fork"))


def full_disk():
    with open("/dev/full", "w") as file:
        file.write("much")
        file.flush()


def not_there():
    Path("nowhere", "data.jsonl").write_text("")


def failure(function):
    with pytest.raises(Exception) as raised:
        function()
    return short_failure(raised.value)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (ours, "loader.users.unseen_share must be <= 1; got 2.5"),
        (record, "a name that is not blank"),
        (worker, "a name that is not blank"),
        (of_lightning, "`devices` must be positive"),
        (
            full_disk,
            "/dev/full: No space left on device; free some space there, or set --trainer.default_root_dir",
        ),
        (not_there, "nowhere/data.jsonl: No such file or directory"),
    ],
)
def test_what_a_user_can_mend_is_told_in_short(function, message):
    told = failure(function)
    assert told is not None and message in told
    assert "Traceback" not in told and "\n" not in told


def test_settings_that_the_trainer_refuses_are_told_in_a_line(program):
    words = ["--trainer.val_check_interval=1000", "--trainer.max_epochs=1"]
    _, printed, status = program("fit", *WORDS, *words)
    assert status == 1 and "a fault" not in printed and "Traceback" not in printed
    *_, last = printed.splitlines()
    assert last.startswith("pluralign fit: error: `val_check_interval` (1000) must be less than or equal to")


@pytest.mark.parametrize("function", [theirs, lambda: {}["x"], lambda: 1 / 0])
def test_a_fault_is_not_told_in_short(function):
    assert failure(function) is None


def test_an_error_of_the_system_names_the_setting(monkeypatch, tmp_path):
    monkeypatch.setenv("PLURALIGN_CACHE", str(tmp_path / "caches"))
    for number, file, setting in (
        (28, tmp_path / "caches" / "x.arrow", "PLURALIGN_CACHE (or --data.cache_dir)"),
        (30, Path(tempfile.gettempdir(), "part"), "TMPDIR"),
        (13, "/somewhere/runs/last.ckpt", "--trainer.default_root_dir"),
    ):
        told = short_failure(OSError(number, "as the library puts it", str(file)))
        assert str(file) in told and setting in told
    copied = OSError(28, "No space left on device", "/tmp/part", None, "/somewhere/last.ckpt")
    assert short_failure(copied).startswith("/somewhere/last.ckpt: No space left")


@pytest.mark.parametrize("full", [False, True])
def test_an_error_ends_the_program_with_its_message(full, capsys):
    words = ["--traceback"] if full else []
    with pytest.raises(SystemExit) as stop:
        run_program("fit", words, lambda words: ours())
    assert stop.value.code == 1
    printed = capsys.readouterr().err
    assert printed.endswith("pluralign fit: error: loader.users.unseen_share must be <= 1; got 2.5\n")
    assert ("Traceback" in printed) == full and (printed.count("\n") == 1) != full


def test_a_fault_keeps_its_traceback(capsys):
    with pytest.raises(SystemExit) as stop, ShownFailures("embed"):
        theirs()
    assert stop.value.code == 1
    *trace, last = capsys.readouterr().err.splitlines()
    assert "int(" in "\n".join(trace)
    assert (
        last
        == "pluralign embed: error: ValueError; a fault of pluralign, or of a library: the lines above say where"
    )


@pytest.mark.parametrize("by_lightning", [False, True])
def test_an_interrupted_program_says_so(by_lightning, capsys):
    with pytest.raises(SystemExit) as stop, ShownFailures("fit"):
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if by_lightning:
                sys.exit(1)
            raise
    assert stop.value.code == 130
    assert capsys.readouterr().err == "pluralign fit: interrupted\n"


class TellsToEnd(L.Callback):
    """Has the process told to end in the second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGTERM ends a process at once there")
def test_a_fit_that_is_told_to_end_does_not_look_finished(program, monkeypatch):
    sys.modules["stopping"] = sys.modules[__name__]
    monkeypatch.setattr(TellsToEnd, "__module__", "stopping")
    out, error, status = program(
        "fit", *WORDS, "--trainer.max_epochs=2", "--trainer.callbacks+=stopping.TellsToEnd"
    )
    assert (status, error.splitlines()[-1]) == (143, "pluralign fit: ended by SIGTERM")
    assert "to go on from the last checkpoint: pluralign fit " in out


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [(None, 143, "SIGTERM"), (138, 138, "SIGUSR1"), (0, 0, None)],
    ids=["by_lightning", "by_slurm", "another_process_speaks"],
)
def test_the_status_says_which_signal_it_was(code, status, said, capsys):
    with pytest.raises(SystemExit) as stop, ShownFailures("fit"):
        raise SIGTERMException(*([] if code is None else [code]))
    assert stop.value.code == status
    assert capsys.readouterr().err == (f"pluralign fit: ended by {said}\n" if said else "")


def test_another_status_stays():
    with pytest.raises(SystemExit) as stop, ShownFailures("fit"):
        raise SystemExit(2)
    assert stop.value.code == 2


def test_the_process_is_named_where_several_speak(monkeypatch, capsys):
    monkeypatch.setenv("LOCAL_RANK", "3")
    with pytest.raises(SystemExit), ShownFailures("fit"):
        ours()
    assert capsys.readouterr().err.startswith("pluralign fit: error (process 3): loader.users")


@pytest.mark.parametrize("all_messages", [False, True])
def test_libraries_speak_of_themselves_only_if_asked(all_messages, caplog):
    with quiet("fit", all_messages=all_messages):
        for name, beginnings in HIDDEN_MESSAGES.items():
            logger = logging.getLogger(name)
            logger.propagate = True
            for beginning in beginnings:
                logger.warning("%s and so on", beginning)
            logger.warning("Restoring states")
    hidden = [each for each in caplog.messages if each != "Restoring states"]
    assert caplog.messages.count("Restoring states") == len(HIDDEN_MESSAGES)
    assert bool(hidden) == all_messages


@pytest.mark.filterwarnings("default")
def test_warnings_of_ours_are_lines_and_those_of_the_run_stay(capsys, monkeypatch):
    others = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *place: others.append(str(message)))
    with quiet("fit"):
        for file in (str(ROOT / "datamodules" / "base.py"), "/lib/torch/utils.py"):
            warnings.warn_explicit("too few rows", UserWarning, file, 7)
        warnings.warn_explicit("renamed", FutureWarning, "/lib/peft/a.py", 7, module="peft.a")
        warnings.warn_explicit("renamed too", FutureWarning, "/home/mine.py", 7, module="mine")
    printed = capsys.readouterr().err
    assert printed == "pluralign fit: warning: too few rows\n"
    assert others == ["too few rows", "renamed too"]


def test_wrong_settings_and_data_are_told_in_a_line(program):
    for words, message in (
        (["fit", *WORDS, "--model.label_smoothing=2"], "label_smoothing must be >= 0 and <= 1; got 2.0"),
        (
            ["fit", *WORDS, "--trainer.max_steps=1", "--data.text.max_length=2"],
            "synthetic: nothing is left of the train split",
        ),
        (
            ["data", "inspect", *WORDS, "--data.loader.batch_size=0"],
            "loader.batch_size must be finite and >= 1; got 0",
        ),
    ):
        _, error, status = program(*words)
        assert "PossibleUserWarning" not in error, error
        lines = [line for line in error.splitlines() if ": error: " in line]
        assert len(lines) == 1 and message in lines[0] and status == 1
        assert "Traceback" not in error


def test_a_fit_says_what_it_kept_and_its_next_commands_run(program):
    best = '{"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/loss", "save_last": true}}'
    out, _, status = program("fit", *WORDS, "--trainer.max_epochs=2", f"--trainer.callbacks+={best}")
    assert status == 0
    lines = out.splitlines()
    assert "18,656 of 18,656 parameters are trained" in lines
    (kept,) = [line for line in lines if line.startswith("best checkpoint by val/loss (0.")]
    (last,) = [line for line in lines if line.startswith("last checkpoint: ")]
    assert Path(kept.split(": ")[1]).is_file() and last.endswith("/last.ckpt")
    commands = [shlex.split(line.removeprefix("next: ")) for line in lines if line.startswith("next: ")]
    assert [command[1] for command in commands] == ["test", "predict"]
    assert kept.split(": ")[1] == commands[0][-1] == commands[1][-1]
    out, _, status = program(*commands[0][1:])
    assert status == 0 and "test/accuracy" in out


def test_without_a_monitor_no_checkpoint_is_called_best(program):
    out, _, _ = program("fit", *WORDS, "--trainer.max_steps=1")
    assert "last checkpoint (which is best is unknown: no ModelCheckpoint has a monitor" in out
    out, _, _ = program("fit", *WORDS, "--trainer.max_steps=1", "--trainer.enable_checkpointing=false")
    assert "no checkpoint was kept" in out and "next: " not in out


class Stops(L.Callback):
    """Interrupts the second epoch."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.usefixtures("_restored_interrupts")
def test_an_interrupted_fit_says_from_where_it_goes_on(program, monkeypatch):
    sys.modules["stopping"] = sys.modules[__name__]
    monkeypatch.setattr(Stops, "__module__", "stopping")
    out, error, status = program(
        "fit", *WORDS, "--trainer.max_epochs=2", "--trainer.callbacks+=stopping.Stops"
    )
    assert status == 130 and error.splitlines()[-1] == "pluralign fit: interrupted"
    (line,) = [line for line in out.splitlines() if line.startswith("to go on from the last checkpoint: ")]
    command = shlex.split(line.split(": ", 1)[1])
    assert command[1] == "fit" and command[-1].endswith("epoch=0-step=6.ckpt")


@pytest.fixture
def _restored_interrupts():
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_with_words_of_its_own_a_caller_gets_the_errors():
    with pytest.raises(ValueError, match="label_smoothing must be"):
        main(["fit", *WORDS, "--model.label_smoothing=2"])


def test_every_help_names_the_switches(program):
    for words in (["--help"], ["data", "update", "--help"], ["embed", "--help"]):
        out, _, _ = program(*words)
        assert all(switch in out for switch in SWITCHES)
