/* The CUDA driver API (libcuda.so.1), which torch, Triton and bitsandbytes reach by link or by name.
 *
 * honest    virtual memory management (what expandable segments use): reservations, physical memory against capacity,
 *           mappings; allocation, copies, pointer attributes, the count and names of launched kernels
 * constant  one context for all devices and threads, the driver's version, occupancy of clusters (8), registers (64)
 * refused   where managed pages lie, multicast, sharing of memory with other processes, green contexts, logs (by name: "not supported")
 *
 * A name that cuGetProcAddress does not find is left to the caller, who may do without.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core.h"
#include "device.h"

#define CONTEXT ((Handle)0x714d0000)

/* Physical memory lives while its handle or a mapping of it does. */
typedef struct { uint64_t n; int device, references; } Physical;
typedef struct { uint64_t at, n; Physical *memory; } Mapping;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Mapping *mappings;
static int n_mappings, mappings_room;

static void drop_reference(Physical *memory) {
  if (--memory->references) return;
  discharge(memory->device, memory->n);
  free(memory);
}

static const char *error_name(Status error) {
  switch (error) {
    case OK: return "CUDA_SUCCESS";
    case INVALID_VALUE: return "CUDA_ERROR_INVALID_VALUE";
    case OUT_OF_MEMORY: return "CUDA_ERROR_OUT_OF_MEMORY";
    case NO_DEVICE: return "CUDA_ERROR_NO_DEVICE";
    case INVALID_DEVICE: return "CUDA_ERROR_INVALID_DEVICE";
    case SYMBOL_NOT_FOUND: return "CUDA_ERROR_NOT_FOUND";
    case NOT_SUPPORTED: return "CUDA_ERROR_NOT_SUPPORTED";
    default: return "CUDA_ERROR_UNKNOWN";
  }
}

API_BEGIN

Status cuGetErrorName(Status error, const char **text) { *text = error_name(error); return OK; }
Status cuGetErrorString(Status error, const char **text) { *text = error_name(error); return OK; }

/* ---- devices and contexts ---- */

Status cuInit(unsigned flags) {
  (void)flags;
  start();
  return card.devices ? OK : NO_DEVICE;
}

Status cuDriverGetVersion(int *version) { *version = DRIVER_VERSION; return OK; }
Status cuDeviceGetCount(int *count) { start(); *count = card.devices; return OK; }

Status cuDeviceGet(int *device, int ordinal) {
  start();
  *device = ordinal;
  return no_such_device(ordinal) ? INVALID_DEVICE : OK;
}

Status cuDeviceGetName(char *text, int room, int device) {
  (void)device;
  start();
  snprintf(text, room, "%s", card.name);
  return OK;
}

Status cuDeviceGetUuid(Uuid *uuid, int device) { *uuid = device_uuid(device); return OK; }
Status cuDeviceGetUuid_v2(Uuid *uuid, int device) { return cuDeviceGetUuid(uuid, device); }
Status cuDeviceTotalMem_v2(size_t *n, int device) { (void)device; start(); *n = card.total_bytes; return OK; }

Status cuDeviceGetAttribute(int *value, int attribute, int device) {
  start();
  if (no_such_device(device)) return INVALID_DEVICE;
  *value = device_attribute(attribute);
  return OK;
}

Status cuDeviceGetPCIBusId(char *text, int room, int device) {
  snprintf(text, room, "0000:%02x:00.0", device + 1);
  return OK;
}

Status cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
  start();
  *flags = 0;
  *active = !no_such_device(device) && books->context[device] != 0;
  return OK;
}

Status cuDevicePrimaryCtxRetain(Handle *context, int device) {
  start();
  if (no_such_device(device)) return INVALID_DEVICE;
  use_device(device);
  *context = CONTEXT;
  return OK;
}

Status cuDevicePrimaryCtxRelease_v2(int device) { (void)device; return OK; }
Status cuCtxGetCurrent(Handle *context) { *context = CONTEXT; return OK; }
Status cuCtxSetCurrent(Handle context) { (void)context; return OK; }
Status cuCtxPushCurrent_v2(Handle context) { (void)context; return OK; }
Status cuCtxPopCurrent_v2(Handle *context) { if (context) *context = CONTEXT; return OK; }
Status cuCtxGetDevice(int *device) { *device = current_device; return OK; }
Status cuCtxGetApiVersion(Handle context, unsigned *version) { (void)context; *version = 3020; return OK; }
Status cuCtxSynchronize(void) { return OK; }
Status cuCtxGetLimit(size_t *value, int limit) { (void)limit; *value = 8 * MIB; return OK; }
Status cuCtxSetLimit(int limit, size_t value) { (void)limit; (void)value; return OK; }

/* ---- memory ---- */

Status cuMemAlloc_v2(uint64_t *address, size_t n) {
  *address = n ? (uint64_t)allocate(SPACE_DEVICE, n) : 0;
  return *address ? OK : OUT_OF_MEMORY;
}

Status cuMemAllocManaged(uint64_t *address, size_t n, unsigned flags) {
  (void)flags;
  *address = n ? (uint64_t)allocate(SPACE_MANAGED, n) : 0;
  return *address ? OK : INVALID_VALUE;
}

Status cuMemFree_v2(uint64_t address) { return release((void *)address) ? INVALID_VALUE : OK; }

Status cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
  use_device(current_device);
  uint64_t used = device_used(current_device);
  *total = card.total_bytes;
  *free_bytes = used > card.total_bytes ? 0 : card.total_bytes - used;
  return OK;
}

static Status copy(uint64_t to, uint64_t from, size_t n) { copy_bytes((void *)to, (void *)from, n); return OK; }
Status cuMemcpy(uint64_t to, uint64_t from, size_t n) { return copy(to, from, n); }
Status cuMemcpyAsync(uint64_t to, uint64_t from, size_t n) { return copy(to, from, n); }
Status cuMemcpyDtoH_v2(uint64_t to, uint64_t from, size_t n) { return copy(to, from, n); }
Status cuMemcpyDtoHAsync_v2(uint64_t to, uint64_t from, size_t n) { return copy(to, from, n); }
Status cuMemcpyHtoD_v2(uint64_t to, uint64_t from, size_t n) { return copy(to, from, n); }
Status cuMemcpyHtoDAsync_v2(uint64_t to, uint64_t from, size_t n) { return copy(to, from, n); }
Status cuMemcpyDtoD_v2(uint64_t to, uint64_t from, size_t n) { return copy(to, from, n); }
Status cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t n) { return copy(to, from, n); }

Status cuMemsetD8_v2(uint64_t to, unsigned char value, size_t n) { set_bytes((void *)to, value, n); return OK; }
Status cuMemsetD8Async(uint64_t to, unsigned char value, size_t n) { return cuMemsetD8_v2(to, value, n); }

Status cuMemsetD32_v2(uint64_t to, unsigned value, size_t n) {
  if (value == 0) set_bytes((void *)to, 0, 4 * n); /* another value is data, which no kernel computes either */
  return OK;
}

Status cuMemsetD32Async(uint64_t to, unsigned value, size_t n) { return cuMemsetD32_v2(to, value, n); }

Status cuMemGetAddressRange_v2(uint64_t *base, size_t *n, uint64_t address) {
  Space space;
  int device;
  void *start_of;
  if (!find_allocation((void *)address, &space, &device, &start_of, n)) return SYMBOL_NOT_FOUND;
  if (base) *base = (uint64_t)start_of;
  return OK;
}

enum { POINTER_CONTEXT = 1, POINTER_MEMORY_TYPE = 2, POINTER_DEVICE = 3, POINTER_MANAGED = 8, POINTER_ORDINAL = 9 };

Status cuPointerGetAttribute(void *value, int attribute, uint64_t address) {
  Space space;
  int device;
  if (!find_allocation((void *)address, &space, &device, NULL, NULL)) return INVALID_VALUE;
  switch (attribute) {
    case POINTER_CONTEXT: *(Handle *)value = CONTEXT; break;
    case POINTER_MEMORY_TYPE: *(unsigned *)value = space == SPACE_PINNED ? MEMORY_HOST : MEMORY_DEVICE; break;
    case POINTER_DEVICE: *(uint64_t *)value = address; break;
    case POINTER_MANAGED: *(int *)value = space == SPACE_MANAGED; break;
    case POINTER_ORDINAL: *(int *)value = device; break;
    default: *(int *)value = 0;
  }
  return OK;
}

/* Where managed pages lie, a region of `summary` bytes an entry.  A driver before CUDA 13.4 cannot tell, and that is the
 * answer: what evicts pages is not simulated.  With QMEM_PHANTOM_LOCATIONS the phantom is a driver that can, of a card
 * with room for all of them: they lie where they were allocated for. */
Status cuMemGetLocationInfo(uint64_t address, size_t n, size_t summary, size_t sampling, Location *locations) {
  Space space;
  int device;
  void *base;
  size_t whole;
  if (!getenv("QMEM_PHANTOM_LOCATIONS")) return NOT_SUPPORTED;
  if (!n || !summary || summary > n || sampling > summary) return INVALID_VALUE;
  if (!find_allocation((void *)address, &space, &device, &base, &whole)) return INVALID_VALUE;
  if (space != SPACE_MANAGED || address + n > (uint64_t)base + whole) return INVALID_VALUE;
  for (size_t i = 0; i * summary < n; i++) locations[i] = (Location){ON_DEVICE, device};
  return OK;
}

/* ---- virtual memory management ---- */

Status cuMemGetAllocationGranularity(size_t *n) { *n = 2 * MIB; return OK; }

Status cuMemAddressReserve(uint64_t *address, size_t n, size_t alignment) {
  start();
  *address = (uint64_t)take_addresses(n, alignment);
  note("reserve %llx %zu\n", (unsigned long long)*address, n);
  return *address ? OK : OUT_OF_MEMORY;
}

Status cuMemAddressFree(uint64_t address, size_t n) { give_addresses((void *)address, n); return OK; }

Status cuMemCreate(Handle *handle, size_t n, const AllocationProperties *properties) {
  int device = properties->location.id;
  start();
  if (no_such_device(device)) return INVALID_DEVICE;
  pthread_mutex_lock(&lock);
  int full = charge(device, n);
  pthread_mutex_unlock(&lock);
  if (full) return OUT_OF_MEMORY;
  Physical *memory = calloc(1, sizeof *memory);
  *memory = (Physical){n, device, 1};
  *handle = memory;
  __sync_add_and_fetch(&books->allocations, 1);
  note("create device %d %zu\n", device, n);
  return OK;
}

Status cuMemRelease(Handle handle) {
  pthread_mutex_lock(&lock);
  drop_reference(handle);
  pthread_mutex_unlock(&lock);
  return OK;
}

Status cuMemMap(uint64_t address, size_t n, size_t offset, Handle handle) {
  (void)offset;
  pthread_mutex_lock(&lock);
  if (n_mappings == mappings_room) {
    mappings_room = mappings_room ? 2 * mappings_room : 1024;
    mappings = realloc(mappings, mappings_room * sizeof *mappings);
  }
  mappings[n_mappings++] = (Mapping){address, n, handle};
  ((Physical *)handle)->references++;
  pthread_mutex_unlock(&lock);
  return OK;
}

Status cuMemUnmap(uint64_t address, size_t n) {
  pthread_mutex_lock(&lock);
  for (int i = 0; i < n_mappings;) {
    Mapping mapping = mappings[i];
    if (mapping.at < address || mapping.at + mapping.n > address + n) {
      i++;
      continue;
    }
    forget_contents((void *)mapping.at, mapping.n);
    drop_reference(mapping.memory);
    mappings[i] = mappings[--n_mappings];
  }
  pthread_mutex_unlock(&lock);
  return OK;
}

Status cuMemSetAccess(void) { return OK; }

Status cuMemRetainAllocationHandle(Handle *handle, void *address) {
  Status status = INVALID_VALUE;
  pthread_mutex_lock(&lock);
  for (int i = 0; i < n_mappings && status; i++) {
    if ((uint64_t)address < mappings[i].at || (uint64_t)address >= mappings[i].at + mappings[i].n) continue;
    mappings[i].memory->references++;
    *handle = mappings[i].memory;
    status = OK;
  }
  pthread_mutex_unlock(&lock);
  return status;
}

Status cuMemGetAllocationPropertiesFromHandle(AllocationProperties *properties, Handle handle) {
  enum { PINNED = 1 };
  memset(properties, 0, sizeof *properties);
  properties->type = PINNED;
  properties->location = (Location){ON_DEVICE, ((Physical *)handle)->device};
  return OK;
}

/* ---- modules and kernels: Triton's, and what is compiled at run time ---- */

Status cuModuleLoadData(Handle *module) { *module = new_handle(); return OK; }
Status cuModuleLoadDataEx(Handle *module) { return cuModuleLoadData(module); }
Status cuModuleLoad(Handle *module) { return cuModuleLoadData(module); }
Status cuModuleUnload(Handle module) { (void)module; return OK; }

Status cuModuleGetFunction(Handle *function, Handle module, const char *name) {
  char *copy_of_name = strdup(name);
  (void)module;
  name_kernel(copy_of_name, copy_of_name);
  *function = copy_of_name;
  return OK;
}

Status cuModuleGetGlobal_v2(uint64_t *address, size_t *n) {
  start();
  if (address) *address = (uint64_t)take_addresses(4 * KIB, 0);
  if (n) *n = 4 * KIB;
  return OK;
}

Status cuLibraryLoadData(Handle *library) { *library = new_handle(); return OK; }
Status cuLibraryUnload(Handle library) { (void)library; return OK; }

Status cuLibraryGetKernel(Handle *kernel, Handle library, const char *name) {
  return cuModuleGetFunction(kernel, library, name);
}

Status cuKernelGetFunction(Handle *function, Handle kernel) { *function = kernel; return OK; }

enum { FUNCTION_MAX_THREADS = 0, FUNCTION_REGISTERS = 4, FUNCTION_PTX = 5, FUNCTION_BINARY = 6 };

Status cuFuncGetAttribute(int *value, int attribute, Handle function) {
  (void)function;
  start();
  switch (attribute) {
    case FUNCTION_MAX_THREADS: *value = THREADS_PER_BLOCK; break;
    case FUNCTION_REGISTERS: *value = 64; break;
    case FUNCTION_PTX: case FUNCTION_BINARY: *value = code_version(); break;
    default: *value = 0;
  }
  return OK;
}

Status cuFuncSetAttribute(void) { return OK; }
Status cuFuncSetCacheConfig(void) { return OK; }
Status cuKernelSetAttribute(void) { return OK; }
Status cuLaunchKernel(Handle function) { start(); count_launch(function); return OK; }
Status cuLaunchCooperativeKernel(Handle function) { return cuLaunchKernel(function); }
Status cuLaunchKernelEx(const void *config, Handle function) { (void)config; return cuLaunchKernel(function); }

Status cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Handle function, int threads, size_t shared_bytes) {
  (void)function;
  start();
  *blocks = resident_blocks(threads, shared_bytes);
  return OK;
}

Status cuOccupancyMaxActiveClusters(int *clusters) { *clusters = 8; return OK; }
Status cuTensorMapEncodeTiled(void *map) { memset(map, 0, 128); return OK; }
Status cuTensorMapEncodeIm2col(void *map) { memset(map, 0, 128); return OK; }
Status cuLinkCreate_v2(unsigned n, void *options, void **values, Handle *state) {
  (void)n; (void)options; (void)values;
  *state = new_handle();
  return OK;
}

Status cuLinkAddData_v2(void) { return OK; }
Status cuLinkDestroy(void) { return OK; }

Status cuLinkComplete(Handle state, void **binary, size_t *n) {
  static char empty[64];
  (void)state;
  *binary = empty;
  *n = sizeof empty;
  return OK;
}

/* ---- streams and events ---- */

Status cuStreamCreate(Handle *stream) { *stream = new_handle(); return OK; }
Status cuStreamDestroy_v2(Handle stream) { (void)stream; return OK; }
Status cuStreamSynchronize(Handle stream) { (void)stream; return OK; }
Status cuStreamQuery(Handle stream) { (void)stream; return OK; }
Status cuStreamWaitEvent(Handle stream) { (void)stream; return OK; }
Status cuStreamWriteValue32_v2(void) { return OK; }
Status cuStreamWaitValue32_v2(void) { return OK; }
Status cuStreamGetCtx(Handle stream, Handle *context) { (void)stream; *context = CONTEXT; return OK; }
Status cuStreamIsCapturing(Handle stream, int *status) { (void)stream; *status = 0; return OK; }
Status cuEventCreate(Handle *event) { *event = new_handle(); return OK; }
Status cuEventDestroy_v2(Handle event) { (void)event; return OK; }
Status cuEventRecord(Handle event) { (void)event; return OK; }
Status cuEventSynchronize(Handle event) { (void)event; return OK; }
Status cuEventQuery(Handle event) { (void)event; return OK; }
Status cuEventElapsedTime(float *milliseconds) { *milliseconds = 0; return OK; }

/* ---- functions by name ---- */

static Status unsupported(void) { return NOT_SUPPORTED; }

/* Families that torch looks up whether or not it uses them: they exist and refuse. */
static const char *const refused[] = {
  "cuMulticast", "cuMemExport", "cuMemImport", "cuGreen", "cuDevSm", "cuDevResource", "cuDeviceGetDevResource",
  "cuCtxFromGreen", "cuLogs",
};

static int is_refused(const char *name) {
  for (unsigned i = 0; i < sizeof refused / sizeof *refused; i++)
    if (!strncmp(name, refused[i], strlen(refused[i]))) return 1;
  return 0;
}

static void *this_library(void) {
  static void *library;
  Dl_info where;
  if (!library && dladdr((void *)&unsupported, &where)) library = dlopen(where.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
  return library;
}

enum { FOUND = 0, MISSING = 1 }; /* CUdriverProcAddressQueryResult */

Status cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found) {
  static const char *const endings[] = {"_v2", "_v3", ""}; /* callers want the newest, and leave the ending out */
  char full_name[128];
  (void)version;
  (void)flags;
  *function = NULL;
  for (int i = 0; i < 3 && !*function; i++) {
    snprintf(full_name, sizeof full_name, "%s%s", name, endings[i]);
    *function = dlsym(this_library(), full_name);
  }
  if (!*function && is_refused(name)) *function = (void *)unsupported;
  if (found) *found = *function ? FOUND : MISSING;
  return *function ? OK : SYMBOL_NOT_FOUND;
}

Status cuGetProcAddress(const char *name, void **function, int version, uint64_t flags) {
  return cuGetProcAddress_v2(name, function, version, flags, NULL);
}

API_END
