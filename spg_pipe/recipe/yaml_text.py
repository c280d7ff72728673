"""YAML as DVC reads it, too: a section that names a key twice is refused, not half used."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """PyYAML alone takes the last of two equal keys without a word."""

    # The stubs call the anchor a dict.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} is there twice, first in line {lines[name]}; "
                    "keep one",
                    problem_mark=key.start_mark,
                )
            lines[name] = line
        return node


def parse_yaml(text: str) -> Any:
    """The content of a YAML text.

    Raises
    ------
    yaml.YAMLError
        If it is no YAML, or a section names a key twice.
    """
    return yaml.load(text, _Loader)  # noqa: S506
