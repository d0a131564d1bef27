"""Builds the phantom GPU's libraries where it can: Linux x86-64 and a C compiler, nothing else.

Everything of the project is declared in pyproject.toml; this file only compiles ``qmem/phantom/csrc``.  Where that is
not possible the rest installs all the same, and a note in ``qmem/phantom/lib`` says why the phantom is missing.
"""

import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError, PlatformError

CSRC = Path("qmem", "phantom", "csrc")
SOURCES = sorted(str(path) for path in CSRC.glob("*.c"))
HEADERS = sorted(str(path) for path in (*CSRC.glob("*.h"), *CSRC.glob("*.def")))

LIBRARY = "libqmem-phantom.so"
"""Holds every symbol; what the NVIDIA libraries are called is only on the empty ones that lead to it."""

SONAMES = (
    "libcuda.so.1", "libnvidia-ml.so.1", "libcudart.so.12", "libcudart.so.13", "libcublas.so.12", "libcublas.so.13",
    "libcublasLt.so.12", "libcublasLt.so.13", "libcudnn.so.9", "libcufft.so.11", "libcufft.so.12", "libcurand.so.10",
    "libcusolver.so.11", "libcusolver.so.12", "libcusparse.so.12", "libcusparseLt.so.0", "libnccl.so.2",
    "libnvrtc.so.12", "libnvrtc.so.13", "libcupti.so.12", "libcupti.so.13", "libcufile.so.0", "libnvshmem_host.so.3",
    "libnvJitLink.so.12", "libnvJitLink.so.13", "libnvToolsExt.so.1",
)  # fmt: skip
"""What CUDA 12 and 13 builds of torch and bitsandbytes link to."""

DRIVER_FILES = ("libcuda.so.1", "libcuda.so")
"""Triton looks for the driver by file name, and links to it."""

COMPILE = ["-std=gnu11", "-O2", "-g0", "-fvisibility=hidden"]
LINK = ["-Wl,-Bsymbolic", "-Wl,--strip-all"]


class BuildPhantom(build_ext):
    """Compiles one library and links the empty ones with NVIDIA's names to it."""

    def build_extension(self, ext: Extension) -> None:
        """Build into ``qmem/phantom/lib``; a failure is noted there and passed over (``optional``)."""
        folder = Path(self.build_lib, "qmem", "phantom", "lib")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            self._build(ext, folder)
        except (CompileError, LinkError, PlatformError) as error:
            shutil.rmtree(folder)
            folder.mkdir()
            Path(folder, "why-not.txt").write_text(f"it could not be compiled: {error}\n", encoding="utf-8")
            raise

    def _build(self, ext: Extension, folder: Path) -> None:
        objects = self.compiler.compile(
            ext.sources, output_dir=self.build_temp, depends=ext.depends, extra_postargs=COMPILE
        )
        self._link(objects, folder / LIBRARY, LIBRARY, ["-ldl", "-lpthread"])
        for soname in SONAMES:
            self._stand_in(folder / "sonames" / stand_in_name(soname), soname)
        for name in DRIVER_FILES:
            self._stand_in(folder / "driver" / name, "libcuda.so.1")

    def _stand_in(self, path: Path, soname: str) -> None:
        to_library = [f"-L{path.parent.parent}", "-Wl,--no-as-needed", f"-l:{LIBRARY}", "-Wl,-rpath,$ORIGIN/.."]
        self._link([], path, soname, to_library)

    def _link(self, objects: list[str], path: Path, soname: str, arguments: list[str]) -> None:
        path.parent.mkdir(exist_ok=True)
        self.compiler.link_shared_object(
            objects, str(path), extra_preargs=LINK, extra_postargs=[f"-Wl,-soname,{soname}", *arguments]
        )

    def copy_extensions_to_source(self) -> None:
        """An editable install finds the libraries beside the sources."""
        built, beside = Path(self.build_lib, "qmem", "phantom", "lib"), Path("qmem", "phantom", "lib")
        if built.exists():
            shutil.rmtree(beside, ignore_errors=True)
            shutil.copytree(built, beside)

    def get_outputs(self) -> list[str]:
        """What was built, for whoever lists an installation's files."""
        return [str(path) for path in Path(self.build_lib, "qmem", "phantom", "lib").rglob("*") if path.is_file()]

    def get_output_mapping(self) -> dict[str, str]:
        """Nothing is linked back one by one: ``copy_extensions_to_source`` copies the folder."""
        return {}


class PlatformWheel(bdist_wheel):
    """A wheel with the phantom's libraries suits any Python, but only this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """``py3-none-linux_x86_64`` with the libraries, ``py3-none-any`` without."""
        _, _, tag = super().get_tag()
        return "py3", "none", tag


def stand_in_name(soname: str) -> str:
    """``libcudart.so.13`` becomes ``cudart-13.so``: torch looks for the first spelling to find the real library."""
    name, _, version = soname.removeprefix("lib").partition(".so.")
    return f"{name}-{version}.so"


def can_build() -> bool:
    """Whether the phantom exists for this platform at all."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


setup(
    ext_modules=[Extension("qmem.phantom.lib.phantom", SOURCES, depends=HEADERS, optional=True)] if can_build() else [],
    cmdclass={"build_ext": BuildPhantom, "bdist_wheel": PlatformWheel},
)
