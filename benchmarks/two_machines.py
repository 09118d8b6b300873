"""Train on two machines, kill one, start both again, and compare with an uninterrupted run.

    sudo python -m benchmarks.two_machines

The machines are network namespaces with addresses of their own. Each runs `torchrun --nnodes 2` on
the image quickstart. They share the run folder, as the machines of a cluster share a file system.
The interrupted run must end with the same bits as the other one. Needs Linux, root and iproute2.
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
TRAIN_COMMAND = [
    *("train.py", "configs/quickstart_image.py", "--max-steps", "40"),
    *("--save-every", "5", "--eval-every", "20", "--no-report"),
]
KILL_STEP = 15  # machine 1 is killed after the checkpoint of this step


def run_command(command: str) -> None:
    subprocess.run(command.split(), check=True, stderr=subprocess.DEVNULL)


def create_machines() -> None:
    """Create two namespaces, connected by a pair of virtual network cards."""
    for machine in (0, 1):
        run_command(f"ip netns add ftloop{machine}")
    run_command("ip link add ftloop-veth0 type veth peer name ftloop-veth1")
    for machine, address in enumerate(ADDRESSES):
        run_command(f"ip link set ftloop-veth{machine} netns ftloop{machine}")
        inside = f"ip netns exec ftloop{machine}"
        run_command(f"{inside} ip addr add {address}/24 dev ftloop-veth{machine}")
        run_command(f"{inside} ip link set ftloop-veth{machine} up")
        run_command(f"{inside} ip link set lo up")


def delete_machines() -> None:
    for machine in (0, 1):
        command = ["ip", "netns", "del", f"ftloop{machine}"]
        subprocess.run(command, stderr=subprocess.DEVNULL)


def start(machine: int, run_dir: Path, port: int) -> subprocess.Popen:
    """Start the training on a machine."""
    command = ["ip", "netns", "exec", f"ftloop{machine}", sys.executable]
    command += ["-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    command += ["--node_rank", str(machine), "--max_restarts", "0"]
    command += ["--master_addr", ADDRESSES[0], "--master_port", str(port)]
    command += [*TRAIN_COMMAND, "--run-dir", str(run_dir)]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": f"ftloop-veth{machine}"}
    environment |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    return subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def kill_machine(machine: int) -> None:
    """Kill all processes of a machine: the worker of torchrun has a session of its own."""
    command = ["ip", "netns", "pids", f"ftloop{machine}"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for process_id in result.stdout.split():
        os.kill(int(process_id), signal.SIGKILL)


def has_checkpoint(run_dir: Path, step: int) -> bool:
    names = [path.name for path in (run_dir / "checkpoints").glob("step-*[0-9]")]
    return any(int(name.removeprefix("step-")) >= step for name in names)


def lines_with(process: subprocess.Popen, text: str) -> list[str]:
    """Return the lines of standard error that contain a text."""
    assert process.stderr is not None
    return [line for line in process.stderr.read().splitlines() if text in line]


def digest_model(run_dir: Path) -> str:
    content = (run_dir / "model" / "model.safetensors").read_bytes()
    return hashlib.sha256(content).hexdigest()[:16]


def main() -> None:
    delete_machines()  # of a benchmark that was killed
    create_machines()
    home = Path(tempfile.mkdtemp())
    uninterrupted, interrupted = home / "uninterrupted", home / "interrupted"
    try:
        processes = [start(machine, uninterrupted, 29611) for machine in (0, 1)]
        codes = [process.wait() for process in processes]
        print(f"uninterrupted: exit codes {codes}, model {digest_model(uninterrupted)}")

        processes = [start(machine, interrupted, 29612) for machine in (0, 1)]
        while not has_checkpoint(interrupted, KILL_STEP):
            if processes[0].poll() is not None:
                sys.exit(f"machine 0 ended before step {KILL_STEP}")
            time.sleep(0.01)
        kill_machine(1)
        killed = time.perf_counter()
        code = processes[0].wait()
        seconds, errors = time.perf_counter() - killed, lines_with(processes[0], "error:")
        print("machine 1 was killed")
        print(f"machine 0 ended {seconds:.1f} s later with exit code {code}: {errors}")

        processes = [start(machine, interrupted, 29613) for machine in (0, 1)]
        codes = [process.wait() for process in processes]
        resumed = lines_with(processes[0], "resuming from")
        print(f"resumed: exit codes {codes}, {resumed}, model {digest_model(interrupted)}")
        is_equal = digest_model(interrupted) == digest_model(uninterrupted)
        print("equal" if is_equal else f"NOT EQUAL: see {home}")
        sys.exit(not is_equal)
    finally:
        delete_machines()


if __name__ == "__main__":
    main()
