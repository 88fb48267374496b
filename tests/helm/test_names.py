"""Names fit into what Kubernetes allows, and releases beside each other do not share one."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.helm.charts import NAMES, example, manifests, with_values

LONGEST = "a" * 53
# A StatefulSet's pods carry its name and a hash of 11 characters in a label of 63.
STATEFULSET_MAX = 52
# KubeRay's own rule for a RayService, whose name it puts before its clusters'.
RAY_SERVICE_MAX = 47
RELEASES = ("a", "a-gateway", "a-redis", "gateway", LONGEST, LONGEST[:-1] + "b")


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_longest_release_fit(name: str) -> None:
    values = with_values(example(name), {"fullnameOverride": ""})
    for each in manifests(values, name=LONGEST):
        own = each["metadata"]["name"]
        assert len(own) <= {"StatefulSet": STATEFULSET_MAX, "RayService": RAY_SERVICE_MAX}.get(
            each["kind"], 63
        ), own
        assert own[0].isalpha() and own[-1].isalnum(), own
        for value in each["metadata"].get("labels", {}).values():
            assert len(value) <= 63


@pytest.mark.parametrize("name", NAMES)
def test_two_releases_of_a_namespace_share_no_object(name: str) -> None:
    values = with_values(example(name), {"fullnameOverride": ""})
    objects = {
        release: {(each["kind"], each["metadata"]["name"]) for each in manifests(values, name=release)}
        for release in RELEASES
    }
    for one, other in combinations(RELEASES, 2):
        assert objects[one] & objects[other] == set(), (one, other)


def test_the_pods_of_two_releases_are_told_apart() -> None:
    """Also where they are given the same name, which Helm then refuses as taken."""
    selectors = [
        str(each["spec"]["selector"])
        for release in ("one", "two")
        for each in manifests(name=release)
        if each["kind"] in ("Deployment", "StatefulSet")
    ]
    assert len(set(selectors)) == len(selectors) == 10


def test_a_name_of_ones_own_goes_before_the_releases() -> None:
    names = {each["metadata"]["name"] for each in manifests({"fullnameOverride": "own"}, name="release")}
    assert all(name.startswith("own-") for name in names)


@pytest.mark.parametrize("name", NAMES)
def test_no_object_is_rendered_twice(name: str) -> None:
    objects = [(each["kind"], each["metadata"]["name"]) for each in manifests(example(name))]
    assert len(set(objects)) == len(objects)
    assert all(each["metadata"]["namespace"] == "prod" for each in manifests(example(name)))
