"""Completion in real shells."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ui
BIN = Path(sys.executable).parent
BASH = """
source <(sterna completion bash)
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
_sterna_completion sterna
printf '%s\\n' "${COMPREPLY[@]}"
"""
FISH = 'sterna completion fish | source; complete -C "$argv"'


def shell(*command: str, host: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "STERNA_HOST": host}
    return subprocess.run(command, capture_output=True, text=True, env=env, check=True, timeout=30)


def bash(host: str, *words: str) -> list[str]:
    done = shell("bash", "-c", BASH, "bash", *words, host=host)
    assert done.stderr == ""
    return done.stdout.split()


def test_bash_is_offered_commands_options_and_names(sternad):
    sternad.add_vm("worker")
    assert bash(sternad.url, "sterna", "vm", "show", "w") == ["web", "worker"]
    assert bash(sternad.url, "sterna", "vm", "create", "--firm") == ["--firmware"]


def test_bash_is_offered_nothing_while_the_daemon_is_away():
    assert bash("unix:///none", "sterna", "vm", "show", "") == []


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_is_offered_names_and_commands(sternad):
    done = shell("fish", "-c", FISH, "sterna vm show w", host=sternad.url)
    assert (done.stdout.split(), done.stderr) == (["web"], "")
    assert shell("fish", "-c", FISH, "sterna mov", host=sternad.url).stdout.startswith("move\t")


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_reads_its_script(tmp_path):
    script = shell("sterna", "completion", "zsh", host="").stdout
    (tmp_path / "_sterna").write_text(script)
    assert shell("zsh", "-n", str(tmp_path / "_sterna"), host="").stderr == ""
    assert script.startswith("#compdef sterna")
