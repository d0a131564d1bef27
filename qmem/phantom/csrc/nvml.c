/* NVML (libnvidia-ml.so.1): what nvidia-ml-py, torch and bitsandbytes ask, from any process of the same phantom.
 *
 * honest    device memory (all live processes with their contexts), processes, name, index, UUID, compute capability
 * constant  driver version, utilization, temperature, power
 * refused   MIG, fabric, NVLink ("not supported"); what is not here is missing, and nvidia-ml-py says so
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>

#include "core.h"
#include "device.h"

enum { NVML_INVALID = 2, NVML_NOT_SUPPORTED = 3, NVML_NOT_FOUND = 6, NVML_TOO_SMALL = 7, MOST_PROCESSES = 256 };
#define NO_INSTANCE 0xffffffffu
#define FIRST_HANDLE 0x4e00

static int device_of(Handle handle) { return (int)((uintptr_t)handle - FIRST_HANDLE); }

static void uuid_text(int device, char *text, size_t room) {
  Uuid uuid = device_uuid(device);
  int n = snprintf(text, room, "GPU-");
  for (int i = 0; i < 16; i++)
    n += snprintf(text + n, room > (size_t)n ? room - n : 0, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "",
                  (unsigned char)uuid.bytes[i]);
}

API_BEGIN

Status nvmlInit_v2(void) { start(); return OK; }
Status nvmlInit(void) { start(); return OK; }
Status nvmlInitWithFlags(unsigned flags) { (void)flags; start(); return OK; }
Status nvmlShutdown(void) { return OK; }

const char *nvmlErrorString(Status status) {
  return status == OK ? "Success" : status == NVML_NOT_SUPPORTED ? "Not Supported" : "Invalid Argument";
}

Status nvmlSystemGetDriverVersion(char *text, unsigned room) { snprintf(text, room, "phantom"); return OK; }
Status nvmlSystemGetNVMLVersion(char *text, unsigned room) { snprintf(text, room, "13.phantom"); return OK; }
Status nvmlSystemGetCudaDriverVersion(int *version) { *version = DRIVER_VERSION; return OK; }
Status nvmlSystemGetCudaDriverVersion_v2(int *version) { *version = DRIVER_VERSION; return OK; }

Status nvmlDeviceGetCount_v2(unsigned *count) { start(); *count = (unsigned)card.devices; return OK; }
Status nvmlDeviceGetCount(unsigned *count) { return nvmlDeviceGetCount_v2(count); }

Status nvmlDeviceGetHandleByIndex_v2(unsigned index, Handle *handle) {
  start();
  if (no_such_device((int)index)) return NVML_INVALID;
  *handle = (Handle)(uintptr_t)(FIRST_HANDLE + index);
  return OK;
}

Status nvmlDeviceGetHandleByIndex(unsigned index, Handle *handle) { return nvmlDeviceGetHandleByIndex_v2(index, handle); }

Status nvmlDeviceGetHandleByPciBusId_v2(const char *text, Handle *handle) {
  unsigned domain, bus = 0;
  return sscanf(text, "%x:%x", &domain, &bus) == 2 ? nvmlDeviceGetHandleByIndex_v2(bus - 1, handle) : NVML_INVALID;
}

Status nvmlDeviceGetHandleByUUID(const char *text, Handle *handle) {
  char known[64];
  start();
  for (int i = 0; i < card.devices; i++) {
    uuid_text(i, known, sizeof known);
    if (!strcmp(known, text)) return nvmlDeviceGetHandleByIndex_v2((unsigned)i, handle);
  }
  return NVML_NOT_FOUND;
}

Status nvmlDeviceGetIndex(Handle handle, unsigned *index) { *index = (unsigned)device_of(handle); return OK; }
Status nvmlDeviceGetName(Handle handle, char *text, unsigned room) {
  (void)handle;
  start();
  snprintf(text, room, "%s", card.name);
  return OK;
}

Status nvmlDeviceGetUUID(Handle handle, char *text, unsigned room) { uuid_text(device_of(handle), text, room); return OK; }

Status nvmlDeviceGetCudaComputeCapability(Handle handle, int *major, int *minor) {
  (void)handle;
  start();
  *major = card.major;
  *minor = card.minor;
  return OK;
}

Status nvmlDeviceGetMemoryInfo(Handle handle, NvmlMemory *memory) {
  start();
  unsigned long long used = device_used(device_of(handle));
  *memory = (NvmlMemory){card.total_bytes, card.total_bytes - used, used};
  return OK;
}

Status nvmlDeviceGetMemoryInfo_v2(Handle handle, NvmlMemory2 *memory) {
  start();
  unsigned long long used = device_used(device_of(handle));
  *memory = (NvmlMemory2){memory->version, card.total_bytes, 0, card.total_bytes - used, used};
  return OK;
}

Status nvmlDeviceGetComputeRunningProcesses_v3(Handle handle, unsigned *count, NvmlProcess *processes) {
  unsigned pids[MOST_PROCESSES], room = *count;
  uint64_t bytes[MOST_PROCESSES];
  int n = device_processes(device_of(handle), pids, bytes, MOST_PROCESSES);
  *count = (unsigned)n;
  if (room < (unsigned)n) return NVML_TOO_SMALL;
  for (int i = 0; i < n; i++) processes[i] = (NvmlProcess){pids[i], bytes[i], NO_INSTANCE, NO_INSTANCE};
  return OK;
}

Status nvmlDeviceGetComputeRunningProcesses_v2(Handle handle, unsigned *count, NvmlProcess *processes) {
  return nvmlDeviceGetComputeRunningProcesses_v3(handle, count, processes);
}

Status nvmlDeviceGetComputeRunningProcesses(Handle handle, unsigned *count, NvmlProcess1 *processes) {
  NvmlProcess all[MOST_PROCESSES];
  unsigned room = *count, n = MOST_PROCESSES;
  nvmlDeviceGetComputeRunningProcesses_v3(handle, &n, all);
  *count = n;
  if (room < n) return NVML_TOO_SMALL;
  for (unsigned i = 0; i < n; i++) processes[i] = (NvmlProcess1){all[i].pid, all[i].used};
  return OK;
}

Status nvmlDeviceGetGraphicsRunningProcesses_v3(Handle handle, unsigned *count) { (void)handle; *count = 0; return OK; }
Status nvmlDeviceGetMPSComputeRunningProcesses_v3(Handle handle, unsigned *count) { (void)handle; *count = 0; return OK; }

Status nvmlDeviceGetUtilizationRates(Handle handle, NvmlUtilization *rates) {
  (void)handle;
  *rates = (NvmlUtilization){0, 0};
  return OK;
}

Status nvmlDeviceGetTemperature(Handle handle, int sensor, unsigned *celsius) {
  (void)handle;
  (void)sensor;
  *celsius = 30;
  return OK;
}

Status nvmlDeviceGetPowerUsage(Handle handle, unsigned *milliwatts) { (void)handle; *milliwatts = 0; return OK; }
Status nvmlDeviceGetMigMode(void) { return NVML_NOT_SUPPORTED; }
Status nvmlDeviceGetGpuFabricInfoV(void) { return NVML_NOT_SUPPORTED; }
Status nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NVML_NOT_SUPPORTED; }
Status nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NVML_NOT_SUPPORTED; }
Status nvmlDeviceGetNvLinkState(void) { return NVML_NOT_SUPPORTED; }
Status nvmlDeviceGetP2PStatus(void) { return NVML_NOT_SUPPORTED; }

API_END
