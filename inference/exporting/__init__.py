"""A reward model leaves the project: folders that plain transformers loads, checked before they take their place."""

from .card import CardSubject, evaluated_as, model_card
from .choice import Choice
from .classification import Dtype
from .folder import ExportReport, Form, export_folder
from .hub import check_push, push_folder
from .language_model import LanguageModelReport, export_language_model
from .language_notes import writing_code
from .notes import folder_notes, loading_code
from .parity import Check, Load, Parity
from .training import TrainingRecord, training_record
from .whole_folder import check_target, folder_written_whole

__all__ = [
    "CardSubject",
    "Check",
    "Choice",
    "Dtype",
    "ExportReport",
    "Form",
    "LanguageModelReport",
    "Load",
    "Parity",
    "TrainingRecord",
    "check_push",
    "check_target",
    "evaluated_as",
    "export_folder",
    "export_language_model",
    "folder_notes",
    "folder_written_whole",
    "loading_code",
    "model_card",
    "push_folder",
    "training_record",
    "writing_code",
]
