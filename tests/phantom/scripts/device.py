"""What torch, pynvml and child processes see of the phantom; prints one line of JSON.

Arguments: the card, and its capacity in bytes.
"""

import json
import os
import subprocess
import sys

from qmem import phantom
from qmem.catalogue import find_gpu

device = phantom.load(find_gpu(sys.argv[1]), memory=int(sys.argv[2]))

import pynvml  # noqa: E402
import torch  # noqa: E402

MIB = 2**20
seen = {}

properties = torch.cuda.get_device_properties(0)
seen["properties"] = [
    properties.name, [properties.major, properties.minor], properties.multi_processor_count, properties.total_memory,
]  # fmt: skip

torch.cuda.memory._record_memory_history(max_entries=1000)
held = torch.empty(100 * MIB, dtype=torch.uint8, device="cuda")
seen["allocated"] = torch.cuda.memory_allocated()
seen["reserved"] = torch.cuda.memory_reserved()
snapshot = torch.cuda.memory._snapshot()
seen["snapshot_active"] = sum(
    block["size"] for segment in snapshot["segments"] for block in segment["blocks"] if "active" in block["state"]
)
seen["history"] = [event["action"] for event in snapshot["device_traces"][0]]

seen["observed"] = []
torch._C._cuda_attach_out_of_memory_observer(lambda *facts: seen["observed"].append(facts[1]))
try:
    torch.empty(int(sys.argv[2]), dtype=torch.uint8, device="cuda")
except torch.OutOfMemoryError as error:
    seen["message"] = str(error)
counted = torch.cuda.memory_stats()
seen["retries"], seen["ooms"] = counted["num_alloc_retries"], counted["num_ooms"]

pinned = torch.empty(3 * MIB, dtype=torch.uint8).pin_memory()
seen["pinned"] = [pinned.is_pinned(), device.stats().pinned_bytes]
seen["copied"] = torch.arange(5).cuda().cpu().tolist()

free, total = torch.cuda.mem_get_info()
seen["used"] = total - free


def nvml_used():
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{properties.uuid}")
    processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    return {"used": memory.used, "processes": [[process.pid, process.usedGpuMemory] for process in processes]}


OTHER = """
import json, pynvml
pynvml.nvmlInit()
handle = pynvml.nvmlDeviceGetHandleByIndex(0)
processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
print(json.dumps({"name": pynvml.nvmlDeviceGetName(handle), "used": pynvml.nvmlDeviceGetMemoryInfo(handle).used,
                  "processes": [[process.pid, process.usedGpuMemory] for process in processes]}))
"""
seen["nvml"] = nvml_used()
from_another = subprocess.run(
    [sys.executable, "-c", OTHER], env=device.environment(), capture_output=True, text=True, check=True
)
seen["nvml_elsewhere"] = json.loads(from_another.stdout)
seen["pid"] = os.getpid()
stats = device.stats()
seen["device_bytes"], seen["context_bytes"] = stats.device_bytes[0], stats.context_bytes[0]
seen["launches"] = stats.launches
del held
torch.cuda.empty_cache()
seen["device_bytes_after"] = device.stats().device_bytes[0]
sys.stdout.write(json.dumps(seen) + "\n")
