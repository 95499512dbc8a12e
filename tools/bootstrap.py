"""Make `.venv` with the pinned packages of requirements.txt, or say in a sentence what this machine lacks.

Run by `make` with whatever `python3` there is, so it uses the standard library only and syntax that old versions parse.
A second run does nothing as long as requirements.txt, pyproject.toml and the interpreter are the same.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys

OLDEST = (3, 11)
DISK_GIB = 4  # a CPU environment takes 2.3 GiB
DISK_GIB_CUDA = 10  # a CUDA one about 8
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def fail(sentence):
    sys.exit("crawl2cart: " + sentence)


def is_new_enough(python):
    """Whether this is a Python that runs: a version manager's `python3.12` may only say that 3.12 is not chosen."""
    test = "import sys; sys.exit(sys.version_info < (%d, %d))" % OLDEST
    with open(os.devnull, "w") as nowhere:
        return subprocess.call([python, "-c", test], stdout=nowhere, stderr=nowhere) == 0


def find_interpreter():
    """An interpreter that is new enough: this one or a newer one on PATH."""
    if sys.version_info >= OLDEST:
        return sys.executable
    for name in ("python3.13", "python3.12", "python3.11"):
        path = shutil.which(name)
        if path and is_new_enough(path):
            return path
    fail(
        "Python 3.11 or newer is needed, but python3 here is %d.%d and no python3.11 to python3.13 is on PATH. "
        "Install one (Debian: apt install python3.11 python3.11-venv; macOS: brew install python@3.12) and run make "
        "again, or name it: make PYTHON=/path/to/python3.11" % sys.version_info[:2]
    )


def check_machine(root):
    if not shutil.which("git"):
        fail("git is needed and not on PATH. Install it and run make again.")
    inside = subprocess.run(
        ["git", "-C", root, "rev-parse", "--show-toplevel"], capture_output=True, text=True
    )
    if inside.returncode or os.path.realpath(inside.stdout.strip()) != os.path.realpath(root):
        fail(
            "this folder is not a git repository of its own (a ZIP download?), and DVC keeps its history in git. "
            "Get the project with `git clone`."
        )
    free, needed = shutil.disk_usage(root).free / 2**30, DISK_GIB_CUDA if has_cuda() else DISK_GIB
    if free < needed:
        fail(
            "%.1f GiB are free on the disk of %s, %d GiB are needed for the packages and the results. Free some space and "
            "run make again." % (free, root, needed)
        )


def has_cuda():
    return bool(shutil.which("nvidia-smi")) or os.path.exists("/proc/driver/nvidia/version")


def pip(python, *words, **options):
    return subprocess.run([python, "-m", "pip", "--disable-pip-version-check", *words], **options)


def torch_arguments(python, pin):
    """What to tell pip so that a machine without CUDA gets the CPU build where one is to be had."""
    if has_cuda() or sys.platform != "linux":
        return [pin]
    dry = ("install", "--dry-run", "--no-deps", "--quiet", "--report", "-", pin)
    report = pip(python, *dry, capture_output=True, text=True)
    if (
        report.returncode == 0
        and "+cpu" in json.loads(report.stdout)["install"][0]["metadata"]["version"]
    ):
        return [pin]  # the configured installer offers it by itself
    arguments = [pin, "--index-url", TORCH_CPU_INDEX]
    reachable = pip(
        python, *dry, *arguments[1:], "--retries", "0", "--timeout", "10", capture_output=True
    )
    if reachable.returncode == 0:
        return arguments
    print(
        "No CPU build of torch is offered here; taking the default one, which brings several GB of CUDA libraries."
    )
    return [pin]


def install(root, base):
    environment = os.path.join(root, ".venv")
    python = os.path.join(environment, "bin", "python")
    if os.path.islink(environment):
        fail(
            ".venv is a link to %s, which this would empty. Remove the link and run make again."
            % os.path.realpath(environment)
        )
    subprocess.run([base, "-m", "venv", "--clear", environment], stdout=subprocess.DEVNULL)
    if not os.path.exists(python) or pip(python, "--version", capture_output=True).returncode:
        fail(
            "%s can not make a virtual environment. On Debian and Ubuntu: apt install python3-venv"
            % base
        )
    requirements = os.path.join(root, "requirements.txt")
    with open(requirements) as file:
        pin = next(line.strip() for line in file if line.startswith("torch=="))
    print("Installing the pinned packages into .venv (a few minutes the first time) …", flush=True)
    for words in (torch_arguments(python, pin), ["-r", requirements], ["--no-deps", "-e", root]):
        if pip(python, "install", "--quiet", *words).returncode:
            fail(
                "pip could not install %s (its message is above). Is a package index reachable and the disk not full? "
                "Run make again when it is; what was downloaded is kept in pip's cache."
                % " ".join(words)
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
