"""Members that are one and the same model are refused."""

__all__ = ["check_different"]


def check_different(correlation: float, largest: float) -> None:
    """Refuse members that are one model.

    Args:
        correlation: Mean correlation of two members' differences; NaN says nothing.
        largest: Which it may have at most.

    Raises:
        RuntimeError: If it is larger, with what to change.
    """
    if correlation > largest:
        raise RuntimeError(
            f"the members' differences are correlated by {correlation:.6f} on the average, more than largest_correlation="
            f"{largest}: they are one model, and its votes say nothing of its doubts. Give members more of their own: data "
            "(resample=bootstrap or folds), dropout, or weights (members=lora or full, whose last layers or all differ; heads "
            "over one network that they train together become alike); largest_correlation=1 lets them pass"
        )
