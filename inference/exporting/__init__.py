"""A reward model leaves the project: folders that plain transformers loads, checked before they take their place."""

from .choice import Choice
from .classification import Dtype
from .folder import ExportReport, Form, export_folder
from .notes import folder_notes, loading_code
from .parity import Check, Load, Parity
from .whole_folder import check_target, folder_written_whole

__all__ = [
    "Check",
    "Choice",
    "Dtype",
    "ExportReport",
    "Form",
    "Load",
    "Parity",
    "check_target",
    "export_folder",
    "folder_notes",
    "folder_written_whole",
    "loading_code",
]
