"""What flows between the rooms and can be wrong by itself."""

from __future__ import annotations

import pytest

from pipeline.columns import Membership


@pytest.mark.parametrize(("generation", "member_id"), [(-1, ""), (-1, "m"), (3, "")])
def test_what_passes_the_broker_unchecked_is_no_membership(generation: int, member_id: str) -> None:
    """X1: a member that was thrown out has generation -1 and no id, and a commit with them fences nothing."""
    with pytest.raises(ValueError, match=f"not a membership: generation {generation}, member '{member_id}'"):
        Membership("g", generation, member_id)
    assert Membership("g", 0, "m").instance_id is None
