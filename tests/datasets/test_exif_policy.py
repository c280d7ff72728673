"""The recipe's protocol decides about EXIF orientation, in manifests and in stores that fit."""

import pytest
from tiny import extracted, manifest_of

from spg_pipe.errors import SpgError
from spg_pipe.pipeline.checked_store import checked_store
from spg_pipe.pipeline.console import Console
from spg_pipe.pipeline.run import RecipeRun
from spg_pipe.recipe.params import parse_params


@pytest.mark.parametrize("protocol", ["default", "spg"])
def test_a_store_of_the_other_exif_policy_does_not_fit(protocol, tiny_images, tmp_path):
    content = {
        "name": "mini",
        "artifacts": str(tmp_path),
        "datasets": [{"name": "parts", "layout": "folder", "root": str(tiny_images)}],
        "auxiliaries": [],
        "directions": [],
        "backbone": {"alias": "efficientnet-lite0", "image_size": 64, "layers": ["s16"]},
        "method": {"protocol": protocol},
    }
    run = RecipeRun(parse_params(content, "the test"), Console(verbosity=0), "cpu")
    extracted(manifest_of(tiny_images), run.paths.store(run.params.datasets[0]))
    with pytest.raises(SpgError, match="was made") as caught:  # of another backbone in any case
        checked_store(run, "parts")
    told = "EXIF orientation is True, not False" in str(caught.value)
    assert told == (protocol == "spg")
