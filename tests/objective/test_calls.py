"""The output of a model is found in whatever container it comes."""

import pytest
import torch

from curvcli.errors import ModelError
from curvcli.objective.calls import main_output


def test_outputs_in_containers() -> None:
    z = torch.randn(2, 3)

    class WithLogits:
        logits = z

    for output in (z, (z, None), [z], {"logits": z}, {"other": 3, "z": z}, WithLogits()):
        assert main_output(output) is z
    with pytest.raises(ModelError, match="no output tensor"):
        main_output("text")
