"""What a terminal, a pipe or a file of any encoding gets, and errors of the system in words."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from pathlib import Path
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spg_pipe.errors import SpgError, UsageError, printable, told
from spg_pipe.pipeline.console import Console, exit_code

RESULT = "σ 4, R² 0.9 ± 0.1 → scores…\nMüller 部品.png"


@pytest.mark.parametrize(
    ("encoding", "printed"),
    [
        ("utf-8", RESULT),
        ("cp1252", "sigma 4, R² 0.9 ± 0.1 -> scores…\nMüller \\u90e8\\u54c1.png"),
        ("latin-1", "sigma 4, R² 0.9 ± 0.1 -> scores...\nMüller \\u90e8\\u54c1.png"),
        ("ascii", "sigma 4, R2 0.9 +/- 0.1 -> scores...\nM\\xfcller \\u90e8\\u54c1.png"),
    ],
)
def test_a_stream_of_any_encoding_gets_the_result(monkeypatch, encoding, printed):
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding, newline="\n") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def command() -> None:
        Console().result({}, RESULT)
        Console(json=True).result({"σ": RESULT, "name": "M\udcfcller"})
        Console().say(RESULT)
        raise SpgError(RESULT)

    assert exit_code(command) == 1
    text, _, content = out.buffer.getvalue().decode(encoding).partition("{")
    assert text == f"{printed}\n"
    assert json.loads("{" + content) == {"σ": RESULT, "name": "M\udcfcller"}
    assert err.buffer.getvalue().decode(encoding) == f"{printed}\nError: {printed}\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("8-bit \x9b31m, back \b\r, null \0", r"8-bit \x9b31m, back \x08\r, null \x00"),
        ("turned \u202egnp.exe", r"turned \u202egnp.exe"),
        ("M\udcfcller.png", r"M\xfcller.png"),
        ("two\n\tlines, ü → 部品 😀", "two\n\tlines, ü → 部品 😀"),
    ],
)
def test_what_a_terminal_would_obey_is_written_out(text, shown, capsys):
    def command() -> None:
        Console().result({}, text)
        Console().say(text)
        raise UsageError(text)

    assert exit_code(command) == 2
    assert capsys.readouterr() == (f"{shown}\n", f"{shown}\nError: {shown}\n")


@given(st.text(st.characters(codec=None)) | st.binary().map(os.fsdecode))
def test_any_text_becomes_valid_in_utf_8_and_in_xml(text: str) -> None:
    shown = printable(text)
    made = ElementTree.fromstring(f"<a>{escape(shown)}</a>".encode())  # noqa: S314
    assert made.text in (shown, None)
    assert printable(shown) == shown


def closed_pipe() -> io.TextIOWrapper:
    read, write = os.pipe()
    os.close(read)
    return os.fdopen(write, "w")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_closed_stream_is_no_fault(monkeypatch, capfd, name):
    monkeypatch.setattr(sys, name, None)

    def command() -> None:
        with Console().progress("work") as update:
            update(1, 1)
        Console().say("said")
        Console().result({}, "result")

    assert exit_code(command) == 0
    out, err = capfd.readouterr()
    assert (out, "said" in err) == (("", True) if name == "stdout" else ("result\n", False))


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_reader_that_has_seen_enough_ends_a_command_quietly(monkeypatch, capfd, name):
    with closed_pipe() as stream:
        monkeypatch.setattr(sys, name, stream)
        printing = {
            "stdout": lambda: Console().result({}, "x"),
            "stderr": lambda: Console().say("x"),
        }
        assert exit_code(printing[name]) == 141
    monkeypatch.undo()
    with closed_pipe() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert exit_code(lambda: stream.write("a library's line")) == 141
    monkeypatch.undo()
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_under_stdout_is_one_message(monkeypatch, capfd):
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert exit_code(lambda: Console().result({}, "x")) == 1
    said = "Error: No space left on device: /dev/full. Make room there, or choose another place.\n"
    assert capfd.readouterr().err == said


def too_large_for_numpy() -> None:
    np.empty((1 << 50,), np.float64)


def too_large_for_torch() -> None:
    torch.empty(1 << 50)


def too_large_for_onednn() -> None:
    raise RuntimeError("could not create a primitive")


def too_large_for_the_loader() -> None:
    raise ImportError("libtorch_cpu.so: failed to map segment from shared object")


@pytest.mark.parametrize(
    "command",
    [too_large_for_numpy, too_large_for_torch, too_large_for_onednn, too_large_for_the_loader],
)
def test_no_memory_is_a_message_that_says_what_to_lower(command, capsys):
    assert exit_code(command) == 1
    said = capsys.readouterr().err
    assert said.startswith("Error: out of memory (")
    assert "enforce fail" not in said
    for setting in ("extract.batch_images", "--workers", "--tiles"):
        assert setting in said


def test_another_fault_of_a_library_is_no_want_of_memory():
    def command() -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        exit_code(command)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x", "a/b"), "No space left on device: a/b. Make room there, or"),
        (OSError(errno.EDQUOT, "x", "a"), "Disk quota exceeded: a. Make room there, or choose"),
        (PermissionError(errno.EACCES, "x", "a"), "Permission denied: a. Check its owner and"),
        (
            OSError(errno.EROFS, "x", "a"),
            "Read-only file system: a. Check the disk, or choose another",
        ),
        (OSError(errno.EMFILE, "x", "a"), "Too many open files: a. Raise the limit on open files"),
        (OSError(errno.EIO, "x"), "Input/output error. Check the disk, or choose another place."),
        (OSError(errno.ENOMEM, "x"), "Cannot allocate memory. Close other programs, or lower"),
        (OSError("a library's words"), "a library's words"),
    ],
)
def test_an_error_of_the_system_is_told_with_its_place_and_a_remedy(error, message):
    assert told(error).startswith(message)
