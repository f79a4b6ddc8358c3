"""A run on several machines: what is refused, where they start, what it costs."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from infra.config import Installation
from infra.operate.commands.launch import find_place
from infra.operate.commands.shell import choose_machine
from infra.operate.planning.catalog import TYPES
from infra.operate.planning.estimate import Estimate
from infra.operate.planning.offering import offer
from infra.operate.planning.options import Request
from infra.operate.planning.placing import find_site
from infra.operate.planning.scaling import estimate
from infra.operate.planning.work import work_of
from infra.operate.session import Aws as Operator
from tests.emulator.aws import Aws
from tests.infra.deployed import RUN, Deployed, client, deploy
from tests.infra.operate.launches import GROUP, INSTALLATION, begin, group, machines, plan, read_spec, stop
from tests.infra.operator import GIVEN_IMAGE, infra, prepare_account, put_token, rows, session, stand_in_for_cdk
from trainer.contract import UserError, run_key

pytestmark = pytest.mark.usefixtures("served")
EFA = "1.51.0=" + 64 * "0"
TWO = ("launch", "--recipe", "finetune", "--nodes", "2")


def placed(account: Deployed) -> tuple[list[str], str]:
    """The zones of a group's subnets, and its placement group."""
    found = client(account.aws, "autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])
    (told,) = found["AutoScalingGroups"]
    subnets = client(account.aws, "ec2").describe_subnets(SubnetIds=told["VPCZoneIdentifier"].split(","))["Subnets"]
    return sorted(one["AvailabilityZone"] for one in subnets), told.get("PlacementGroup", "")


def test_two_machines_start_in_the_cheaper_zone_in_one_placement_group_and_one_starts_anywhere(place: Deployed) -> None:
    place.aws.set(zone_usd={"us-east-1c": 0.9})
    ended = infra(*TWO, "--run", "wide")
    assert ended.code == 0, ended.said + ended.error
    assert "zone      us-east-1c, where an image is cheapest at the spot prices of now" in ended.said
    assert "if none come: make stop, then make launch RUN=wide ZONE=us-east-1b" in ended.said
    assert "machines  2 at once, in one zone\n" in ended.said
    assert f"GPUs      2 in 2 {group(place).types[0]}: " in ended.said
    assert "2 times the list price of the dearest type" in ended.said
    assert "pools in the zone with most, and all machines share one" in rows(ended.said)["zones"][1]
    zones, placement = placed(place)
    assert (zones, bool(placement), group(place).maximum) == (["us-east-1c"], True, 2)
    assert {(one.zone, one.type) for one in machines(place)} == {("us-east-1c", group(place).types[0])}
    assert len(machines(place)) == 2
    assert len({TYPES[type].gpu for type in group(place).types}) == 1
    assert read_spec(place, "wide").nodes == 2
    stop(place)
    assert infra("launch", "--recipe", "digits", "--run", "narrow").code == 0
    assert placed(place) == (["us-east-1b", "us-east-1c"], "")


def test_the_zone_can_be_chosen_and_a_run_that_goes_on_keeps_it(place: Deployed) -> None:
    place.aws.set(zone_usd={"us-east-1c": 0.9})
    assert "us-east-1b, as you asked" in infra(*TWO, "--run", "wide", "--zone", "us-east-1b").said
    assert placed(place)[0] == ["us-east-1b"]
    stop(place)
    assert "us-east-1b, as you asked" in infra("launch", "--run", "wide").said
    stop(place)
    ended = infra(*TWO, "--zone", "us-east-1x")
    assert ended.error == "error: ZONE='us-east-1x' is none of this installation: use one of us-east-1b, us-east-1c\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--nodes", "17"), "NODES=17 is out of range: use 1 to 16 (resnet-spot:max_nodes=16 in cdk.json, which may"),
        (("--nodes", "0"), "'0' is no number of machines: give 1 or more, such as NODES=2"),
        (("--nodes", "-1"), "NODES=-1 is out of range: use 1 to 16 "),
        (("--nodes", "8"), 'NODES=8: a step has 4 parts, 512 images by 128, and each GPU needs one: use NODES=4, '
                           'or ARGS="--device-batch-size 64"'),
        (("--nodes", "1", "--types", "g6.48xlarge"), "NODES=1 of g6.48xlarge with 8 GPUs: a step has 4 parts, 512 "
                           'images by 128, and each GPU needs one: use ARGS="--device-batch-size 64"'),
        (("--nodes", "4", "--args=--model.sync-norm"),
         "1 to 4 of them must share out the 4 parts of a step evenly, 512 images by 128: use NODES=2 or no --model"),
        (("--nodes", "3", "--args=--global-batch-size 768 --device-batch-size 96 --model.sync-norm"),
         'evenly, 768 images by 96: use NODES=2 or ARGS="--model.sync-norm --device-batch-size 128" or no --model.sy'),
        (("--nodes", "2", "--args=--cuda-graphs"), "works for one GPU, and this run has 2 (NODES=2): leave it out"),
        (("--types", "g5.12xlarge", "--args=--cuda-graphs"), "this run has 4 (NODES=1)"),
        (("--nodes", "2", "--types", "g5.xlarge,g6.xlarge"), "g5.xlarge,g6.xlarge have different GPUs (1 A10G, 1 L4)"),
        (("--nodes", "2", "--types", "g5.xlarge,g5.12xlarge", "--recipe", "mild"), "different GPUs (1 A10G, 4 A10G)"),
    ],
)  # fmt: skip
def test_what_cannot_train_on_so_many_machines_is_refused_before_aws_is_asked(
    words: tuple[str, ...], said: str, place: Deployed
) -> None:
    place.aws.clear_calls()
    ended = infra("launch", "--recipe", "finetune", *words)
    assert (ended.code, place.aws.calls()) == (2, [])
    assert said in ended.error


def test_a_run_of_several_goes_on_with_as_many_or_with_one_if_that_is_asked_for(place: Deployed) -> None:
    begin(place, Request(recipe="finetune", run_id="wide", nodes=2))
    stop(place)
    assert begin(place, Request(run_id="wide")).nodes == 2
    stop(place)
    assert infra("launch", "--run", "wide", "--nodes", "1").code == 0
    billing = [machine for machine in machines(place) if machine.is_billing]
    assert (read_spec(place, "wide").nodes, len(billing), placed(place)[1]) == (1, 1, "")


def test_a_run_on_8_gpus_goes_on_there_without_its_recipe_said_again(place: Deployed) -> None:
    """Its own recipe has parts for all of them, and that of a launch that names none has four."""
    place.aws.set(quotas={"L-3819A6DF": 192.0, "L-DB2E81BA": 192.0})
    words = ("launch", "--run", "wide", "--types", "g5.48xlarge")
    begun = infra(*words, "--recipe", "mild")
    assert begun.code == 0, begun.said + begun.error
    stop(place)
    ended = infra(*words)
    assert ended.code == 0, ended.error
    stop(place)
    assert "and each GPU needs one" in infra("launch", "--run", "new", "--types", "g5.48xlarge").error


def test_smaller_parts_are_enough_for_more_machines(place: Deployed) -> None:
    planned = plan(Request(recipe="finetune", nodes=8, arguments=("--device-batch-size", "64")))
    assert planned.spec.nodes == 8
    even = plan(Request(recipe="finetune", nodes=2, arguments=("--device-batch-size", "64", "--model.sync-norm")))
    assert even.spec.nodes == 2


def test_a_quota_for_one_machine_is_too_small_for_two(place: Deployed) -> None:
    place.aws.set(quotas={"L-3819A6DF": 3.0})
    ended = infra(*TWO)
    assert ended.code == 3
    assert "3 vCPUs, 0 in use, at least 8 needed for 2 machines" in rows(ended.said)["vCPU quota"][1]
    assert machines(place) == []


def test_a_deploy_after_a_run_of_several_finds_its_groups_in_no_placement_group(
    place: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CloudFormation gives them subnets of all zones, and AWS would refuse that of a group with a placement group."""
    assert infra(*TWO).code == 0
    assert placed(place)[1]
    stop(place)
    stand_in_for_cdk(tmp_path, monkeypatch, deploys=False)
    ended = infra("-c", f"image_uri={GIVEN_IMAGE}", "deploy", "--no-launch", "--recipe", "digits")
    assert placed(place)[1] == "", ended.said + ended.error


def test_the_quota_is_that_of_the_types_which_a_run_of_several_asks_for(place: Deployed) -> None:
    """The installation also has types of 4 vCPUs, and eight of those would be enough."""
    asked = ("--recipe", "mild", "--nodes", "8")
    planned = plan(Request(recipe="mild", nodes=8))
    least = min(TYPES[one.type].vcpus for one in planned.offered)
    assert least > min(TYPES[type].vcpus for type in INSTALLATION.instance_types.split(","))
    for vcpus, said in (
        (8 * least - 1, f"at least {8 * least} needed for 8 machines, and NODES=7 fits"),
        (8 * least, "0 in use"),
    ):
        place.aws.set(quotas={"L-3819A6DF": float(vcpus)})
        assert said in rows(infra("preflight", *asked).said)["vCPU quota"][1]


def test_what_an_older_version_deployed_takes_one_machine_and_says_how_to_have_more(aws: Aws) -> None:
    prepare_account(aws)
    account = deploy(aws, without=("Placement",))  # and so without the output that names it
    put_token(aws)
    ended = infra(*TWO)
    assert ended.code == 2
    assert "NODES=2: what is deployed is made for runs on one machine: `make deploy NO_LAUNCH=1` first" in ended.error
    assert machines(account) == []
    assert infra("launch", "--recipe", "digits").code == 0


def test_only_the_types_with_an_efa_start_from_the_template_that_has_one(place: Deployed) -> None:
    """AWS says which have one, and refuses a template that is not there."""
    planned = plan(Request(recipe="finetune", nodes=2, types=("g6.4xlarge", "g6.8xlarge")))
    there = replace(find_place(Operator(session()), INSTALLATION, "train"), installation=Installation(efa=EFA))
    site, said = find_site(Operator(session()), there, planned)
    assert site is not None
    assert said[1] == "network   Elastic Fabric Adapter on g6.8xlarge"
    autoscaling, offered = client(place.aws, "autoscaling"), ("g6.4xlarge", "g6.8xlarge")
    with pytest.raises(autoscaling.exceptions.ClientError, match="resnet-spot-train-efa, does not exist"):
        offer(autoscaling, GROUP, "spot", offered, 2, site)
    client(place.aws, "ec2").create_launch_template(
        LaunchTemplateName="resnet-spot-train-efa", LaunchTemplateData={"ImageId": "ami-12345678"}
    )  # fmt: skip
    offer(autoscaling, GROUP, "spot", offered, 2, site)
    (told,) = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"]
    overrides = told["MixedInstancesPolicy"]["LaunchTemplate"]["Overrides"]
    named = {"LaunchTemplateName": "resnet-spot-train-efa", "Version": "$Latest"}
    assert [one.get("LaunchTemplateSpecification") for one in overrides] == [None, named]
    without, _ = find_site(Operator(session()), replace(there, installation=INSTALLATION), planned)
    assert without == replace(site, efa_types=())


def test_a_shell_opens_on_the_machine_that_leads_or_on_the_one_that_is_named(place: Deployed) -> None:
    """The oldest one leads until another has said that it does. An older machine prepares data beside them."""
    place.launch("prepare-imagenet", kind="prepare")
    time.sleep(1.05)  # EC2 tells the second of a launch
    place.launch(nodes=3)
    operator, running = Operator(session()), place.machines()
    preparing, first, second, third = running
    assert preparing.run_id == "prepare-imagenet"

    def chosen(asked: str = "") -> str:
        return choose_machine(operator, INSTALLATION, running, asked).id

    assert chosen() == first.id
    for machine, role in ((first, "member"), (second, "head"), (third, "member")):
        place.put(run_key(RUN, f"nodes/{machine.id}.json"), {"role": role})
    assert chosen() == second.id
    assert chosen(third.id[:-1]) == third.id
    with pytest.raises(UserError, match="NODE='i-x' begins the id of no machine of the run"):
        chosen("i-x")
    place.put(run_key(RUN, f"nodes/{second.id}.json"), {"role": "head", "ended": 1.0})
    assert chosen() == first.id
    with pytest.raises(UserError, match="no machine runs"):
        choose_machine(operator, INSTALLATION, [], "")


def estimates(nodes: int) -> list[Estimate]:
    work, names = work_of("mild"), ("g5.xlarge", "g5.8xlarge")
    prices = {name: TYPES[name].usd_per_hour for name in names}
    return estimate(work, names, prices, extras_usd_per_hour=0.05, nodes=nodes)


def test_the_estimate_of_several_machines_is_that_of_one_by_the_model_of_scaling() -> None:
    """The slow network of the small type makes several of it dearer than several large ones."""
    alone, four = ({one.type: one for one in estimates(nodes)} for nodes in (1, 4))
    assert next(iter(alone)) == "g5.xlarge"
    assert next(iter(four)) == "g5.8xlarge"
    large, one = four["g5.8xlarge"], alone["g5.8xlarge"]
    assert 0.5 < large.efficiency < 1.0
    assert one.efficiency == 1.0
    assert large.usd_per_hour == 4 * one.usd_per_hour
    assert large.of_hours.train == pytest.approx(one.of_hours.train / 4 / large.efficiency)
    assert large.of_hours.copy == one.of_hours.copy
    assert large.usd == pytest.approx(large.hours * 4 * (one.usd_per_hour + 0.05))
    assert large.images_per_second == pytest.approx(one.images_per_second * 4 * large.efficiency)


def test_a_machine_with_several_gpus_trains_as_many_with_one_at_its_own_price_and_without_a_network() -> None:
    work, names = work_of("mild"), ("g5.4xlarge", "g5.12xlarge", "g5.48xlarge")
    found = {one.type: one for one in estimate(work, names, {name: TYPES[name].usd_per_hour for name in names})}
    alone, four, eight = (found[name] for name in names)
    assert 0.9 < eight.efficiency < four.efficiency < alone.efficiency == 1.0
    assert [one.usd_per_hour for one in (alone, four, eight)] == [1.624, 5.672, 16.288]
    assert four.images_per_second == pytest.approx(4 * four.efficiency * 12 / 16 * alone.images_per_second, rel=0.35)
    assert eight.of_hours.train < 0.6 * four.of_hours.train < 0.3 * alone.of_hours.train
    assert eight.of_hours.copy == alone.of_hours.copy
    (two,) = estimate(work, names[1:2], {names[1]: 5.672}, nodes=2)
    assert two.usd_per_hour == 2 * 5.672
    assert two.efficiency < four.efficiency
