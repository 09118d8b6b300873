"""Two machines on one: network namespaces with their own addresses train together, one is killed, both start again.

    sudo python -m benchmarks.two_machines

Each machine runs `torchrun --nnodes 2` on the quickstart of images; they share the run folder, as a cluster's machines
share a file system. The run that was disturbed must end with the bits of the one that was not. Linux, root, iproute2.
"""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ADDRESSES = ("10.77.0.1", "10.77.0.2")
TRAINING = ["train.py", "configs/quickstart_image.py", "--max-steps", "40", "--save-every", "5", "--eval-every", "20"]
TRAINING += ["--no-report"]  # half of the time would be its


def shell(command: str) -> None:
    subprocess.run(command.split(), check=True, stderr=subprocess.DEVNULL)


def connect() -> None:
    """Two namespaces, joined by a pair of virtual network cards."""
    for machine in (0, 1):
        shell(f"ip netns add ftloop{machine}")
    shell("ip link add ftloop-veth0 type veth peer name ftloop-veth1")
    for machine, address in enumerate(ADDRESSES):
        shell(f"ip link set ftloop-veth{machine} netns ftloop{machine}")
        inside = f"ip netns exec ftloop{machine}"
        shell(f"{inside} ip addr add {address}/24 dev ftloop-veth{machine}")
        shell(f"{inside} ip link set ftloop-veth{machine} up")
        shell(f"{inside} ip link set lo up")


def start(machine: int, folder: Path, port: int) -> subprocess.Popen:
    launcher = f"-m torch.distributed.run --nnodes 2 --nproc_per_node 1 --node_rank {machine} --max_restarts 0"
    meeting = f"--master_addr {ADDRESSES[0]} --master_port {port}"
    words = [*launcher.split(), *meeting.split(), *TRAINING, "--run-dir", str(folder)]
    environment = {"GLOO_SOCKET_IFNAME": f"ftloop-veth{machine}", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    return subprocess.Popen(
        ["ip", "netns", "exec", f"ftloop{machine}", sys.executable, *words],
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()[:16]


def main() -> None:
    for machine in (0, 1):  # of a run that was killed
        subprocess.run(["ip", "netns", "del", f"ftloop{machine}"], stderr=subprocess.DEVNULL)
    connect()
    home = Path(tempfile.mkdtemp())
    try:
        whole = [start(machine, home / "whole", 29611) for machine in (0, 1)]
        codes = [process.wait() for process in whole]
        print(f"undisturbed: exit {codes}, model {digest(home / 'whole')}")
        cut = [start(machine, home / "cut", 29612) for machine in (0, 1)]
        while not any(int(path.name[5:]) >= 15 for path in (home / "cut" / "checkpoints").glob("step-*[0-9]")):
            time.sleep(0.01)
        pids = subprocess.run(["ip", "netns", "pids", "ftloop1"], capture_output=True, text=True, check=True).stdout
        for pid in pids.split():  # the whole machine: torchrun's worker has a session of its own
            os.kill(int(pid), signal.SIGKILL)
        killed = time.perf_counter()
        code = cut[0].wait()
        said = [line for line in cut[0].stderr.read().splitlines() if line.startswith("error:")]
        print(f"machine 1 killed: machine 0 ended after {time.perf_counter() - killed:.1f} s with exit {code}: {said}")
        again = [start(machine, home / "cut", 29613) for machine in (0, 1)]
        codes = [process.wait() for process in again]
        resumed = [line for line in again[0].stderr.read().splitlines() if "resume: from" in line]
        print(f"started again: exit {codes}, {resumed}, model {digest(home / 'cut')}")
        equal = digest(home / "cut") == digest(home / "whole")
        print("equal" if equal else f"NOT EQUAL: see {home}")
        sys.exit(not equal)
    finally:
        for machine in (0, 1):
            subprocess.run(["ip", "netns", "del", f"ftloop{machine}"])


if __name__ == "__main__":
    main()
