"""llama.cpp's sources, which several parts hold this program against."""

import os
import subprocess
import sys
import tarfile
from importlib import metadata
from pathlib import Path


def llama_cpp_sources(folder: Path) -> Path:
    """Their folder: WGTRAIN_LLAMA_CPP, or the source package of llama-cpp-python, of the version
    that the tests ask, fetched by name into `folder`.
    """
    if given := os.environ.get("WGTRAIN_LLAMA_CPP"):
        return Path(given)
    version = metadata.version("llama-cpp-python")
    package = f"llama_cpp_python-{version}"
    if not (folder / package).is_dir():
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:"]
        subprocess.run([*pip, "-d", folder, f"llama-cpp-python=={version}"], check=True)
        with tarfile.open(folder / f"{package}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder / package / "vendor" / "llama.cpp"
