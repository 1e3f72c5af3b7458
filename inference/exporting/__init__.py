"""A reward model leaves the project: folders that plain transformers loads, checked before they take their place."""

from .card import CardSubject, evaluated_as, model_card
from .card_front import check_licence
from .choice import Choice
from .classification import Dtype
from .folder import ExportReport, Form, export_folder
from .hub import check_push, push_folder
from .language_model import LanguageModelReport, export_language_model
from .language_notes import language_card, writing_code
from .mixture import MixtureReport, export_mixture
from .mixture_notes import mixture_card, mixture_code
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
    "MixtureReport",
    "Parity",
    "TrainingRecord",
    "check_licence",
    "check_push",
    "check_target",
    "evaluated_as",
    "export_folder",
    "export_language_model",
    "export_mixture",
    "folder_notes",
    "folder_written_whole",
    "language_card",
    "loading_code",
    "mixture_card",
    "mixture_code",
    "model_card",
    "push_folder",
    "training_record",
    "writing_code",
]
