"""Where a store may lie, as options and recipes name it."""

from pathlib import Path

from spg_pipe.recipe.places import place_of


def test_a_place_is_a_folder_or_a_url_in_one_spelling():
    places = {"a/b": Path("a/b"), "file:///a/b": Path("/a/b"), "FILE:///a": Path("/a")}
    places |= {"S3://Bucket/x/": "s3://Bucket/x", "s3://": "s3://"}
    assert {text: place_of(text) for text in places} == places
