/* The CUDA runtime API (libcudart.so.12 and .13).
 *
 * honest    allocation and freeing, capacity, out of memory, pointer attributes, small copies and fills, device
 *           properties and attributes (the card's; limits by compute capability), occupancy (threads, shared memory,
 *           blocks), the count and names of launched kernels, host callbacks
 * constant  versions, clocks, caches, bus width, peer access (always), stream priorities, registers per kernel (40);
 *           streams and events have always finished; a captured graph is empty; memory pools have no settings
 * refused   CUDA IPC, graph nodes and conditional nodes, launches without a block or with more than 1024 threads
 *
 * CUDA 12 and 13 share one definition wherever arguments that differ are not looked at.  Where the caller's memory is
 * laid out differently, the two versions ask under different names: cudaGetDeviceProperties_v2 (12) and
 * cudaGetDeviceProperties (13), cudaStreamGetCaptureInfo_v2 (12) and cudaStreamGetCaptureInfo (13).
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core.h"
#include "device.h"

static __thread Status last_error;

static Status fail(Status error) {
  if (error) last_error = error;
  return error;
}

static const struct { Status error; const char *name, *text; } errors[] = {
  {OK, "cudaSuccess", "no error"},
  {INVALID_VALUE, "cudaErrorInvalidValue", "invalid argument"},
  {OUT_OF_MEMORY, "cudaErrorMemoryAllocation", "out of memory"},
  {INVALID_LAUNCH, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
  {NO_DEVICE, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
  {INVALID_DEVICE, "cudaErrorInvalidDevice", "invalid device ordinal"},
  {SYMBOL_NOT_FOUND, "cudaErrorSymbolNotFound", "named symbol not found"},
  {NOT_SUPPORTED, "cudaErrorNotSupported", "operation not supported (by the phantom GPU)"},
};

static int error_index(Status error) {
  for (unsigned i = 0; i < sizeof errors / sizeof *errors; i++)
    if (errors[i].error == error) return (int)i;
  return -1;
}

API_BEGIN

const char *cudaGetErrorName(Status error) {
  int i = error_index(error);
  return i < 0 ? "cudaErrorUnknown" : errors[i].name;
}

const char *cudaGetErrorString(Status error) {
  int i = error_index(error);
  return i < 0 ? "unknown error" : errors[i].text;
}

Status cudaGetLastError(void) {
  Status error = last_error;
  last_error = OK;
  return error;
}

Status cudaPeekAtLastError(void) { return last_error; }

/* ---- devices ---- */

Status cudaDriverGetVersion(int *version) { *version = DRIVER_VERSION; return OK; }

Status cudaRuntimeGetVersion(int *version) {
  start();
  *version = card.cudart_version;
  return OK;
}

Status cudaGetDeviceCount(int *count) {
  start();
  *count = card.devices;
  return card.devices ? OK : fail(NO_DEVICE);
}

Status cudaGetDevice(int *device) { *device = current_device; return OK; }

Status cudaSetDevice(int device) {
  start();
  if (no_such_device(device)) return fail(INVALID_DEVICE);
  current_device = device;
  use_device(device);
  return OK;
}

Status cudaInitDevice(int device) { return cudaSetDevice(device); }
Status cudaSetValidDevices(int *devices, int n) { (void)devices; (void)n; return OK; }
Status cudaSetDeviceFlags(unsigned flags) { (void)flags; return OK; }
Status cudaGetDeviceFlags(unsigned *flags) { *flags = 0; return OK; }
Status cudaDeviceSynchronize(void) { return OK; }
Status cudaDeviceReset(void) { return OK; }
Status cudaDeviceCanAccessPeer(int *can, int one, int other) { *can = one != other; return OK; }
Status cudaDeviceEnablePeerAccess(int peer, unsigned flags) { (void)peer; (void)flags; return OK; }
Status cudaDeviceDisablePeerAccess(int peer) { (void)peer; return OK; }
Status cudaDeviceSetLimit(int limit, size_t value) { (void)limit; (void)value; return OK; }
Status cudaDeviceGetLimit(size_t *value, int limit) { (void)limit; *value = 8 * MIB; return OK; }
Status cudaDeviceSetCacheConfig(int config) { (void)config; return OK; }

Status cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return OK;
}

Status cudaDeviceGetPCIBusId(char *text, int room, int device) {
  snprintf(text, room, "0000:%02x:00.0", device + 1);
  return OK;
}

Status cudaDeviceGetAttribute(int *value, int attribute, int device) {
  start();
  if (no_such_device(device)) return fail(INVALID_DEVICE);
  *value = device_attribute(attribute);
  return OK;
}

API_END

/* The same statements fill both layouts: the field names are the same. */
#define FILL_PROPERTIES(p, device) do { \
  memset(p, 0, sizeof *p); \
  snprintf(p->name, sizeof p->name, "%s", card.name); \
  p->uuid = device_uuid(device); \
  p->total_global_mem = card.total_bytes; \
  p->shared_mem_per_block = SHARED_PER_BLOCK; \
  p->shared_mem_per_block_optin = card.shared_per_block_optin; \
  p->shared_mem_per_multiprocessor = card.shared_per_sm; \
  p->reserved_shared_mem_per_block = card.major >= 8 ? 1024 : 0; \
  p->regs_per_block = p->regs_per_multiprocessor = REGISTERS_PER_SM; \
  p->warp_size = WARP; \
  p->mem_pitch = GREATEST_INT; \
  p->max_threads_per_block = THREADS_PER_BLOCK; \
  p->max_threads_dim[0] = p->max_threads_dim[1] = THREADS_PER_BLOCK; \
  p->max_threads_dim[2] = 64; \
  p->max_grid_size[0] = GREATEST_INT; \
  p->max_grid_size[1] = p->max_grid_size[2] = 65535; \
  p->max_threads_per_multi_processor = card.threads_per_sm; \
  p->max_blocks_per_multi_processor = card.blocks_per_sm; \
  p->total_const_mem = 64 * KIB; \
  p->major = card.major; \
  p->minor = card.minor; \
  p->multi_processor_count = card.sm_count; \
  p->texture_alignment = p->surface_alignment = 512; \
  p->texture_pitch_alignment = 32; \
  p->l2_cache_size = L2_BYTES; \
  p->persisting_l2_cache_max_size = L2_BYTES / 2; \
  p->memory_bus_width = BUS_WIDTH; \
  p->pci_bus_id = device + 1; \
  p->async_engine_count = 3; \
  p->can_map_host_memory = p->concurrent_kernels = p->unified_addressing = 1; \
  p->stream_priorities_supported = p->global_l1_cache_supported = p->local_l1_cache_supported = 1; \
  p->managed_memory = p->concurrent_managed_access = p->compute_preemption_supported = 1; \
  p->can_use_host_pointer_for_registered_mem = p->cooperative_launch = p->host_register_supported = 1; \
  p->memory_pools_supported = p->ipc_event_supported = p->unified_function_pointers = 1; \
  p->cluster_launch = card.major >= 9; \
} while (0)

API_BEGIN

Status cudaGetDeviceProperties(Properties13 *properties, int device) {
  start();
  if (no_such_device(device)) return fail(INVALID_DEVICE);
  FILL_PROPERTIES(properties, device);
  return OK;
}

Status cudaGetDeviceProperties_v2(Properties12 *properties, int device) {
  start();
  if (no_such_device(device)) return fail(INVALID_DEVICE);
  FILL_PROPERTIES(properties, device);
  properties->clock_rate = CLOCK_KHZ;
  properties->memory_clock_rate = CLOCK_KHZ;
  properties->device_overlap = 1;
  return OK;
}

/* ---- memory ---- */

Status cudaMalloc(void **address, size_t n) {
  *address = NULL;
  if (!n) return OK;
  *address = allocate(SPACE_DEVICE, n);
  return *address ? OK : fail(OUT_OF_MEMORY);
}

Status cudaMallocManaged(void **address, size_t n, unsigned flags) {
  (void)flags;
  *address = n ? allocate(SPACE_MANAGED, n) : NULL;
  return *address ? OK : fail(INVALID_VALUE);
}

Status cudaHostAlloc(void **address, size_t n, unsigned flags) {
  (void)flags;
  *address = n ? allocate(SPACE_PINNED, n) : NULL;
  return *address || !n ? OK : fail(OUT_OF_MEMORY);
}

Status cudaFree(void *address) {
  use_device(current_device); /* cudaFree(0) is the old way to make a context */
  return address && release(address) ? fail(INVALID_VALUE) : OK;
}

Status cudaMallocHost(void **address, size_t n) { return cudaHostAlloc(address, n, 0); }
Status cudaFreeHost(void *address) { return address && release(address) ? fail(INVALID_VALUE) : OK; }
Status cudaMallocAsync(void **address, size_t n, Handle stream) { (void)stream; return cudaMalloc(address, n); }
Status cudaMallocFromPoolAsync(void **address, size_t n) { return cudaMalloc(address, n); }
Status cudaFreeAsync(void *address, Handle stream) { (void)stream; return cudaFree(address); }
Status cudaHostRegister(void *address, size_t n, unsigned flags) { (void)address; (void)n; (void)flags; return OK; }
Status cudaHostUnregister(void *address) { (void)address; return OK; }
Status cudaHostGetDevicePointer(void **device, void *host) { *device = host; return OK; }

Status cudaMemGetInfo(size_t *free_bytes, size_t *total) {
  use_device(current_device);
  uint64_t used = device_used(current_device);
  *total = card.total_bytes;
  *free_bytes = used > card.total_bytes ? 0 : card.total_bytes - used;
  return OK;
}

Status cudaPointerGetAttributes(PointerAttributes *attributes, const void *address) {
  Space space;
  int device;
  if (!find_allocation(address, &space, &device, NULL, NULL)) {
    *attributes = (PointerAttributes){MEMORY_UNREGISTERED, -2, NULL, (void *)address};
    return OK;
  }
  int type = space == SPACE_PINNED ? MEMORY_HOST : space == SPACE_MANAGED ? MEMORY_MANAGED : MEMORY_DEVICE;
  *attributes = (PointerAttributes){type, device, (void *)address, type == MEMORY_DEVICE ? NULL : (void *)address};
  return OK;
}

Status cudaMemcpy(void *to, const void *from, size_t n) { copy_bytes(to, from, n); return OK; }
Status cudaMemcpyAsync(void *to, const void *from, size_t n) { copy_bytes(to, from, n); return OK; }

Status cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device, size_t n) {
  (void)to_device;
  (void)from_device;
  copy_bytes(to, from, n);
  return OK;
}

Status cudaMemcpyPeer(void *to, int to_device, const void *from, int from_device, size_t n) {
  return cudaMemcpyPeerAsync(to, to_device, from, from_device, n);
}

Status cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows) {
  copy_rows(to, to_pitch, from, from_pitch, width, rows);
  return OK;
}

Status cudaMemcpy2D(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t rows) {
  return cudaMemcpy2DAsync(to, to_pitch, from, from_pitch, width, rows);
}

Status cudaMemcpyToSymbol(void) { return OK; }
Status cudaMemcpyToSymbolAsync(void) { return OK; }
Status cudaMemset(void *to, int value, size_t n) { set_bytes(to, value, n); return OK; }
Status cudaMemsetAsync(void *to, int value, size_t n) { set_bytes(to, value, n); return OK; }

Status cudaMemset2DAsync(void *to, size_t pitch, int value, size_t width, size_t rows) {
  for (size_t i = 0; i < rows; i++) set_bytes((char *)to + i * pitch, value, width);
  return OK;
}

Status cudaMemPrefetchAsync(const void *address, size_t n) { note("prefetch %p %zu\n", address, n); return OK; }
Status cudaMemPrefetchAsync_v2(const void *address, size_t n) { return cudaMemPrefetchAsync(address, n); }
Status cudaMemAdvise(void) { return OK; }
Status cudaMemAdvise_v2(void) { return OK; }

Status cudaDeviceGetDefaultMemPool(Handle *pool, int device) { (void)device; *pool = new_handle(); return OK; }
Status cudaDeviceGetMemPool(Handle *pool, int device) { return cudaDeviceGetDefaultMemPool(pool, device); }
Status cudaMemPoolSetAttribute(void) { return OK; }
Status cudaMemPoolSetAccess(void) { return OK; }
Status cudaMemPoolTrimTo(void) { return OK; }

Status cudaMemPoolGetAttribute(Handle pool, int attribute, uint64_t *value) {
  (void)pool;
  (void)attribute;
  start();
  *value = books->device[current_device].now;
  return OK;
}

Status cudaDeviceGetGraphMemAttribute(int device, int attribute, uint64_t *value) {
  (void)device;
  (void)attribute;
  *value = 0;
  return OK;
}

Status cudaDeviceSetGraphMemAttribute(void) { return OK; }
Status cudaDeviceGraphMemTrim(void) { return OK; }

/* A variable of a device's program: 4 KiB of memory that nothing is ever written to. */
Status cudaGetSymbolAddress(void **address) {
  static void *variables;
  start();
  if (!variables) variables = take_addresses(4 * KIB, 0);
  *address = variables;
  return OK;
}

Status cudaGetSymbolSize(size_t *n) { *n = 4 * KIB; return OK; }

Status cudaIpcGetMemHandle(void) { return fail(NOT_SUPPORTED); }
Status cudaIpcOpenMemHandle(void) { return fail(NOT_SUPPORTED); }
Status cudaIpcCloseMemHandle(void) { return fail(NOT_SUPPORTED); }
Status cudaIpcGetEventHandle(void) { return fail(NOT_SUPPORTED); }
Status cudaIpcOpenEventHandle(void) { return fail(NOT_SUPPORTED); }

/* ---- streams and events: everything has already happened ---- */

Status cudaStreamCreate(Handle *stream) { *stream = new_handle(); return OK; }
Status cudaStreamCreateWithFlags(Handle *stream) { return cudaStreamCreate(stream); }
Status cudaStreamCreateWithPriority(Handle *stream) { return cudaStreamCreate(stream); }
Status cudaStreamDestroy(Handle stream) { (void)stream; return OK; }
Status cudaStreamGetPriority(Handle stream, int *priority) { (void)stream; *priority = 0; return OK; }
Status cudaStreamGetFlags(Handle stream, unsigned *flags) { (void)stream; *flags = 0; return OK; }
Status cudaStreamGetDevice(Handle stream, int *device) { (void)stream; *device = current_device; return OK; }
Status cudaStreamGetId(Handle stream, unsigned long long *id) { *id = (uintptr_t)stream; return OK; }
Status cudaStreamQuery(Handle stream) { (void)stream; return OK; }
Status cudaStreamSynchronize(Handle stream) { (void)stream; return OK; }
Status cudaStreamWaitEvent(Handle stream) { (void)stream; return OK; }
Status cudaStreamAttachMemAsync(void) { return OK; }

Status cudaStreamAddCallback(Handle stream, void (*callback)(Handle, Status, void *), void *argument) {
  callback(stream, OK, argument);
  return OK;
}

Status cudaLaunchHostFunc(Handle stream, void (*function)(void *), void *argument) {
  (void)stream;
  function(argument);
  return OK;
}

Status cudaEventCreate(Handle *event) {
  *event = calloc(1, sizeof(struct timespec));
  return *event ? OK : fail(OUT_OF_MEMORY);
}

Status cudaEventCreateWithFlags(Handle *event) { return cudaEventCreate(event); }
Status cudaEventDestroy(Handle event) { free(event); return OK; }
Status cudaEventQuery(Handle event) { (void)event; return OK; }
Status cudaEventSynchronize(Handle event) { (void)event; return OK; }
Status cudaEventRecord(Handle event) { clock_gettime(CLOCK_MONOTONIC, event); return OK; }
Status cudaEventRecordWithFlags(Handle event) { return cudaEventRecord(event); }

/* Host time between the two records; it says nothing about a GPU. */
Status cudaEventElapsedTime(float *milliseconds, Handle from, Handle to) {
  const struct timespec *a = from, *b = to;
  *milliseconds = (float)((b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) * 1e-6);
  return OK;
}

Status cudaEventElapsedTime_v2(float *milliseconds, Handle from, Handle to) {
  return cudaEventElapsedTime(milliseconds, from, to);
}

/* ---- capture: a stream can be captured; the graph holds nothing ---- */

static Handle captured_stream;
static int capturing;
static unsigned long long capture_id;

static void report_capture(Handle stream, int *status, unsigned long long *id, Handle *graph) {
  *status = capturing && stream == captured_stream;
  if (id) *id = capture_id;
  if (graph) *graph = (Handle)0x10;
}

Status cudaStreamIsCapturing(Handle stream, int *status) { report_capture(stream, status, NULL, NULL); return OK; }

Status cudaStreamBeginCapture(Handle stream) {
  captured_stream = stream;
  capturing = 1;
  capture_id++;
  return OK;
}

Status cudaStreamBeginCaptureToGraph(Handle stream) { return cudaStreamBeginCapture(stream); }

Status cudaStreamEndCapture(Handle stream, Handle *graph) {
  (void)stream;
  capturing = 0;
  *graph = new_handle();
  return OK;
}

Status cudaStreamGetCaptureInfo(Handle stream, int *status, unsigned long long *id, Handle *graph,
                                const Handle **nodes, const void **edges, size_t *n) {
  report_capture(stream, status, id, graph);
  if (nodes) *nodes = NULL;
  if (edges) *edges = NULL;
  if (n) *n = 0;
  return OK;
}

Status cudaStreamGetCaptureInfo_v3(Handle stream, int *status, unsigned long long *id, Handle *graph,
                                   const Handle **nodes, const void **edges, size_t *n) {
  return cudaStreamGetCaptureInfo(stream, status, id, graph, nodes, edges, n);
}

Status cudaStreamGetCaptureInfo_v2(Handle stream, int *status, unsigned long long *id, Handle *graph,
                                   const Handle **nodes, size_t *n) {
  return cudaStreamGetCaptureInfo(stream, status, id, graph, nodes, NULL, n);
}

Status cudaThreadExchangeStreamCaptureMode(int *mode) {
  static __thread int current;
  int previous = current;
  current = *mode;
  *mode = previous;
  return OK;
}

Status cudaStreamUpdateCaptureDependencies(void) { return OK; }
Status cudaStreamUpdateCaptureDependencies_v2(void) { return OK; }
Status cudaGraphCreate(Handle *graph) { *graph = new_handle(); return OK; }
Status cudaGraphInstantiate(Handle *executable) { *executable = new_handle(); return OK; }
Status cudaGraphInstantiateWithFlags(Handle *executable) { return cudaGraphInstantiate(executable); }
Status cudaGraphLaunch(void) { return OK; }
Status cudaGraphUpload(void) { return OK; }
Status cudaGraphDestroy(void) { return OK; }
Status cudaGraphExecDestroy(void) { return OK; }
Status cudaGraphDebugDotPrint(void) { return OK; }
Status cudaGraphGetNodes(Handle graph, Handle *nodes, size_t *n) { (void)graph; (void)nodes; *n = 1; return OK; }
Status cudaGraphNodeGetDependencies(void) { return fail(NOT_SUPPORTED); }
Status cudaGraphAddNode(void) { return fail(NOT_SUPPORTED); }
Status cudaGraphConditionalHandleCreate(void) { return fail(NOT_SUPPORTED); }
Status cudaGraphRetainUserObject(void) { return OK; }
Status cudaUserObjectCreate(Handle *object) { *object = new_handle(); return OK; }
Status cudaUserObjectRelease(void) { return OK; }
Status cudaUserObjectRetain(void) { return OK; }
Status cudaProfilerStart(void) { return OK; }
Status cudaProfilerStop(void) { return OK; }

/* ---- kernels ---- */

typedef struct { Dim3 grid, block; size_t shared_bytes; Handle stream; } Configuration;
enum { NESTED = 16 };
static __thread Configuration pushed[NESTED];
static __thread unsigned n_pushed;

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared_bytes, Handle stream) {
  pushed[n_pushed++ % NESTED] = (Configuration){grid, block, shared_bytes, stream};
  return 0;
}

Status __cudaPopCallConfiguration(Dim3 *grid, Dim3 *block, size_t *shared_bytes, Handle *stream) {
  Configuration top = pushed[--n_pushed % NESTED];
  *grid = top.grid;
  *block = top.block;
  *shared_bytes = top.shared_bytes;
  *stream = top.stream;
  return OK;
}

void **__cudaRegisterFatBinary(void *binary) {
  static void *handle[2];
  (void)binary;
  return handle;
}

void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
void __cudaUnregisterFatBinary(void **handle) { (void)handle; }
char __cudaInitModule(void **handle) { (void)handle; return 1; }
void __cudaRegisterVar(void) {}
void __cudaRegisterManagedVar(void) {}
void __cudaRegisterHostVar(void) {}
void __cudaRegisterSurface(void) {}
void __cudaRegisterTexture(void) {}

void __cudaRegisterFunction(void **handle, const char *stub, char *device_stub, const char *name) {
  (void)handle;
  (void)device_stub;
  name_kernel(stub, name);
}

Status __cudaGetKernel(Handle *kernel, const void *stub) { *kernel = (Handle)stub; return OK; }
Status cudaGetKernel(Handle *kernel, const void *stub) { return __cudaGetKernel(kernel, stub); }

Status cudaLaunchKernel(const void *stub, Dim3 grid, Dim3 block) {
  unsigned long long threads = (unsigned long long)block.x * block.y * block.z;
  start();
  if (!grid.x || !grid.y || !grid.z || !threads || threads > THREADS_PER_BLOCK) return fail(INVALID_LAUNCH);
  count_launch(stub);
  return OK;
}

Status __cudaLaunchKernel(const void *kernel, Dim3 grid, Dim3 block) { return cudaLaunchKernel(kernel, grid, block); }
Status cudaLaunchCooperativeKernel(const void *stub, Dim3 grid, Dim3 block) { return cudaLaunchKernel(stub, grid, block); }

Status cudaLaunchKernelExC(const LaunchConfig *config, const void *stub) {
  return cudaLaunchKernel(stub, config->grid, config->block);
}

Status cudaFuncGetAttributes(FunctionAttributes *attributes, const void *stub) {
  (void)stub;
  start();
  *attributes = (FunctionAttributes){
    .max_threads_per_block = THREADS_PER_BLOCK, .num_regs = 40, .ptx_version = code_version(),
    .binary_version = code_version(), .max_dynamic_shared_bytes = card.shared_per_block_optin};
  return OK;
}

Status cudaFuncSetAttribute(void) { return OK; }
Status cudaFuncSetCacheConfig(void) { return OK; }
Status cudaKernelSetAttributeForDevice(void) { return OK; }

Status cudaFuncGetName(const char **name, const void *stub) { (void)stub; *name = "a kernel"; return OK; }

Status cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, const void *stub, int threads, size_t shared_bytes) {
  (void)stub;
  start();
  *blocks = resident_blocks(threads, shared_bytes);
  return OK;
}

Status cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *stub, int threads, size_t shared) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(blocks, stub, threads, shared);
}

Status cudaOccupancyMaxActiveClusters(int *clusters) { *clusters = 8; return OK; }

Status cudaLibraryLoadData(Handle *library) { *library = new_handle(); return OK; }
Status cudaLibraryUnload(void) { return OK; }

Status cudaLibraryGetKernel(Handle *kernel, Handle library, const char *name) {
  char *copy = strdup(name);
  (void)library;
  name_kernel(copy, copy);
  *kernel = copy;
  return OK;
}

/* ---- the driver's functions by name ---- */

Status cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *found);

Status cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, uint64_t flags, int *found) {
  int missing;
  cuGetProcAddress_v2(name, function, (int)version, flags, &missing);
  if (found) *found = missing;
  if (missing) note("the driver function %s is missing\n", name);
  return missing && !found ? fail(SYMBOL_NOT_FOUND) : OK;
}

Status cudaGetDriverEntryPoint(const char *name, void **function, uint64_t flags, int *found) {
  return cudaGetDriverEntryPointByVersion(name, function, 0, flags, found);
}

API_END
