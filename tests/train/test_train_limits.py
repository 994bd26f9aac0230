"""Every recipe's networks lie inside the limits that the kernel puts on a manifest."""

import pytest

from lumbar.bundle.manifest_schema import SERVES
from lumbar.config import from_dict, to_dict
from lumbar.models import name_of
from lumbar_train.recipes import RECIPES


@pytest.mark.parametrize("name", RECIPES)
def test_the_kernel_accepts_what_the_recipe_would_export(name):
    for stage, part in RECIPES[name]().stages.items():
        assert from_dict(type(part.network), to_dict(part.network)) == part.network
        assert name_of(part.network) in SERVES[stage]
