"""OCI documents: the one image of a platform, read strictly."""

import json

import pytest

from runner.errors import ImageError
from runner.images.oci import (
    INDEX,
    LAYER,
    MANIFEST,
    Descriptor,
    choose,
    config_bytes,
    describe,
    index_bytes,
    manifest_bytes,
    parse_config,
    parse_index,
    parse_manifest,
)

DIGEST = "sha256:" + "a" * 64
AMD = Descriptor(media=MANIFEST, digest=DIGEST, size=1, platform="linux/amd64")
ARM = Descriptor(media=MANIFEST, digest=DIGEST, size=1, platform="linux/arm64")
ATTESTATION = Descriptor(
    media=MANIFEST,
    digest=DIGEST,
    size=1,
    platform="unknown/unknown",
    annotations={"vnd.docker.reference.type": "attestation-manifest"},
)


def test_what_is_written_is_read_back() -> None:
    config = config_bytes("linux/amd64", (DIGEST,), {"key": "value"})
    layer = Descriptor(media=LAYER, digest=DIGEST, size=7)
    manifest = parse_manifest(manifest_bytes(describe("config", config), (layer,)), "m")
    assert (manifest.config, manifest.layers) == (describe("config", config), (layer,))
    assert parse_config(config, "c").labels == {"key": "value"}
    assert parse_index(index_bytes((AMD, ATTESTATION)), "i") == (AMD, ATTESTATION)


def test_a_built_config_starts_nothing_and_has_no_privilege() -> None:
    config = json.loads(config_bytes("linux/amd64", (), {}))
    assert config["config"] == {
        "Env": ["PATH=/usr/local/bin:/usr/bin:/bin", "LANG=C.UTF-8"],
        "Labels": {},
        "User": "65532",
        "WorkingDir": "/",
    }
    assert (config["os"], config["architecture"], config["created"]) == ("linux", "amd64", "1970-01-01T00:00:00Z")


def test_an_attestation_is_no_image() -> None:
    assert choose((ATTESTATION, ARM, AMD), "linux/amd64", "layout x") == AMD


def test_a_platform_that_is_not_there_is_refused() -> None:
    with pytest.raises(ImageError) as refused:
        choose((ATTESTATION, ARM), "linux/amd64", "layout x")
    assert refused.value.message == "layout x holds 0 images for linux/amd64, expected 1; it holds linux/arm64"


def test_two_images_of_one_platform_are_refused() -> None:
    with pytest.raises(ImageError) as refused:
        choose((AMD, AMD), "linux/amd64", "layout x")
    assert refused.value.message == (
        "layout x holds 2 images for linux/amd64, expected 1; it holds linux/amd64, linux/amd64"
    )


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (b"[]", "it is no mapping"),
        (b'{"manifests":1}', "manifests is 1"),
        (b'{"manifests":[],"manifests":[]}', "a key stands twice"),
        (b'{"schemaVersion":1,"manifests":[]}', "unknown schemaVersion"),
        (b'{"manifests":[{"digest":"sha256:ab","size":1,"mediaType":"m"}]}', "'sha256:ab' is no digest"),
        (b'{"manifests":[{"digest":"%s","size":-1,"mediaType":"m"}]}' % DIGEST.encode(), "size -1"),
        (b'{"manifests":[{"digest":"%s","size":true,"mediaType":"m"}]}' % DIGEST.encode(), "size is True"),
    ],
)
def test_an_index_that_is_not_as_oci_writes_it_is_refused(text: bytes, wrong: str) -> None:
    with pytest.raises(ImageError) as refused:
        parse_index(text, "index.json")
    assert refused.value.message == f"index.json is not as OCI writes it: {wrong}"


def test_a_compressed_layer_is_refused() -> None:
    layer = Descriptor(media=f"{LAYER}+gzip", digest=DIGEST, size=1)
    with pytest.raises(ImageError) as refused:
        parse_manifest(manifest_bytes(AMD, (layer,)), "manifest m")
    assert refused.value.message == (
        f"manifest m: layer {DIGEST} is '{LAYER}+gzip'; this store takes plain '{LAYER}' only"
    )
    assert INDEX != LAYER
