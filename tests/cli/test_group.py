"""The command line before any verb: help, version, completion, verbs that are not there."""

import subprocess
import sys

import pytest

from qmem.cli.app import SHELLS, VERBS


def test_help_lists_the_verbs_and_imports_none() -> None:
    program = (
        "import sys; from qmem.cli.app import run; code = run(['--help']);"
        "print(sorted(name for name in sys.modules if name.startswith('qmem.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *help_lines, modules = done.stdout.splitlines()
    assert all(any(line.split()[:1] == [verb] for line in help_lines) for verb, _ in VERBS)
    assert modules == "['qmem.cli', 'qmem.cli.app', 'qmem.cli.command', 'qmem.cli.streams', 'qmem.errors']"


def test_no_argument_means_help(qmem) -> None:
    assert qmem() == qmem("--help")
    assert qmem().code == 0


@pytest.mark.parametrize("arguments", [(), *((verb,) for verb, _ in VERBS)], ids=" ".join)
def test_help_is_readable_at_80_columns(qmem, arguments: tuple[str, ...]) -> None:
    answer = qmem(*arguments, "--help")
    assert (answer.code, answer.err) == (0, "")
    assert max(map(len, answer.out.splitlines())) <= 80


def test_the_version_is_that_of_the_distribution(qmem) -> None:
    from importlib.metadata import version

    assert qmem("--version").out == f"qmem {version('qmem-planner')}\n"


def test_the_module_runs_like_the_command(qmem_process) -> None:
    assert qmem_process("--version").out.startswith("qmem ")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_completion_script_is_printed(qmem, shell: str) -> None:
    answer = qmem("--show-completion", shell)
    assert answer.code == 0
    assert f"_QMEM_COMPLETE={shell}_complete" in answer.out


def test_a_shell_completes_verbs_flags_values_and_models(qmem_process) -> None:
    def completed(words: str) -> list[str]:
        answer = qmem_process(
            _QMEM_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=str(len(words.split(" ")) - 1)
        )
        return [line.partition(",")[2] for line in answer.out.splitlines()]

    assert completed("qmem est") == ["estimate"]
    assert completed("qmem estimate --grad") == ["--grad-accum"]
    assert completed("qmem estimate --quant n") == ["nf4", "none"]
    assert completed("qmem estimate qwen/qwen3-14") == ["Qwen/Qwen3-14B"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["estimat"], "qmem: there is no verb 'estimat'; did you mean estimate?\n"),
        (["Qwen3-14B"], f"qmem: there is no verb 'Qwen3-14B'; the verbs are {', '.join(name for name, _ in VERBS)}\n"),
        (["--verbose"], "qmem: there is no option '--verbose'"),
        (["models", "--jsn"], "qmem: there is no option '--jsn'; did you mean --json?\n"),
        (["estimate", "--rank"], "qmem: option '--rank' requires an argument; see qmem estimate --help\n"),
    ],
)
def test_a_slip_of_the_hand_gets_one_line(qmem, arguments: list[str], line: str) -> None:
    answer = qmem(*arguments)
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert answer.err.startswith(line)


def test_an_interrupt_leaves_with_its_code(qmem, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qmem.cli.app._run", interrupted)
    assert qmem("--help") == (130, "", "qmem: interrupted\n")


def test_a_defect_shows_where_it_is_and_does_not_look_like_a_finding(qmem, monkeypatch: pytest.MonkeyPatch) -> None:
    def defective(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("qmem.cli.app._run", defective)
    answer = qmem("--help")
    assert answer.code == 2
    assert "ZeroDivisionError" in answer.err
    assert answer.err.endswith("qmem: this is a defect of qmem; please report it with the lines above\n")
