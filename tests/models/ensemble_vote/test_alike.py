import pytest

from pluralign.models.ensemble_vote.alike import check_different


def test_equal_members_are_refused_and_those_of_whom_nothing_is_known_are_not():
    with pytest.raises(
        RuntimeError, match=r"largest_correlation=0\.999: they are one model.*resample=bootstrap"
    ):
        check_different(1.0, 0.999)
    check_different(1.0, 1.0)
    check_different(float("nan"), 0.999)
