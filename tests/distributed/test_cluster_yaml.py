"""The cluster descriptions are ones that Ray takes, and AWS (moto's), and let in only who has the token."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from ray.scripts.scripts import start

REPOSITORY = Path(__file__).parents[2]
FILES = ("cluster.yaml", "cluster-local.yaml")


def described(file: str) -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / file).read_text())


@pytest.mark.parametrize("file", FILES)
def test_ray_up_would_accept_the_cluster_file(file: str) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util", reason="Ray moved what `ray up` validates with")
    cluster = described(file)
    util.validate_config(util.prepare_config(cluster))  # raises what `ray up` would
    cluster["provdier"] = cluster["provider"]
    with pytest.raises(Exception, match="provdier"):
        util.validate_config(util.prepare_config(cluster))


@pytest.mark.parametrize("file", FILES)
def test_every_command_of_a_cluster_file_is_one_that_bash_can_read(file: str) -> None:
    cluster = described(file)
    commands = [each for key in cluster if key.endswith("_commands") for each in cluster[key]]
    assert len(commands) > 5
    for command in commands:
        subprocess.run(["bash", "-n", "-c", command], check=True)


@pytest.mark.parametrize("file", FILES)
def test_every_machine_starts_ray_with_the_token(file: str) -> None:
    cluster = described(file)
    assert cluster["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        (line,) = [each for each in cluster[key] if "ray start" in each]
        setting, _, words = line.partition("ray start ")
        assert "RAY_AUTH_MODE=token" in setting
        start.make_context("start", shlex.split(words))  # raises where Ray knows no such flag


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An AWS account with the profile that `ray up` makes at its first use."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("HOME", str(tmp_path))  # where it keeps the key pair that it makes
    (tmp_path / ".ssh").mkdir()
    iam, profile = boto3.client("iam", region_name="us-east-1"), "ray-autoscaler-v1"
    iam.create_instance_profile(InstanceProfileName=profile)
    iam.create_role(RoleName=profile, AssumeRolePolicyDocument="{}")
    iam.add_role_to_instance_profile(InstanceProfileName=profile, RoleName=profile)
    yield
    server.stop()


def test_aws_has_the_machines_of_the_cluster_file(aws: None) -> None:
    util = pytest.importorskip("ray.autoscaler._private.util")
    provider = pytest.importorskip("ray.autoscaler._private.aws.node_provider").AWSNodeProvider
    cluster = util.prepare_config(described("cluster.yaml"))
    ready = provider.bootstrap_config(provider.fillout_available_node_types_resources(cluster))
    kinds = ready["available_node_types"]
    assert {name: kind["min_workers"] for name, kind in kinds.items()} == {"head": 0, "cpu": 0, "gpu": 0}
    assert kinds["head"]["resources"] == {"CPU": 0}
    assert kinds["cpu"]["resources"]["CPU"] == 32
    assert "GPU" not in kinds["cpu"]["resources"]
    assert kinds["gpu"]["resources"]["GPU"] == 4
    for name, kind in kinds.items():
        tags = {"ray-node-type": "worker", "ray-user-node-type": name, "ray-launch-config": name}
        provider(ready["provider"], "drgn-ray").create_node(kind["node_config"], tags, 1)
    ec2 = boto3.resource("ec2", region_name=ready["provider"]["region"])
    machines = list(ec2.instances.all())
    assert sorted(machine.instance_type for machine in machines) == ["g5.12xlarge", "m6i.2xlarge", "m6i.8xlarge"]
    groups = {group["GroupId"] for machine in machines for group in machine.security_groups}
    rules = [rule for group in groups for rule in ec2.SecurityGroup(group).ip_permissions]
    open_to_all = [rule for rule in rules if rule["IpRanges"]]
    assert {(rule["FromPort"], rule["ToPort"]) for rule in open_to_all} == {(22, 22)}  # so MLflow's and Ray's are not
