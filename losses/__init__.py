"""Losses: functions of tensors, each with a thin module; torch is all they need."""
