"""The cluster description is one that Ray takes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster.yaml"


def test_ray_up_would_accept_the_cluster_file() -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray moved what `ray up` validates with")
    described = yaml.safe_load(CLUSTER.read_text())
    util.validate_config(util.prepare_config(described))  # raises what `ray up` would
    described["provdier"] = described["provider"]
    with pytest.raises(Exception, match="provdier"):
        util.validate_config(util.prepare_config(described))
