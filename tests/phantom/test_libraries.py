"""The built libraries: complete for the installed torch, and part of the wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from phantom_process import run

from qmem.phantom import missing_symbols
from qmem.phantom.elf import dynamic_symbols
from qmem.phantom.libraries import LIBRARY, NVIDIA_NAME, stand_ins

ROOT = Path(__file__).parents[2]

needs_a_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@pytest.mark.libraries
def test_the_installed_torch_and_bitsandbytes_find_every_function_they_link_to():
    assert missing_symbols() == ()


@needs_a_compiler
def test_a_function_that_a_new_torch_needs_would_be_named(tmp_path):
    source, library = tmp_path / "new.c", tmp_path / "new.so"
    source.write_text(
        "int cudaFromTheFuture(void); int cudaMalloc(void); int rand(void);"
        "int f(void) { return rand() + cudaFromTheFuture() + cudaMalloc(); }"
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    wanted = dynamic_symbols(library).wanted - dynamic_symbols(LIBRARY).defined
    assert [name for name in wanted if NVIDIA_NAME.fullmatch(name)] == ["cudaFromTheFuture"]


def test_a_file_that_is_no_library_has_no_symbols(tmp_path):
    path = tmp_path / "text.so"
    path.write_text("INPUT(libm.so)")
    assert dynamic_symbols(path) == (frozenset(), frozenset())


def test_no_stand_in_is_called_like_the_file_that_torch_looks_for():
    assert len(stand_ins()) > 20
    assert not [path for path in stand_ins() if "libcudart.so" in str(path)]


def copy_of_the_project(folder):
    left_out = shutil.ignore_patterns("lib", "build", "tests", ".*", "*.egg-info", "runs")
    return Path(shutil.copytree(ROOT, folder / "source", ignore=left_out))


@needs_a_compiler
def test_the_wheel_carries_the_libraries_and_runs_from_where_it_is_installed(tmp_path):
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "wheels")]
    subprocess.run([sys.executable, "-m", "pip", *build, str(copy_of_the_project(tmp_path))], check=True)
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(installed)
    program = "import os, torch; print(torch.cuda.get_device_name(), os.environ['LD_PRELOAD'].partition(':')[0])"
    done = run("-m", "qmem.phantom", "--gpu", "l4", "--", "-c", program, cwd=tmp_path, PYTHONPATH=str(installed))
    assert done.stdout == f"NVIDIA L4 (phantom) {installed}/qmem/phantom/lib/libqmem-phantom.so\n"


@needs_a_compiler
def test_without_a_compiler_everything_else_installs_and_the_phantom_says_why(tmp_path):
    source = copy_of_the_project(tmp_path)
    without = {"CC": "no-such-compiler", "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "setup.py", "-q", "build"], cwd=source, env=without, check=True)
    (built,) = (source / "build").glob("lib*")
    program = "from qmem import phantom; print(phantom.__file__, phantom.availability().why)"
    done = run("-c", program, cwd=tmp_path, PYTHONPATH=str(built))
    assert done.stdout.startswith(f"{built}/qmem/phantom/__init__.py ")
    assert "it could not be compiled: " in done.stdout
    assert "'no-such-compiler'" in done.stdout
    assert "install a C compiler, then qmem again" in done.stdout
