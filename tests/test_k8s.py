"""A run as Kubernetes objects: their exact text, Kubernetes' own schema, and what a pod makes of it. No cluster."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from host_project import Bench, make_bench
from sample_runs import DIGEST, make_spec

from runner.config import Scheduler, Tracking
from runner.engines.request import Limits
from runner.errors import ConfigError
from runner.inside import job
from runner.k8s import job_name, objects, pulled_name
from runner.k8s_command import notes, written
from runner.lock import HardwarePin
from runner.record import Conducted
from runner.source import Source
from runner.spec import RunSpec

GOLDEN = Path(__file__).with_name("golden") / "k8s-2-nodes.yaml"
VERSION = "1.37"
GIB = 1 << 30


def gpu_spec() -> RunSpec:
    """A run of 4 ranks on 4 GPUs, of an image in a registry, whose data is mounted."""
    spec = make_spec()
    ref = f"registry.example:5000/team/torch:2.14@{DIGEST}"
    return replace(
        spec,
        image=replace(spec.image, name="torch", source="registry", ref=ref, index=DIGEST, manifest=None, config=None),
        hardware=HardwarePin(device="cuda", threads=8, gpu_model="NVIDIA H200", gpu_count=4),
        ranks=4,
        virtual_ranks=4,
        data={"fashion-mnist": {"images.gz": DIGEST}},
    )


def conducted(nodes: int = 2, **scheduler: Any) -> Conducted:
    placed = {"kind": "k8s", "timeout_s": 3600, "hang_timeout_s": 600, "claim": "team-runs", **scheduler}
    return Conducted(
        limits=Limits(memory_bytes=64 * GIB, pids=4096, shm_bytes=8 * GIB, tmp_bytes=16 * GIB),
        tracking=Tracking(wandb="off", project="p", entity=None, tags=(), group=None, log_every_steps=10),
        scheduler=Scheduler(**placed),
        data_recipe="cpu",
        nodes=nodes,
    )


def objects_of(spec: RunSpec, how: Conducted) -> dict[str, Any]:
    made = objects(spec, how, nonce="0123456789abcdef", self_test_steps=3)
    return {each["kind"]: each for each in made}


def environment_of(made: dict[str, Any], index: int) -> dict[str, str]:
    """What a pod's container finds in its environment, where the cluster has filled in the index."""
    (container,) = made["Job"]["spec"]["template"]["spec"]["containers"]
    field = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    filled = [(each["name"], each.get("value"), each.get("valueFrom")) for each in container["env"]]
    assert all(source in (None, field) for _, _, source in filled)
    return {name: str(index) if value is None else value for name, value, _ in filled}


def test_the_manifest_of_2_nodes_is_as_it_was() -> None:
    spec, how = gpu_spec(), conducted(namespace="research", queue="gpus")
    source = Source(digest=spec.source, folder=Path("runs/.source/sha256-00"))
    text = written(list(objects_of(spec, how).values()), notes(spec, how, source))
    assert text == GOLDEN.read_text()


def test_its_first_line_says_that_nobody_ran_it() -> None:
    assert GOLDEN.read_text().startswith("# not run by xrun: ")


@pytest.mark.parametrize("nodes", [1, 2])
def test_kubernetes_own_schema_takes_every_object(nodes: int) -> None:
    made = objects_of(gpu_spec(), conducted(nodes))
    for each in made.values():
        kubernetes_validate.validate(each, VERSION, strict=True)
    assert list(yaml.safe_load_all(written(list(made.values()), ["a note"]))) == list(made.values())


@pytest.mark.parametrize(("key", "value"), [("completionmode", "Indexed"), ("completions", "two")])
def test_the_schema_refuses_a_wrong_field_and_a_wrong_value(key: str, value: str) -> None:
    wrong = objects_of(gpu_spec(), conducted())["Job"]
    wrong["spec"][key] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)


def test_a_pod_learns_which_node_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = objects_of(gpu_spec(), conducted())
    (tmp_path / "spec.json").write_text(made["ConfigMap"]["data"]["spec.json"])
    for name, value in environment_of(made, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XRUN_SPEC", str(tmp_path / "spec.json"))
    run, name = job.from_environment(), job_name(gpu_spec())
    assert run.node == job.Node(2, 1, f"{name}-0.{name}", 29500)
    assert (list(run.ranks_of(1)), run.nonce, run.self_test_steps) == ([2, 3], "0123456789abcdef", 3)
    service, pod = made["Service"], made["Job"]["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"] == name
    assert [port["port"] for port in service["spec"]["ports"]] == [run.node.master_port]


def test_one_node_is_told_of_no_other_and_reaches_nothing() -> None:
    made = objects_of(gpu_spec(), conducted(1))
    assert not {name for name in environment_of(made, 0) if name.startswith(("XRUN_NODE", "XRUN_MASTER"))}
    assert made["NetworkPolicy"]["spec"].keys() == {"podSelector", "policyTypes"}


def test_an_image_is_pulled_by_digest_alone() -> None:
    assert pulled_name(gpu_spec().image) == f"registry.example:5000/team/torch@{DIGEST}"


def test_an_image_that_no_registry_has_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        objects_of(make_spec(), conducted())
    assert str(refused.value) == (
        "scheduler=k8s pulls images, and image cpu is in no registry: its source is a recipe\n\n"
        "hint: push it first, and name it in conf/image/: source: registry, ref: <repository>@sha256:<digest>"
    )


def test_a_long_name_leaves_room_for_a_pod_s_index() -> None:
    name = job_name(replace(gpu_spec(), experiment="a.very_long-name-" * 6))
    assert len(name) <= 49
    assert name.startswith("a-very-long-name-a-very-long-name-a-very-")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return make_bench(tmp_path_factory.mktemp("project"))


WORDS = ("experiment=tiny", "image=none", "hardware.ranks=2", "hardware.nodes=2", "scheduler=k8s", "scheduler.claim=c")


def test_a_dry_run_prints_the_manifest_and_leaves_no_run(bench: Bench) -> None:
    ran = bench.xrun(*WORDS, "--dry-run")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("# not run by xrun: ")
    *_, made = yaml.safe_load_all(ran.stdout)
    assert (made["kind"], made["spec"]["completions"], made["spec"]["parallelism"]) == ("Job", 2, 2)
    kubernetes_validate.validate(made, VERSION, strict=True)
    assert not list((bench.folder / "runs").glob("tiny-*"))


def test_without_dry_run_nothing_is_submitted_and_the_command_is_said(bench: Bench) -> None:
    ran = bench.xrun(*WORDS)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == (
        "error: scheduler=k8s: xrun does not submit to Kubernetes yet; it prints what kubectl takes\n\n"
        f"hint: xrun {' '.join(WORDS)} --dry-run\n"
    )


def test_a_manifest_without_a_claim_is_refused(bench: Bench) -> None:
    ran = bench.xrun(*WORDS[:-1], "--dry-run")
    assert (ran.returncode, ran.stderr) == (
        2,
        (
            "error: scheduler.claim: expected the name of a PersistentVolumeClaim, found nothing\n\n"
            f"hint: xrun {' '.join(WORDS[:-1])} scheduler.claim=<name> --dry-run\n"
        ),
    )
