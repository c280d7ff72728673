"""Heat maps: colours and their scale."""

from __future__ import annotations

import numpy as np

from spg_pipe.decision import heat_maps


def grey(height: int, width: int, value: int = 128) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def lightness(pixels: np.ndarray) -> np.ndarray:
    return pixels @ np.array([0.2126, 0.7152, 0.0722])


def test_a_higher_probability_is_never_darker() -> None:
    ramp = np.linspace(0, 1, 101, dtype=np.float32)[None]
    painted = heat_maps.overlay(grey(1, 101), ramp)
    assert painted.dtype == np.uint8
    assert (np.diff(lightness(painted)[0]) > -1).all()
    assert lightness(painted)[0, -1] > lightness(painted)[0, 0] + 80


def test_one_scale_makes_equal_values_equal_colours() -> None:
    """The colour of a value does not depend on what else its map holds."""
    first = heat_maps.overlay(grey(1, 2), np.array([[0.4, 0.5]], np.float32))
    second = heat_maps.overlay(grey(1, 2), np.array([[0.4, 1.0]], np.float32))
    np.testing.assert_array_equal(first[0, 0], second[0, 0])


def test_values_beyond_the_scale_are_clipped() -> None:
    values = np.array([[0.1, 0.2, 0.8, 0.9]], np.float32)
    painted = heat_maps.overlay(grey(1, 4), values, low=0.2, high=0.8)
    np.testing.assert_array_equal(painted[0, 0], painted[0, 1])
    np.testing.assert_array_equal(painted[0, 2], painted[0, 3])


def test_colour_of_the_photograph_does_not_mix_with_the_map() -> None:
    red = np.zeros((1, 1, 3), np.uint8) + np.array([200, 0, 0], np.uint8)
    level = np.zeros((1, 1), np.float32)
    np.testing.assert_array_equal(
        heat_maps.overlay(red, level), heat_maps.overlay(grey(1, 1, round(0.299 * 200)), level)
    )


def test_sixteen_bits_are_scaled_by_the_type_s_range() -> None:
    values = np.array([[[0, 32896, 65535]]], np.uint16)
    np.testing.assert_array_equal(heat_maps.eight_bit(values), [[[0, 128, 255]]])
