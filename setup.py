"""Hands CMakeLists.txt to cmake and ninja.

PLANTOPS_BUILD = auto | cpu | cuda | none
    auto  (default) compile the CPU kernels when torch, cmake, ninja, pybind11 and a C++ compiler are there, and the
          CUDA kernels too when torch is a CUDA build and an nvcc of its CUDA major version is there (no GPU is needed);
          else install the package without a compiled module and say so
    cpu   compile the CPU kernels, or fail saying what is missing
    cuda  compile the CPU and the CUDA kernels, or fail saying what is missing
    none  no compiled module: every op works through ATen

A CUDA build is for compute capability 8.0, 9.0 and 10.0 with PTX for later ones; TORCH_CUDA_ARCH_LIST names others, as
in "8.6;9.0+PTX". nvcc is CUDACXX, that of CUDA_HOME or CUDA_PATH, or the first on PATH.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODES = ("auto", "cpu", "cuda", "none")
HINT = "pip install --no-build-isolation ."
CUDA_ARCHITECTURES = ("80", "90", "100")


def missing_requirements() -> list[str]:
    """What a compiled build needs and this environment lacks."""
    missing = [name for name in ("torch", "pybind11") if importlib.util.find_spec(name) is None]
    missing += [tool for tool in ("cmake", "ninja") if shutil.which(tool) is None]
    compiler = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([compiler] if compiler else ["c++", "g++", "clang++"])):
        missing.append(f"a C++ compiler{f' ({compiler})' if compiler else ''}")
    return missing


def find_nvcc() -> str | None:
    """The path of the CUDA compiler, or None."""
    homes = [Path(os.environ[name], "bin", "nvcc") for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [os.environ.get("CUDACXX"), *map(str, homes), "nvcc"]
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def nvcc_version(nvcc: str) -> str:
    """As in "13.0"."""
    text = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    match = re.search(r"release (\d+\.\d+)", text)
    if match is None:
        raise SystemExit(f"{nvcc} --version does not name its release:\n{text}")
    return match.group(1)


def missing_for_cuda() -> str:
    """Why the CUDA kernels cannot be compiled here; empty where they can."""
    import torch

    if torch.version.cuda is None:
        return f"a CUDA build of torch (installed: {torch.__version__})"
    nvcc = find_nvcc()
    if nvcc is None:
        return f"nvcc of CUDA {torch.version.cuda.split('.')[0]} (set CUDA_HOME or CUDACXX)"
    version = nvcc_version(nvcc)
    if version.split(".")[0] != torch.version.cuda.split(".")[0]:
        return f"nvcc of CUDA {torch.version.cuda.split('.')[0]}, torch's major version ({nvcc} is {version})"
    return ""


def cuda_architectures(nvcc: str) -> list[str]:
    """The architectures as cmake writes them: 80-real is machine code for 8.0, 100-virtual PTX for 10.0 and later."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "").replace(";", " ").split()
    if not wanted:
        listed = subprocess.run([nvcc, "--list-gpu-code"], check=True, capture_output=True, text=True).stdout.split()
        known = [name for name in CUDA_ARCHITECTURES if f"sm_{name}" in listed]
        return [f"{name}-real" for name in known] + [f"{known[-1]}-virtual"]
    result = []
    for name in wanted:
        match = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)
        if match is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: expected numbers as in '8.0;9.0+PTX', got {name!r}")
        result.append(f"{match[1]}{match[2]}-real")
        if match[3]:
            result.append(f"{match[1]}{match[2]}-virtual")
    return result


def build_mode() -> str:
    """The mode after `auto` has been decided; raises SystemExit with what to do when it cannot be had."""
    mode = os.environ.get("PLANTOPS_BUILD", "auto").lower()
    if mode not in MODES:
        raise SystemExit(f"PLANTOPS_BUILD={mode!r}: expected one of {', '.join(MODES)}")
    if mode == "none":
        return mode
    missing = missing_requirements()
    if missing:
        what = ", ".join(missing)
        if mode != "auto":
            raise SystemExit(f"PLANTOPS_BUILD={mode} needs {what}. Install that, then: {HINT}")
        print(
            f"plantops: no compiled kernels in this build ({what} not found); every op works through ATen.\n"
            f"          For the compiled kernels install torch, cmake, ninja and pybind11, then: {HINT}",
            file=sys.stderr,
        )
        return "none"
    if mode == "cpu":
        return mode
    without = missing_for_cuda()
    if not without:
        return "cuda"
    if mode == "cuda":
        raise SystemExit(f"PLANTOPS_BUILD=cuda needs {without}. Install that, then: {HINT}")
    print(f"plantops: CPU kernels only; CUDA kernels need {without}.", file=sys.stderr)
    return "cpu"


MODE = build_mode()


class CMakeBuild(build_ext):
    """Configures and builds plantops._C with cmake and ninja."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11
        import torch
        from torch.utils.cpp_extension import include_paths

        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build_dir = (ROOT / self.build_temp).resolve()
        build_dir.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        torch_version = ".".join(torch.__version__.split(".")[:2])
        options = {
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "TORCH_INCLUDE_DIRS": ";".join(include_paths()),
            "TORCH_LIBRARY_DIR": Path(torch.__file__).parent / "lib",
            "TORCH_VERSION": torch_version,
            "PLANTOPS_VERSION": self.distribution.get_version(),
            "PLANTOPS_CUDA": "OFF",
            "CMAKE_LIBRARY_OUTPUT_DIRECTORY": target.parent,
            "CMAKE_BUILD_TYPE": "Release",
        }
        nvcc = find_nvcc() if MODE == "cuda" else None
        if nvcc is not None:
            options["PLANTOPS_CUDA"] = "ON"
            options["CMAKE_CUDA_COMPILER"] = nvcc
            options["CMAKE_CUDA_ARCHITECTURES"] = ";".join(cuda_architectures(nvcc))
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        subprocess.run(["cmake", "-G", "Ninja", "-S", str(ROOT), "-B", str(build_dir), *definitions], check=True)
        subprocess.run(["cmake", "--build", str(build_dir)], check=True)
        # Read before the module is loaded: a module built for another torch may not even load.
        record = {"torch": torch_version, "cuda": nvcc_version(nvcc) if nvcc else ""}
        (target.parent / "_C_build.json").write_text(json.dumps(record) + "\n")

    def copy_extensions_to_source(self) -> None:
        # build_ext --inplace knows of the module only; the record belongs beside it.
        super().copy_extensions_to_source()
        for ext in self.extensions:
            record = Path(self.build_lib, *ext.name.split(".")[:-1], "_C_build.json")
            shutil.copy(record, Path(self.get_ext_fullpath(ext.name)).parent)


class Wheel(bdist_wheel):
    """A wheel without a compiled module is the same on every platform."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.root_is_pure = MODE == "none"


setup(
    ext_modules=[Extension("plantops._C", sources=[])] if MODE != "none" else [],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": Wheel},
)
