"""Make `.venv` with the pinned packages of requirements.txt, or say what this machine lacks.

`make` runs it with any `python3`, so it uses only the standard library and syntax that old versions
parse. It does nothing if requirements.txt, pyproject.toml and the interpreter have not changed.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys

OLDEST = (3, 11)
DISK_GIB = 4  # an environment for a CPU takes 2.3 GiB
DISK_GIB_CUDA = 10  # one for CUDA about 8
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def fail(message):
    sys.exit("crawl2cart: " + message)


def is_new_enough(python):
    """Return whether this Python runs and is new enough.

    A version manager's `python3.12` may only print that 3.12 is not selected.
    """
    test = "import sys; sys.exit(sys.version_info < (%d, %d))" % OLDEST
    with open(os.devnull, "w") as null:
        return subprocess.call([python, "-c", test], stdout=null, stderr=null) == 0


def find_interpreter():
    """Return an interpreter that is new enough: this one, or one on PATH."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for name in ("python3.13", "python3.12", "python3.11"):
        path = shutil.which(name)
        if path and is_new_enough(path):
            return path
    fail(
        "Python 3.11 or newer is needed, but python3 is %d.%d and no python3.11 to python3.13 is "
        "on PATH. Install one (Debian: apt install python3.11 python3.11-venv; macOS: brew install "
        "python@3.12) and run make again, or name it: make PYTHON=/path/to/python3.11"
        % sys.version_info[:2]
    )


def check_machine(root):
    if not shutil.which("git"):
        fail("git is needed and is not on PATH. Install it and run make again.")
    inside = subprocess.run(
        ["git", "-C", root, "rev-parse", "--show-toplevel"], capture_output=True, text=True
    )
    if inside.returncode or os.path.realpath(inside.stdout.strip()) != os.path.realpath(root):
        fail(
            "this folder is not a git repository of its own (a ZIP download?), but DVC needs one. "
            "Get the project with `git clone`."
        )
    free, needed = shutil.disk_usage(root).free / 2**30, DISK_GIB_CUDA if has_cuda() else DISK_GIB
    if free < needed:
        fail(
            "%.1f GiB are free on the disk of %s, %d GiB are needed for the packages and the "
            "results. Free some space and run make again." % (free, root, needed)
        )


def has_cuda():
    return bool(shutil.which("nvidia-smi")) or os.path.exists("/proc/driver/nvidia/version")


def pip(python, *arguments, **options):
    command = [python, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, **options)


def torch_arguments(python, pin):
    """Return pip's arguments for torch: the CPU build on Linux without CUDA, if it is available."""
    if has_cuda() or sys.platform != "linux":
        return [pin]
    dry = ("install", "--dry-run", "--no-deps", "--quiet", "--report", "-", pin)
    report = pip(python, *dry, capture_output=True, text=True)
    if report.returncode == 0:
        if "+cpu" in json.loads(report.stdout)["install"][0]["metadata"]["version"]:
            return [pin]  # the configured index has the CPU build
    index = ["--index-url", TORCH_CPU_INDEX]
    quickly = ["--retries", "0", "--timeout", "10"]
    if pip(python, *dry, *index, *quickly, capture_output=True).returncode == 0:
        return [pin, *index]
    print(
        "No CPU build of torch is available. The default build brings several GB of CUDA libraries."
    )
    return [pin]


def install(root, base):
    environment = os.path.join(root, ".venv")
    python = os.path.join(environment, "bin", "python")
    if os.path.islink(environment):
        fail(
            ".venv is a link to %s, which would be emptied. Remove the link and run make again."
            % os.path.realpath(environment)
        )
    subprocess.run([base, "-m", "venv", "--clear", environment], stdout=subprocess.DEVNULL)
    if not os.path.exists(python) or pip(python, "--version", capture_output=True).returncode:
        fail(
            "%s cannot make a virtual environment. Install venv (Debian, Ubuntu: apt install "
            "python3-venv) and run make again." % base
        )
    requirements = os.path.join(root, "requirements.txt")
    with open(requirements) as file:
        pin = next(line.strip() for line in file if line.startswith("torch=="))
    print("Installing the pinned packages into .venv (a few minutes the first time) …", flush=True)
    project = ["--no-deps", "-e", root]
    for arguments in (torch_arguments(python, pin), ["-r", requirements], project):
        if pip(python, "install", "--quiet", *arguments).returncode:
            fail(
                "pip could not install %s (its message is above). Check that a package index is "
                "reachable and that the disk is not full, then run make again; pip's cache keeps "
                "the downloads." % " ".join(arguments)
            )


def main():
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    base = find_interpreter()
    if base != sys.executable:
        os.execv(base, [base, os.path.abspath(__file__)])
    stamp = os.path.join(root, ".venv", "installed")
    state = hashlib.sha256(base.encode())
    for name in ("requirements.txt", "pyproject.toml"):
        with open(os.path.join(root, name), "rb") as file:
            state.update(file.read())
    if os.path.exists(stamp):
        with open(stamp) as file:
            if file.read() == state.hexdigest():
                return
    check_machine(root)
    install(root, base)
    with open(stamp, "w") as file:
        file.write(state.hexdigest())


if __name__ == "__main__":
    main()
