/* The few types that cross the boundary, as the callers lay them out in memory.
 *
 * Own declarations after NVIDIA's documentation of the CUDA Runtime and Driver APIs (12.x and 13.x), cuBLASLt and NVML;
 * no NVIDIA header is used.  Handles are opaque to the caller, so here they are plain pointers or integers.
 * Enumerations are ints: only the numbers that are answered or asked for are named.
 */
#ifndef PHANTOM_TYPES_H
#define PHANTOM_TYPES_H

#include <stddef.h>
#include <stdint.h>

typedef int Status;   /* cudaError_t, CUresult, cublasStatus_t, cudnnStatus_t, nvmlReturn_t: 0 is success in all */
typedef void *Handle; /* streams, events, graphs, contexts, modules, descriptors */

enum {
  OK = 0,
  INVALID_VALUE = 1,     /* cudaErrorInvalidValue, CUDA_ERROR_INVALID_VALUE */
  OUT_OF_MEMORY = 2,     /* cudaErrorMemoryAllocation, CUDA_ERROR_OUT_OF_MEMORY */
  INVALID_LAUNCH = 9,    /* cudaErrorInvalidConfiguration */
  NO_DEVICE = 100,       /* cudaErrorNoDevice, CUDA_ERROR_NO_DEVICE */
  INVALID_DEVICE = 101,  /* cudaErrorInvalidDevice */
  SYMBOL_NOT_FOUND = 500, /* cudaErrorSymbolNotFound, CUDA_ERROR_NOT_FOUND */
  NOT_SUPPORTED = 801    /* cudaErrorNotSupported, CUDA_ERROR_NOT_SUPPORTED */
};

typedef struct { unsigned x, y, z; } Dim3;
typedef struct { char bytes[16]; } Uuid;

/* cudaDeviceProp.  CUDA 12 and 13 have the same fields in the same order, but CUDA 12 has a few in between that CUDA 13
 * dropped; what both begin and end with is written once. */
#define PROPERTIES_START \
  char name[256]; \
  Uuid uuid; \
  char luid[8]; \
  unsigned luid_device_node_mask; \
  size_t total_global_mem, shared_mem_per_block; \
  int regs_per_block, warp_size; \
  size_t mem_pitch; \
  int max_threads_per_block, max_threads_dim[3], max_grid_size[3];

#define PROPERTIES_END \
  size_t shared_mem_per_block_optin; \
  int pageable_uses_host_page_tables, direct_managed_access_from_host, max_blocks_per_multi_processor; \
  int access_policy_max_window_size; \
  size_t reserved_shared_mem_per_block; \
  int host_register_supported, sparse_array_supported, host_register_read_only_supported; \
  int timeline_semaphore_interop, memory_pools_supported, gpu_direct_rdma_supported; \
  unsigned gpu_direct_rdma_flush_writes; \
  int gpu_direct_rdma_writes_ordering; \
  unsigned memory_pool_handle_types; \
  int deferred_mapping_supported, ipc_event_supported, cluster_launch, unified_function_pointers; \
  int rest[63];

typedef struct {
  PROPERTIES_START
  size_t total_const_mem;
  int major, minor;
  size_t texture_alignment, texture_pitch_alignment;
  int multi_processor_count, integrated, can_map_host_memory;
  int texture_sizes[39];
  size_t surface_alignment;
  int concurrent_kernels, ecc_enabled, pci_bus_id, pci_device_id, pci_domain_id, tcc_driver, async_engine_count;
  int unified_addressing;
  int memory_bus_width, l2_cache_size, persisting_l2_cache_max_size, max_threads_per_multi_processor;
  int stream_priorities_supported, global_l1_cache_supported, local_l1_cache_supported;
  size_t shared_mem_per_multiprocessor;
  int regs_per_multiprocessor, managed_memory, is_multi_gpu_board, multi_gpu_board_group_id;
  int host_native_atomic_supported;
  int pageable_memory_access, concurrent_managed_access, compute_preemption_supported;
  int can_use_host_pointer_for_registered_mem, cooperative_launch;
  PROPERTIES_END
} Properties13; /* 1008 bytes, what cudaGetDeviceProperties of CUDA 13 fills */

typedef struct {
  PROPERTIES_START
  int clock_rate;
  size_t total_const_mem;
  int major, minor;
  size_t texture_alignment, texture_pitch_alignment;
  int device_overlap, multi_processor_count, kernel_exec_timeout_enabled, integrated, can_map_host_memory;
  int compute_mode, texture_sizes[40];
  size_t surface_alignment;
  int concurrent_kernels, ecc_enabled, pci_bus_id, pci_device_id, pci_domain_id, tcc_driver, async_engine_count;
  int unified_addressing, memory_clock_rate;
  int memory_bus_width, l2_cache_size, persisting_l2_cache_max_size, max_threads_per_multi_processor;
  int stream_priorities_supported, global_l1_cache_supported, local_l1_cache_supported;
  size_t shared_mem_per_multiprocessor;
  int regs_per_multiprocessor, managed_memory, is_multi_gpu_board, multi_gpu_board_group_id;
  int host_native_atomic_supported, single_to_double_ratio;
  int pageable_memory_access, concurrent_managed_access, compute_preemption_supported;
  int can_use_host_pointer_for_registered_mem, cooperative_launch, cooperative_multi_device_launch;
  PROPERTIES_END
} Properties12; /* 1032 bytes, what cudaGetDeviceProperties_v2 of CUDA 12 fills */

enum { MEMORY_UNREGISTERED = 0, MEMORY_HOST = 1, MEMORY_DEVICE = 2, MEMORY_MANAGED = 3 }; /* cudaMemoryType */

typedef struct { int type, device; void *device_pointer, *host_pointer; } PointerAttributes; /* CUDA 13 reserves more */

typedef struct {
  size_t shared_bytes, const_bytes, local_bytes;
  int max_threads_per_block, num_regs, ptx_version, binary_version, cache_mode_ca;
  int max_dynamic_shared_bytes, preferred_carveout;
} FunctionAttributes; /* the start of cudaFuncAttributes; what follows is about clusters and stays untouched */

typedef struct { Dim3 grid, block; size_t dynamic_shared_bytes; Handle stream; } LaunchConfig; /* start of cudaLaunchConfig_t */

typedef struct { int type, id; } Location; /* CUmemLocation */
enum { ON_DEVICE = 1 };                    /* CUmemLocationType */
typedef struct {
  int type, requested_handle_types;
  Location location;
  void *win32_metadata;
  unsigned char allocation_flags[8];
} AllocationProperties; /* CUmemAllocationProp */

typedef struct { uint64_t words[8]; } LtAlgorithm; /* cublasLtMatmulAlgo_t */
typedef struct {
  LtAlgorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
} LtHeuristicResult; /* cublasLtMatmulHeuristicResult_t */

typedef struct { unsigned long long total, free, used; } NvmlMemory;                           /* nvmlMemory_t */
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } NvmlMemory2; /* nvmlMemory_v2_t */
typedef struct { unsigned pid; unsigned long long used; } NvmlProcess1;                        /* nvmlProcessInfo_v1_t */
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } NvmlProcess;
typedef struct { unsigned gpu, memory; } NvmlUtilization;

#endif
