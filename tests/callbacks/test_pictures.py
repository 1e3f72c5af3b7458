"""Pictures of every callback: their formats, and the loggers that they go to."""

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from matplotlib.figure import Figure

from pluralign.callbacks import CrowdCalibration, PrototypeMap, RecoveryReport
from pluralign.callbacks.pictures import log_picture, save_picture
from pluralign.tests.callbacks.test_crowd_calibration import Data, LabelRM

pytestmark = pytest.mark.filterwarnings("ignore:The '\\w+_dataloader' does not have many workers")

BEGINNINGS = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}


class Board:
    """Takes figures, as the writer of TensorBoard does."""

    def __init__(self):
        self.figures = []

    def add_figure(self, tag, figure, global_step=None):
        self.figures.append((tag, figure, global_step))


class Quiet(Logger):
    """Keeps no numbers."""

    name, version, experiment = "quiet", 0, None

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        pass


class BoardLogger(Quiet):
    def __init__(self):
        super().__init__()
        self.experiment = Board()


class ImageLogger(Quiet):
    """Takes images, as that of Weights & Biases does."""

    def __init__(self):
        super().__init__()
        self.images = []

    def log_image(self, key, images, step=None):
        self.images.append((key, images, step))


def square():
    figure = Figure(figsize=(2, 1))
    figure.add_axes((0, 0, 1, 1)).set_facecolor("#0072B2")
    return figure


@pytest.mark.parametrize("formats", [["png"], ["pdf", "svg"], ["svg", "png", "pdf"]])
def test_a_picture_is_written_in_every_format(trainer, tmp_path, formats, capsys):
    trainer(CrowdCalibration(formats=formats)).validate(LabelRM(), Data(), verbose=False)
    folder = tmp_path / "crowd_calibration"
    assert sorted(path.suffix[1:] for path in folder.iterdir()) == sorted([*formats, "json"])
    for ending in formats:
        assert (folder / f"val_step000000.{ending}").read_bytes().startswith(BEGINNINGS[ending])
    listed = ", ".join(f".{ending}" for ending in ["json", *formats[:-1]])
    assert capsys.readouterr().out.rstrip().endswith(f"val_step000000{listed} and .{formats[-1]}")


def test_words_of_a_drawing_stay_words_and_equal_pictures_are_equal_files(tmp_path):
    for name in ("one", "two"):
        figure = square()
        figure.suptitle("found again")
        save_picture(figure, tmp_path / "a.b" / name, ["svg", "pdf"])
    assert ">found again<" in (tmp_path / "a.b" / "one.svg").read_text(encoding="utf-8")
    for ending in ("svg", "pdf"):
        one, two = ((tmp_path / "a.b" / f"{name}.{ending}").read_bytes() for name in ("one", "two"))
        assert one == two


@pytest.mark.parametrize("callback", [CrowdCalibration, PrototypeMap, RecoveryReport])
@pytest.mark.parametrize("formats", [[], ["gif"], ["png", "png"], "png"])
def test_other_formats_are_refused(callback, formats):
    with pytest.raises(ValueError, match="formats must be one or more of png, pdf, svg, each once; got"):
        callback(formats=formats)


def test_loggers_get_the_picture_that_is_in_the_folder(trainer, tmp_path):
    board, images, files = BoardLogger(), ImageLogger(), CSVLogger(tmp_path, name="run")
    run = trainer(CrowdCalibration(figure_every_n_validations=2), max_epochs=3, logger=[files, board, images])
    run.fit(LabelRM(), Data())
    assert [(tag, step) for tag, _, step in board.experiment.figures] == [
        ("val/crowd_calibration", 3),
        ("val/crowd_calibration", 9),
    ]
    assert [(key, step) for key, _, step in images.images] == [
        ("val/crowd_calibration", 3),
        ("val/crowd_calibration", 9),
    ]
    assert isinstance(board.experiment.figures[0][1], Figure)
    folder = tmp_path / "run" / "version_0" / "crowd_calibration"
    assert sorted(path.name for path in folder.glob("*.png")) == ["val_step000003.png", "val_step000009.png"]


def test_an_image_has_the_colours_of_the_figure():
    logger = ImageLogger()
    log_picture([logger], "name", square(), 7)
    ((key, (image,), step),) = logger.images
    assert (key, step, image.shape, image.dtype) == ("name", 7, (120, 240, 4), np.uint8)
    assert torch.as_tensor(image[10, 10]).tolist() == [0x00, 0x72, 0xB2, 0xFF]
